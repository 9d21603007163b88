"""main(): every way a command can end becomes an exit code and one message."""

import subprocess
import sys

import pytest
import torch

from avarc_cli import __version__
from avarc_cli.cli import main
from avarc_cli.errors import AvarcError, UnreadableImage, UsageError
from avarc_cli.zoo import cards


@pytest.fixture
def failing(monkeypatch):
    """`avarc models`, made to raise whatever is wanted."""

    def set_up(error):
        def fail():
            raise error

        monkeypatch.setattr(cards, "model_cards", fail)

    return set_up


@pytest.mark.parametrize(("kind", "code"), [(AvarcError, 1), (UsageError, 2), (UnreadableImage, 3)])
def test_an_avarc_error_is_shown_in_three_lines_and_sets_the_exit_code(failing, capsys, kind, code):
    failing(kind("it [red]failed[/red]", "because\nof this", "do that"))
    assert main(["models"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: it [red]failed[/red]\n  why: because\n       of this\n  fix: do that\n"


def test_an_unexpected_exception_is_called_our_bug(failing, capsys):
    failing(ZeroDivisionError("division by zero"))
    assert main(["models"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "error: this is a bug in avarc: ZeroDivisionError: division by zero\n  why: raised in test_main"
    )
    assert "--debug" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    ],
)
def test_lack_of_memory_is_no_bug_and_the_message_says_what_to_lower(failing, capsys, error):
    failing(error)
    assert main(["models"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: not enough memory\n") and "--batch-size" in message and str(error) in message


@pytest.mark.parametrize("asked", ["option", "environment"])
def test_debug_shows_the_traceback_above_the_message(failing, capsys, monkeypatch, asked):
    failing(ZeroDivisionError("division by zero"))
    if asked == "environment":
        monkeypatch.setenv("AVARC_DEBUG", "1")
    assert main(["--debug", "models"] if asked == "option" else ["models"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.index("raise error") < err.index("error: this is a bug")


def test_an_operating_system_error_is_not_called_a_bug(failing, capsys):
    failing(OSError(28, "No space left on device", "/data/t.h5"))
    assert main(["models"]) == 1
    assert capsys.readouterr().err.startswith("error: No space left on device: /data/t.h5\n")


def test_an_interrupt_ends_with_130_and_a_short_message(failing, capsys):
    failing(KeyboardInterrupt())
    assert main(["models"]) == 130
    assert capsys.readouterr().err.startswith("error: interrupted\n")


@pytest.mark.parametrize("words", [["models", "--no-such-option"], ["no-such-command"], ["doctor", "a"]])
def test_wrong_usage_ends_with_2_on_stderr(capsys, words):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: avarc" in err


def test_a_closed_pipe_prints_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "avarc_cli", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"avarc {__version__}\n"
