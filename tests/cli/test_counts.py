"""One thing is counted in the singular: "1 image", "1 class", "1 tar file", in results, notes, errors and pages."""

from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_datasets import fill, picture, tar

from avarc_cli.cli import main
from avarc_cli.words import agreeing, are, counted

ONE_OF_MANY = re.compile(
    r"(?<![\d.,/:-])(?<!by )1 (?:(?:more|unreadable|different|calibration|tar|h5|parquet) )*"
    r"(?:images|classes|files|tokens|samples|steps|chunks|shards|caches|checksums|candidates|pairs|rounds|threads|"
    r"pictures|names|texts|objects|predictions|cores|labels|are\b)"
)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Exactly one image: as a folder, a tar, a cache and a run with one candidate; and a cache of one shard."""
    root = tmp_path_factory.mktemp("one")
    fill(root / "images", "7/only.png")
    tar(root / "x.tar", {"only.png": picture(), "only.cls": b"7"})
    assert main(["--quiet", "encode", str(root / "images"), "--out", str(root / "x.h5")]) == 0
    saved = ["--classes", "7", "--save-json", "--save-likelihood", "--out", str(root / "run")]
    assert main(["--quiet", "classify", str(root / "x.h5"), *saved]) == 0
    return root


@pytest.mark.parametrize(
    "command",
    [
        "data check {0}/images",
        "data check {0}/x.tar",
        "encode {0}/images --out {1}.h5",
        "encode {0}/images --samples 2 --shard 1/2 --out {1}.h5",
        "classify {0}/x.tar",
        "classify {0}/x.h5 --classes 7",
        "classify {0}/x.h5 --classes 7 --plan 1:2,5:1",
        "explain {0}/x.h5 --out {1}.html",
        "explain {0}/x.h5 --rows 3 --out {1}.html",
        "report {0}/run --out {1}.html",
        "sample 7 --count 1 --out {1}.png",
        "tune {0}/x.h5",
        "cache verify {0}/x.h5",
        "cache head {0}/x.h5 --picture {1}.png",
        "cache head {0}/x.h5 --start 5",
        "bench --quick --pairs 1 --rounds 1 --classes 1 --precision fp32",
    ],
)
def test_one_thing_is_not_counted_in_the_plural(command, one, tmp_path, capsys):
    main(shlex.split(command.format(one, tmp_path / "new")))
    printed = capsys.readouterr()
    page = "".join(path.read_text() for path in tmp_path.glob("*.html"))
    for text in (printed.out, printed.err, re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)):
        assert not ONE_OF_MANY.findall(text)
    assert "bug in avarc" not in printed.err


def test_a_finished_image_is_one_image(one, capsys):
    assert main(["classify", str(one / "images")]) == 0
    message = capsys.readouterr().err
    assert "encoding: 1 image in" in message and "1 image x 10 classes" in message


def test_the_only_image_that_cannot_be_read_is_not_counted(tmp_path, capsys):
    (tmp_path / "x.png").write_text("not a picture")
    assert main(["encode", str(tmp_path), "--out", str(tmp_path / "x.h5")]) == 1
    assert "the only image of " in capsys.readouterr().err


def test_one_tar_file_with_one_class(one, capsys):
    assert main(["data", "check", str(one / "x.tar")]) == 0
    assert "1 tar file" in capsys.readouterr().out


@given(st.integers(0, 10**7), st.sampled_from([("image", "images"), ("class", "classes"), ("batch", "batches")]))
def test_a_noun_agrees_with_its_number(number, forms):
    singular, plural = forms
    assert counted(number, singular) == f"{number:,} {singular if number == 1 else plural}"
    assert agreeing(number, singular) == counted(number, singular).split()[1]
    assert are(number) == ("is" if number == 1 else "are")


def test_units_of_measure_have_no_plural():
    assert [counted(n, "MB") for n in (1, 2)] == ["1 MB", "2 MB"]
