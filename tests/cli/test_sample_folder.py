"""avarc sample into a folder: many pictures, drawn by one or several processes, interrupted and continued."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import run

from avarc_cli.cli import main
from avarc_cli.loading import load_model
from avarc_cli.sampling import Sampling, sample


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def draw(tmp_path, monkeypatch, capsys):
    """Draws three pictures of two classes in batches of two; gives the exit code, and what was said."""
    monkeypatch.chdir(tmp_path)

    def do(*options):
        capsys.readouterr()
        code = main(["sample", "3", "8", "--per-class", "3", "--batch-size", "2", "--seed", "1", *options])
        return code, " ".join("".join(capsys.readouterr()).split())

    return do


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The pictures of `draw`, and the request."""
    out = tmp_path_factory.mktemp("whole") / "out"
    words = ["sample", "3", "8", "--count", "3", "--batch-size", "2", "--seed", "1", "--out", str(out)]
    assert main(["--quiet", *words]) == 0
    return contents(out)


def test_pictures_are_those_of_the_grid(whole, tmp_path):
    assert set(whole) == {f"{name}/00{n}.png" for name in "38" for n in range(3)} | {"samples.json"}
    drawn = sample(load_model("digits"), ["3", "8"], 3, Sampling(seed=1)).pictures
    for n in range(3):
        (tmp_path / "x.png").write_bytes(whole[f"8/00{n}.png"])
        pixels = np.asarray(Image.open(tmp_path / "x.png"))
        assert np.abs(pixels.astype(int) - drawn[1, n]).max() <= 1, "up to rounding"


def test_shards_meet_in_one_folder_and_pictures_that_are_lost_are_drawn_again(draw, whole, tmp_path):
    code, said = draw("--shard", "1/2", "--out", "out")
    assert code == 0 and "1 of 3 chunks, shard 1/2 is done; run the others with the same --out" in said
    (tmp_path / "out" / "3" / "001.png").unlink()
    (tmp_path / "out" / "3" / "000.png.0123abcd.tmp").write_bytes(b"of a process that was killed")
    assert "shard 1/4 has nothing to draw, since there are only 3 chunks" in draw("--shard", "1/4", "--out", "out")[1]
    assert draw("--shard", "1/2", "--out", "out")[0] == 0, "which deletes what a killed process left"
    assert "out: 3 pictures of each of 2 classes" in draw("--shard", "2/2", "--out", "out")[1]
    assert contents(tmp_path / "out") == whole
    assert "out: was complete already" in draw("--out", "out")[1]
    (tmp_path / "out" / "8" / "002.png").unlink()
    code, said = draw("--out", "out")
    assert code == 2 and "was complete, and 1 picture is gone" in said
    assert draw("--out", "out", "--overwrite")[0] == 0 and contents(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_processes_draw_the_same(draw, whole, tmp_path):
    code, said = draw("--out", "out", "--devices", "cpu:2")
    assert code == 0 and "drawing: 6 pictures" in said
    assert contents(tmp_path / "out") == whole


def test_drawing_that_is_killed_at_any_step_is_continued(tmp_path):
    done = run("kill_sampling", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("state", ["unfinished", "complete"])
def test_pictures_of_another_request_are_replaced_only_with_overwrite(draw, whole, tmp_path, state):
    out = tmp_path / "out"
    shard = ["--shard", "1/2"] if state == "unfinished" else []
    assert main(["sample", "3", "5", "--per-class", "4", "--batch-size", "2", "--out", str(out), *shard]) == 0
    before = contents(tmp_path)
    code, said = draw("--out", "out")
    assert code == 2 and "pictures of another request" in said and "sampling.seed: 0 there, 1 here" in said
    assert ("unfinished" in said) == bool(shard) and contents(tmp_path) == before
    (out / "5").mkdir(exist_ok=True)
    (out / "5" / "mine.png").write_bytes(b"not avarc's")
    code, said = draw("--out", "out", "--overwrite")
    assert code == 2 and "it holds 5/mine.png" in said
    assert contents(tmp_path) == before | {"out/5/mine.png": b"not avarc's"}
    (out / "5" / "mine.png").unlink()
    assert draw("--out", "out", "--overwrite")[0] == 0 and contents(out) == whole
    assert sorted(path.name for path in out.iterdir()) == ["3", "8", "samples.json"]


@pytest.mark.parametrize("name", ["mine.txt", "samples.json", "3/000.png", "../out.parts/mine.txt"])
def test_a_folder_that_is_not_avarcs_is_never_touched(draw, tmp_path, name):
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}")
    before = contents(tmp_path)
    for options in ([], ["--overwrite"]):
        code, said = draw("--out", "out", *options)
        assert code != 0 and ("cannot draw into 'out'" in said or "is not a folder of avarc's" in said)
        assert contents(tmp_path) == before


def test_a_link_in_the_place_of_a_class_is_not_followed(draw, tmp_path):
    assert draw("--out", "out", "--shard", "1/3")[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "out" / "8").symlink_to(tmp_path / "mine")
    code, said = draw("--out", "out")
    assert code == 2 and "it holds 8, a link" in said and not list((tmp_path / "mine").iterdir())


def test_other_unfinished_work_of_avarcs_is_left_alone(draw, tmp_path):
    (tmp_path / "out.parts").mkdir()
    (tmp_path / "out.parts" / "request.json").write_text('{"power": 2}')
    code, said = draw("--out", "out")
    assert code == 2 and "other work of avarc's is there" in said and len(contents(tmp_path)) == 1


def test_classes_of_any_name_get_folders_inside(tmp_path, capsys):
    names = ["../x", "a/b", ".", "..", "samples.json", "x" * 300, "ü", "two words", "8", "\\x2f"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    out, listed = tmp_path / "inside" / "out", str(tmp_path / "names.txt")
    out.parent.mkdir()
    for said in ("1 picture of each of 10 classes", "was complete already"):
        assert main(["sample", listed, "--class-names", listed, "--count", "1", "--out", str(out)]) == 0
        assert said in " ".join(capsys.readouterr().out.split())
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert len(folders) == 10 and len(contents(out)) == 11
    assert folders > {"\\x2e.\\x2fx", "a\\x2fb", "\\x2e", "ü", "two words", "\\x73amples.json"}
    assert [path.name for path in out.parent.iterdir()] == ["out"] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--out", "x.png", "--devices", "cpu:2"], "no use for --devices with 'x.png'"),
        (["--out", "x.png", "--shard", "1/2", "--batch-size", "2"], "no use for --batch-size, --shard with 'x.png'"),
        (["--out", "none/x"], "'none' is not a folder"),
        (["--out", "x", "--shard", "1/2", "--overwrite"], "--overwrite does not go with --shard"),
        (["--out", "x", "--engine", "grid"], "no engine 'grid'"),
        (["--out", "x.gif"], "there is no format '.gif'"),
    ],
)
def test_wrong_requests_write_nothing(tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "3", *options]) == 2
    assert says in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())
