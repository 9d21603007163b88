"""The printer: what goes where in each mode, and that user text is never obeyed."""

import dataclasses
import json
import math
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from avarc_cli import console
from avarc_cli.console import Mode


@pytest.fixture(autouse=True)
def _human_again():
    console.configure(mode=Mode.HUMAN, debug=False, progress="")
    yield
    console.configure(mode=Mode.HUMAN, debug=False, progress="")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("mode", "shown"), [(Mode.HUMAN, "for [b]people[/b]\n"), (Mode.JSON, '{\n  "a": 1\n}\n'), (Mode.QUIET, "a1\n")]
)
def test_a_result_goes_to_stdout_in_the_requested_mode(capsys, mode, shown):
    console.configure(mode=mode)
    console.result({"a": 1}, "for [b]people[/b]", brief="a1")
    assert capsys.readouterr() == (shown, "")


def test_notes_are_left_out_when_quiet_and_warnings_are_not(capsys):
    console.note("by the way")
    console.warn("careful")
    console.configure(mode=Mode.QUIET)
    console.note("by the way")
    console.warn("careful")
    assert capsys.readouterr() == ("", "by the way\nwarning: careful\nwarning: careful\n")


def test_json_converts_the_types_of_results(capsys):
    @dataclasses.dataclass
    class Score:
        value: float
        where: Path

    class Kind(Enum):
        EXACT = "exact"

    console.configure(mode=Mode.JSON)
    data = {
        "s": Score(math.nan, Path("a/b")),
        "k": Kind.EXACT,
        "n": np.float32(0.5),
        "a": np.arange(2),
        3: (True, None),
    }
    console.result(data)
    assert json.loads(capsys.readouterr().out) == {
        "s": {"value": None, "where": "a/b"},
        "k": "exact",
        "n": 0.5,
        "a": [0, 1],
        "3": [True, None],
    }


def test_control_characters_and_broken_names_are_escaped(capsys):
    console.note("a\x1b[31mb\udcffc")
    assert capsys.readouterr().err == "a\\x1b[31mb\\udcffc\n"


def test_long_lines_are_not_wrapped(capsys):
    console.warn("x " * 200)
    assert capsys.readouterr().err.count("\n") == 1


def test_table_cells_are_not_markup_and_numbers_are_right_aligned(capsys):
    console.result({}, console.table("T", ["name", "n"], [["[red]a[/red]", 5], ["b", 1000], ["c", None]]))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[3] == "[red]a[/red]     5"
    assert lines[4] == "b             1000"
    assert lines[5] == "c"


def test_a_table_in_a_pipe_is_as_wide_as_its_cells(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    console.configure()
    console.result({}, console.table("T", ["a", "b"], [["x" * 60, "y" * 60]]))
    assert f"{'x' * 60}  {'y' * 60}" in capsys.readouterr().out


def test_fields_and_stack_are_printed_line_by_line(capsys):
    console.result({}, console.stack(console.fields("T", {"a": 1}), "[end]"))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == ["T", "a  1", "", "[end]"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (11400, "3 h 10 min"),
    ],
)
def test_durations_are_written_in_words(seconds, words):
    assert console.duration(seconds) == words


def test_progress_in_a_log_is_an_occasional_line(capsys):
    clock = Clock()
    with console.progress("encoding [b]", 1000, clock=clock) as bar:
        bar.update(400)  # a resumed run: what was done before is not speed
        for done in range(401, 501):
            clock.now += 0.25
            bar.update(done, note="accuracy 98 %")
    assert capsys.readouterr().err.splitlines() == [
        "encoding [b]: 440 of 1000 images, 4.0 images/s, 2 min 20 s left, accuracy 98 %",
        "encoding [b]: 480 of 1000 images, 4.0 images/s, 2 min 10 s left, accuracy 98 %",
        "encoding [b]: 500 images in 25.0 s, accuracy 98 %",
    ]


def test_progress_accepts_a_late_total_and_shows_slow_work_in_seconds_per_item(capsys):
    clock = Clock()
    with console.progress("scoring", None, unit="image", clock=clock) as bar:
        for done in range(4):
            bar.update(done, 3)
            clock.now += 20
    assert "scoring: 2 of 3 images, 20.0 s per image, 20.0 s left" in capsys.readouterr().err


def test_progress_for_schedulers_is_json_at_most_every_ten_seconds_and_at_the_end(capsys, monkeypatch):
    clock = Clock()
    console.configure(progress="json")
    with console.progress("scoring é", 1000, clock=clock) as bar:
        bar.update(400)
        for done in range(401, 501):
            clock.now += 0.25
            bar.update(done, note="accuracy 98 %", numbers={"accuracy": 0.98})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    same = {"task": "scoring é", "unit": "image", "total": 1000, "rate": 4.0, "accuracy": 0.98}
    assert lines == [
        same | {"done": done, "remaining_seconds": left} for done, left in ((440, 140), (480, 130), (500, 125))
    ]


def test_progress_is_silent_when_quiet_and_after_an_error(capsys):
    def fail():
        with console.progress("encoding", 10) as bar:
            bar.update(1)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  # our own
        fail()
    console.configure(mode=Mode.QUIET)
    with console.progress("encoding", 10) as bar:
        bar.update(10)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_live_bar_with_warnings_above_it(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    console.configure()
    with console.progress("encoding", 4, clock=Clock()) as bar:
        bar.update(2, note="accuracy [50] %")
        console.warn("one file could not be read")
        bar.update(4)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b[" in err
    assert "4/4" in err
    assert "accuracy [50] %" in err


def test_no_color_is_respected(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.configure()
    console.warn("careful")
    monkeypatch.setenv("NO_COLOR", "1")
    console.configure()
    console.warn("careful")
    colored, plain = capsys.readouterr().err.splitlines()
    assert "33m" in colored
    assert "33m" not in plain
