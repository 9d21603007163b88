"""Protocol files: what is included can be read, and everything that is wrong in one is named with file and key."""

import pytest

from avarc_cli.cli import main
from avarc_cli.errors import UsageError
from avarc_cli.evaluation import protocol as protocols

GOOD = """
title = "a protocol"

[[columns]]
name = "all"
included = "digits"

[[rows]]
name = "var"
model = "digits"
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", protocols.included())
def test_included_protocols_can_be_read(name):
    found = protocols.read(protocols.find(name))
    assert found.rows and found.columns and found.title


def test_the_included_protocols_are_these():
    assert set(protocols.included()) == {
        "a-varc",
        "digits",
        "digits-incremental",
        "imagenet-1000",
        "imagenet-two-tasks",
    }


def test_published_values_are_the_papers():
    found = protocols.read(protocols.find("a-varc"))
    plain, staged = found.rows
    assert plain.published == {"in100": 83.3, "v2": 71.9, "r": 30.6, "sketch": 36.0, "objectnet": 19.47, "a": 10.3}
    assert staged.plan == "6:10,10:3,10:1:3" and staged.published["in100"] == 89.32
    assert [reference.title for reference in found.references][1:] == ["ResNet-50", "ViT-B/16"]
    thousand = protocols.read(protocols.find("imagenet-1000"))
    assert [reference.published["in"] for reference in thousand.references] == [77.5, 79.1, 76.7, 81.2]
    tasks = protocols.read(protocols.find("imagenet-two-tasks"))
    assert tasks.references[0].published == {"two-tasks": 77.4}
    (column,) = tasks.columns
    assert len(column.base.split("+")) == len(column.tasks.split("+")) == 50
    assert not set(column.base.split("+")) & set(column.tasks.split("+"))


def test_the_defaults_are_those_of_the_command_line(write):
    found = protocols.read(write(GOOD))
    (row,) = found.rows
    assert (row.plan, row.precision, row.sigma, row.combine) == ("exhaustive", "fp32", 0.1, "mean")
    assert not found.needs_data


def test_files_beside_the_protocol_are_found(write, tmp_path):
    (tmp_path / "classes.txt").write_text("1\n2\n")
    found = protocols.read(write(GOOD.replace('included = "digits"', 'included = "digits"\nsubset = "classes.txt"')))
    assert found.columns[0].subset == str(tmp_path / "classes.txt")


ROW, COLUMN = 'model = "digits"', 'included = "digits"'
CAPTIONED = 'model = "digits-captions"'


@pytest.mark.parametrize(
    ("old", "new", "key", "advice"),
    [
        (ROW, ROW + '\nplann = "paper"', "rows[0].plann", "did you mean plan?"),
        (ROW, ROW + '\nseed = "1"', "rows[0].seed", "a whole number from 0"),
        (ROW, ROW + "\nseed = -1", "rows[0].seed", "a whole number from 0"),
        (ROW, ROW + "\norder_seed = true", "rows[0].order_seed", "a whole number"),
        (ROW, ROW + "\nplan = 3", "rows[0].plan", "must be text"),
        (ROW, ROW + '\nplan = "3:nine"', "rows[0].plan", "stage"),
        (ROW, ROW + '\nprecision = "fp64"', "rows[0].precision", "fp32"),
        (ROW, ROW + '\ncombine = "sum"', "rows[0].combine", "mean"),
        (ROW, ROW + '\nscore = "best"', "rows[0].score", "log-likelihood"),
        (ROW, ROW + "\nsigma = -1", "rows[0].sigma", ""),
        (ROW, ROW + '\norders = "many"', "rows[0].orders", "random orders"),
        (ROW, ROW + '\ncolumns = ["none"]', "rows[0].columns", "there are all"),
        (ROW, ROW + "\npublished = { al = 3 }\nsource = 'x'", "rows[0].published.al", "did you mean all?"),
        (ROW, ROW + "\npublished = { all = 300 }\nsource = 'x'", "rows[0].published.all", "0 to 100"),
        (ROW, ROW + "\npublished = { all = nan }\nsource = 'x'", "rows[0].published.all", "0 to 100"),
        (ROW, ROW + "\npublished = { all = 30 }", "rows[0].source", "where they are from"),
        (ROW, 'model = "digitz"', "rows[0].model", "did you mean digits"),
        (ROW, "", "rows[0].model", "missing"),
        (ROW, ROW + '\ncaptions = "none.txt"', "rows[0].captions", "does not exist"),
        (ROW, ROW + '\ntemplate = ["a {}"]', "rows[0].captions", "reads no captions"),
        (ROW, 'model = "digits-captions"', "rows[0].captions", "has no classes"),
        (ROW, CAPTIONED + '\ntemplate = ["a digit"]', "rows[0].captions", "has {} once"),
        (ROW, CAPTIONED + "\ntemplate = [3]", "rows[0].template", "more than texts"),
        (ROW, CAPTIONED + '\ntemplate = "a {}"', "rows[0].template", "a list of texts"),
        (
            ROW,
            CAPTIONED + '\ntemplate = ["{}"]\ntext_encoder = "flan-t5-xxl"',
            "rows[0].captions",
            "did you mean flan-t5-xl",
        ),
        (ROW, CAPTIONED + '\ntemplate = ["{}"]\naesthetic_score = -1', "rows[0].aesthetic_score", "at least 0"),
        (ROW, CAPTIONED + '\ntemplate = ["{}"]\nbank = "b"', "rows[0].captions", "--bank"),
        (ROW, ROW + '\n[[rows]]\nname = "var"\nmodel = "digits"', "rows", "two are called 'var'"),
        ('name = "var"', 'name = "../var"', "rows[0].name", "letters"),
        (COLUMN, "", "columns[0].data", "either"),
        (COLUMN, COLUMN + '\ndata = "x"', "columns[0].data", "either"),
        (COLUMN, 'data = "../x"', "columns[0].data", "below it"),
        (COLUMN, 'data = "/etc"', "columns[0].data", "below it"),
        (COLUMN, 'included = "letters"', "columns[0].included", '"digits"'),
        (COLUMN, COLUMN + "\nper_class = 0", "columns[0].per_class", "from 1"),
        (COLUMN, COLUMN + "\nsample = 0", "columns[0].sample", "from 1"),
        (COLUMN, COLUMN + "\nsample = 4\nseed = -1", "columns[0].seed", "from 0"),
        (COLUMN, COLUMN + "\nsample = 4\nlimit = 4", "columns[0].sample", "leave out one"),
        (COLUMN, COLUMN + "\nseed = 4", "columns[0].sample", "missing"),
        (COLUMN, COLUMN + '\ndataset = "imagenet-c"', "columns[0].dataset", "imagenet-a"),
        (COLUMN, COLUMN + '\nsubset = "imagenet10"', "columns[0].subset", "imagenet100"),
        (COLUMN, COLUMN + '\nbase = "0-4"', "columns[0].tasks", "missing"),
        ('title = "a protocol"', "", "title", "missing"),
        ('title = "a protocol"', 'title = "a protocol"\nrow = 1', "row", "did you mean rows?"),
        ("[[rows]]", "[rows]", "rows", "[[rows]]"),
        (ROW, ROW + "\nseed = 2020-01-01", "rows[0].seed", "a whole number"),
        (ROW, 'model = ""', "rows[0].model", "must be text"),
        (ROW, 'tokenizer = "digits-vqvae"', "rows[0].model", "missing"),
    ],
)
def test_what_is_wrong_is_named(write, old, new, key, advice):
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as error:
        protocols.read(path)
    assert str(path) in error.value.what and error.value.what.endswith(key)
    assert advice in str(error.value)


@pytest.mark.parametrize("text", ["title = ", "title = 'a'\ntitle = 'b'", "x = " + "[" * 5000])
def test_what_is_no_toml_is_named(write, text, tmp_path, capsys):
    path = write(text)
    assert main(["evaluate", str(path), "--out", str(tmp_path / "out")]) == 2
    assert f"'{path}' is not a TOML file" in capsys.readouterr().err
    path.write_bytes(b"\xff\xfe")
    assert main(["evaluate", str(path), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digitz", "--out", "x"], "did you mean digits"),
        (["missing.toml", "--out", "x"], "cannot read 'missing.toml'"),
        (["--out", "x"], "which protocol?"),
        (["digits"], "add --out"),
        (["a-varc", "--out", "x"], "--data ROOT"),
        (["a-varc", "--out", "x", "--data", "missing"], "'missing' does not exist"),
        (["digits", "--out", "x", "--device", "tpu"], "cannot use device"),
    ],
)
def test_wrong_requests_end_with_advice(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_protocols_are_listed_and_shown(capsys):
    assert main(["-q", "evaluate", "--list"]) == 0
    assert capsys.readouterr().out.split() == sorted(protocols.included(), key=lambda name: f"{name}.toml")
    assert main(["evaluate", "digits", "--show"]) == 0
    assert capsys.readouterr().out == protocols.find("digits").read_text()
