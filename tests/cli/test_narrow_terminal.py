"""What people see fits the terminal: no line is too long and no word is cut, in 80 columns, in 60, and in more."""

from __future__ import annotations

import shlex

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from small_datasets import fill, noise, picture
from terminal import too_long

from avarc_cli import console, tables
from avarc_cli.cli import app, main

WIDE = 10_000
COMMANDS = [
    "models",
    "models show var-d16",
    "models show digits",
    "doctor",
    "data check {images}",
    "data check {images} --decode all",
    "data check {broken}",
    "encode {images} --out {new}.h5",
    "classify {images}",
    "classify {images} --limit 1",
    "classify {images} --out {new}-run",
    "classify {photo}",
    "explain {photo} --out {new}.png --npz {new}.npz",
    "explain {run} --out {new}.png",
    "report {run}",
    "export {run} --out {new}.npz",
    "reconstruct {images}",
    "sample 1 2 --count 1 --out {new}.png",
    "tune {cache} --agreement 0.9 --out {new}.json",
    "tune {cache} --agreement 0.9 --hold-out 9 --out {new}.json",
    "cache info {cache}",
    "cache verify {cache}",
    "cache head {cache}",
    "cache merge {cache} {other} --out {new}.h5",
    "cache export {cache} --out {new}.jsonl",
    "classes list --bank {bank}",
    "classes show amber --bank {bank}",
    "bench --quick --rounds 1",
]


@pytest.fixture(scope="module")
def files(setting, tmp_path_factory):
    """What the commands read: noise in folders that are named like the model's classes, a photo, a run, caches."""
    folder = tmp_path_factory.mktemp("a-folder-whose-name-is-longer-than-it-needs-to-be-" + "x" * 30)
    noise(folder / "images", 30, classes=3, side=16)
    fill(folder / "other", "0/another.png")
    noise(folder / "broken", 1, side=16)
    (folder / "broken" / "0" / "not-a-picture.png").write_text("no")
    (folder / "a-photo-with-a-name-that-is-long.jpg").write_bytes(picture(format="JPEG", size=(120, 90)))
    for name in ("images", "other"):
        assert main(["--quiet", "encode", str(folder / name), "--out", str(folder / f"{name}.h5")]) == 0
    options = ["--limit", "2", "--save-json", "--save-likelihood", "--out", str(folder / "run")]
    assert main(["--quiet", "classify", str(folder / "images"), *options]) == 0
    named = {
        "images": folder / "images",
        "broken": folder / "broken",
        "photo": folder / "a-photo-with-a-name-that-is-long.jpg",
        "run": folder / "run",
        "cache": folder / "images.h5",
        "other": folder / "other.h5",
        "bank": setting.bank,
    }
    return {name: shlex.quote(str(path)) for name, path in named.items()}


def words(lines: list[str]) -> set[str]:
    return {word for line in lines for word in line.split() if set(word) != {tables.RULE}}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_too_long_and_no_word_is_cut(command, files, tmp_path, monkeypatch, capsys):
    shown: list[tables.Layout] = []
    monkeypatch.setattr(console, "_print_lines", shown.append)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(shlex.split(command.format(**files, new=tmp_path / "new"))) in {0, 1, 3}
    assert not too_long(capsys.readouterr().err, 80)
    (layout,) = shown
    by_width = {width: [line.plain for line in layout(width)] for width in (40, 60, 80, 120, WIDE)}
    whole = words(by_width[WIDE]) | {word.rstrip(":") for word in words(by_width[WIDE])}
    for width, lines in by_width.items():
        assert not too_long("\n".join(lines), width)
        assert words(lines) <= whole


@pytest.mark.parametrize("width", ["80", "60"])
def test_the_help_of_every_command_fits(width, monkeypatch, capsys):
    def commands(command, before=()):
        yield before
        for name, inner in getattr(command, "commands", {}).items():
            yield from commands(inner, (*before, name))

    monkeypatch.setenv("COLUMNS", width)
    for command in commands(typer.main.get_command(app)):
        assert main([*command, "--help"]) == 0
        assert not too_long(capsys.readouterr().out, int(width)), command


def test_the_list_of_models_has_one_line_for_each_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if line.startswith("var-d16 ")).split()[-2:] == ["MIT", "no"]
    monkeypatch.setenv("COLUMNS", "130")
    assert main(["models"]) == 0
    assert "FoundationVision/var" in capsys.readouterr().out


def test_notes_warnings_and_errors_are_broken_between_words_on_a_terminal_only(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    console.configure()
    console.note("one two three four five six")
    console.warn("one two three /a/path/longer/than/the/line four")
    assert capsys.readouterr().err.splitlines() == [
        "one two three four",
        "five six",
        "warning: one two",
        "         three",
        "         /a/path/longer/than/the/line",
        "         four",
    ]
    monkeypatch.delenv("COLUMNS")
    console.configure()
    console.note("one two three four five six")
    assert capsys.readouterr().err == "one two three four five six\n"


CELL = st.text(st.sampled_from("ab \né漢/"), max_size=30)


@given(rows=st.lists(st.tuples(CELL, CELL, CELL), max_size=4), width=st.integers(1, 100))
def test_every_word_of_a_table_is_whole_in_any_width(rows, width):
    cells = [[tables.Cell(text, whole=i == 0) for i, text in enumerate(row)] for row in rows]
    grid = tables.Grid([tables.Cell(name) for name in ("first", "second one", "third")], cells, [False, False, True])
    lines = [line.plain for line in tables.table(tables.Cell("a title"), grid)(width)]
    assert {word for row in rows for text in row for word in text.split()} <= words(lines)
    if width >= 64:  # nothing here needs more
        assert max(line.cell_len for line in tables.table(tables.Cell(""), grid)(width)) <= width


def test_a_table_that_does_not_fit_puts_its_first_column_above_and_then_every_cell_on_a_line():
    columns = [tables.Cell(name) for name in ("name", "size", "kind")]
    rows = [[tables.Cell("/a/long/path", whole=True), tables.Cell("12", whole=True), tables.Cell("png")]]
    layout = tables.table(tables.Cell(""), tables.Grid(columns, rows, [False, True, False]))
    side_by_side, above, stacked = ([line.plain for line in layout(width)] for width in (24, 23, 11))
    assert side_by_side == ["name          size  kind", "────────────────────────", "/a/long/path    12  png"]
    assert above == ["name", "  size  kind", "────────────", "/a/long/path", "    12  png"]
    assert stacked == ["/a/long/path", "  size  12", "  kind  png"]


def test_a_value_that_does_not_fit_beside_its_name_is_below_it():
    values = [("path", tables.Cell("/a/b c/d", whole=True)), ("kind", tables.Cell("a b c"))]
    lines = [line.plain for line in tables.fields(tables.Cell("title"), values)(9)]
    assert lines == ["title", "path", "  /a/b c/d", "kind  a b", "      c"]


def test_a_written_path_stays_whole():
    assert [line.plain for line in tables.path_and("/a b/c", "a picture")(17)] == ["/a b/c: a picture"]
    assert [line.plain for line in tables.path_and("/a b/c", "a picture")(16)] == ["/a b/c", "  a picture"]
