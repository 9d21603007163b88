"""No command replaces or deletes a file that avarc did not make, or one that exists unless asked to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from avarc_cli.cli import main
from avarc_cli.zoo.local_files import ASSETS

PRECIOUS = b"precious"
TRAIN = [*("--tokenizer", "digits-vqvae", "--depth", "1", "--width", "64"), *("--steps", "1", "--batch-size", "2")]

# What each command writes, and the command without --out.
WRITERS = {
    "merged.h5": ["cache", "merge", "c.h5", "d.h5"],
    "plan.json": ["tune", "c.h5", "--agreement", "0.8"],
    "a.png": ["explain", "c.h5", "--limit", "1"],
    "a.svg": ["explain", "images/3", "--limit", "1", "--workers", "0"],
    "page.html": ["explain", "c.h5", "--limit", "1"],
    "report.html": ["report", "run", "--hardest", "0"],
    "drawn.png": ["sample", "3", "--count", "1"],
    "v.st": ["train", "var", "images", *TRAIN],
    "e.npz": ["export", "run"],
    "e.h5": ["export", "run"],
    "f.npz": ["export", "c.h5", "--limit", "2"],
    "t.jsonl": ["cache", "export", "c.h5"],
    "t.npy": ["cache", "export", "c.h5"],
    "codes": ["cache", "export", "c.h5", "--format", "llamagen"],
    "data": ["export", "run"],
    "adapter": ["train", "cca", "images", "--rank", "1", "--steps", "1", "--batch-size", "2"],
}
FOLDERS = ("data", "adapter", "codes")
NEIGHBORS = (".tmp", ".lock", ".parts", ".run", ".calibrating", ".evaluating", ".ckpt", ".ckpt.tmp")


def avarc(*words: object) -> int:
    return main(["--quiet", *map(str, words)])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Images of three digits, two caches of them, and a finished run."""
    folder = tmp_path_factory.mktemp("inputs")
    for digit in "345":
        for image in sorted((ASSETS / "digits" / "test" / digit).iterdir())[:4]:
            (folder / "images" / digit).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder / "images" / digit)
    shutil.copytree(folder / "images" / "3", folder / "other" / "6")
    for name, images in (("c.h5", "images"), ("d.h5", "other")):
        assert avarc("encode", folder / images, "--workers", 0, "--out", folder / name) == 0
    assert avarc("classify", folder / "c.h5", "--save-json", "--out", folder / "run") == 0
    return folder


@pytest.fixture
def place(inputs, tmp_path, monkeypatch):
    """A copy of the inputs, which is the working directory."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", WRITERS)
def test_an_existing_output_is_refused_before_any_work_and_kept(place, capsys, name):
    (place / name).write_bytes(PRECIOUS)
    assert avarc(*WRITERS[name], "--out", name) == 2
    assert f"'{name}' exists" in capsys.readouterr().err
    if name not in FOLDERS:
        assert avarc(*WRITERS[name], "--out", name, "--overwrite") == 2  # it is not of the kind
    assert (place / name).read_bytes() == PRECIOUS


@pytest.mark.parametrize("name", WRITERS)
def test_overwrite_replaces_what_the_command_made(place, name):
    assert avarc(*WRITERS[name], "--out", name) == 0
    assert avarc(*WRITERS[name], "--out", name) == 2
    if name in FOLDERS:
        return
    first = (place / name).read_bytes()
    assert avarc(*WRITERS[name], "--out", name, "--overwrite") == 0
    assert (place / name).read_bytes() == first


@pytest.mark.parametrize("name", ["t.h5", *WRITERS])
def test_files_and_folders_that_bear_the_names_beside_the_output_survive(place, name):
    command = WRITERS.get(name, ["encode", "images", "--workers", "0"])
    kept = []
    for kind, suffixes in (("file", NEIGHBORS[::2]), ("folder", NEIGHBORS[1::2])):
        mine = place / kind
        mine.mkdir()
        for suffix in suffixes:
            path = mine / f"{name}{suffix}"
            if kind == "folder":
                path.mkdir()
                path = path / "thesis.txt"
            path.write_bytes(PRECIOUS)
            kept.append(path)
        assert avarc(*command, "--out", mine / name) in {0, 1, 2}
    assert all(path.read_bytes() == PRECIOUS for path in kept)


def test_explain_writes_its_two_files_together_or_not_at_all(place, capsys):
    (place / "a.npz").write_bytes(PRECIOUS)
    assert avarc(*WRITERS["a.png"], "--out", "a.png", "--npz", "a.npz") == 2
    assert "'a.npz' exists" in capsys.readouterr().err
    assert not (place / "a.png").exists() and (place / "a.npz").read_bytes() == PRECIOUS


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["explain", "{}", "--workers", "0", "--out", "{}", "--overwrite"], "images/3/a.png"),
        (["explain", "images", "--workers", "0", "--out", "{}", "--overwrite"], "images/3/a.png"),
        (["encode", "images", "--workers", "0", "--out", "{}", "--overwrite"], "images/3/a.png"),
        (["train", "var", "images", *TRAIN[2:], "--tokenizer", "{}", "--out", "{}", "--overwrite"], "tok.st"),
        (["cache", "merge", "c.h5", "d.h5", "--out", "{}", "--overwrite"], "c.h5"),
    ],
)
def test_an_input_is_never_written_to(place, command, name):
    shutil.copy(next((place / "images" / "4").iterdir()), place / "images" / "3" / "a.png")
    shutil.copy(ASSETS / "digits" / "vqvae.safetensors", place / "tok.st")
    before = (place / name).read_bytes()
    assert avarc(*(word.format(name) for word in command)) == 2
    assert (place / name).read_bytes() == before


def test_the_demo_stays_out_of_a_folder_with_other_files(place, capsys):
    (place / "mine").mkdir()
    (place / "mine" / "digits.png").write_bytes(PRECIOUS)
    assert avarc("demo", "--out", "mine") == 2
    assert "not a demo's folder" in capsys.readouterr().err
    assert [file.name for file in (place / "mine").iterdir()] == ["digits.png"]


def test_a_run_that_is_deleted_leaves_other_files_in_its_folder(place):
    (place / "f.npz.run").mkdir()
    (place / "f.npz.run" / "tokens.h5").write_bytes(PRECIOUS)  # where a run may begin
    assert avarc(*WRITERS["f.npz"], "--out", "f.npz") == 0
    assert [file.name for file in (place / "f.npz.run").iterdir()] == ["tokens.h5"]
    assert Path("f.npz.run/tokens.h5").read_bytes() == PRECIOUS
