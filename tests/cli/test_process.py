"""How a command gets on with what surrounds it: signals, streams that are closed or full, no home folder."""

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from killing import until

import avarc_cli
from avarc_cli.cli import main
from avarc_cli.process import stoppable
from avarc_cli.zoo import cards, paths

AVARC = f"{sys.executable} -m avarc_cli"
DIGITS = Path(avarc_cli.__file__).parent / "assets" / "digits" / "test"
ENDING = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def shell(command, **options):
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        (f"{AVARC} models >&-", 1, "cannot print the result"),
        (f"{AVARC} models > /dev/full", 1, "cannot print the result"),
        (f"{AVARC} --json models > /dev/full", 1, "cannot print the result"),
        (f"{AVARC} --help > /dev/full", 1, "No space left"),
        (f"{AVARC} models 2>&-", 0, ""),
        (f"{AVARC} models <&- 2> /dev/full", 0, ""),
        (f"{AVARC} models show nowhere 2> /dev/full", 2, ""),
        (f"{AVARC} models show nowhere <&- >&- 2>&-", 2, ""),
    ],
)
def test_closed_and_full_streams_end_in_an_exit_code_and_at_most_one_message(command, code, error):
    done = shell(command)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("error:") == (1 if error else 0)
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    assert "bug in avarc" not in done.stderr


def test_files_never_get_the_numbers_of_closed_streams(tmp_path):
    out = tmp_path / "file"
    code = (
        "import os; from avarc_cli.process import open_standard_streams; open_standard_streams(); "
        f"print(os.open({str(out)!r}, os.O_CREAT | os.O_WRONLY) > 2, file=open({str(tmp_path / 'answer')!r}, 'w'))"
    )
    shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-')
    assert (tmp_path / "answer").read_text() == "True\n"


@pytest.mark.parametrize("number", list(ENDING))
def test_a_signal_ends_a_command_with_its_own_code_and_one_message(number, monkeypatch, capsys):
    before = signal.getsignal(number)
    monkeypatch.setattr(cards, "model_cards", lambda: os.kill(os.getpid(), number))
    assert main(["models"]) == ENDING[number]
    err = capsys.readouterr().err
    assert err.startswith("error: interrupted\n")
    assert number == signal.SIGINT or f"received {number.name}" in err
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_during_an_import_waits_for_its_end(tmp_path, monkeypatch, number):
    (tmp_path / "slow_module.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.2)\ncomplete = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    handlers = {each: signal.getsignal(each) for each in ENDING}

    def work():
        importlib.import_module("slow_module")
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt), stoppable() as stop:
        work()
    assert sys.modules.pop("slow_module").complete
    assert stop.signal == (None if number == signal.SIGINT else number)
    assert handlers == {each: signal.getsignal(each) for each in ENDING}


def test_an_ignored_signal_stays_ignored_and_a_second_one_does_not_disturb_the_cleaning_up():
    cleaned = []

    def work():
        os.kill(os.getpid(), signal.SIGHUP)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as request, pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert cleaned
    assert request.signal == signal.SIGTERM


def start_encoding(folder, *more, samples=150, **options):
    """Start a long `avarc encode` with two workers, as the leader of its own group; wait for its first chunk."""
    words = ["encode", str(DIGITS), "--samples", str(samples), "--batch-size", "1", "--workers", "2", "--out", "t.h5"]
    words += more
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "avarc_cli", *words],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    while not list(folder.glob("t.h5.parts/*.npz")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return process


def check_end(process, number, folder):
    """The process ends with the signal's code and one message, keeps its chunks, and leaves nothing else."""
    _, err = process.communicate(timeout=300)
    assert process.returncode == ENDING[number], err
    assert err.count("error:") == 1
    assert "are kept in 't.h5.parts'" in err
    assert sorted(path.name for path in folder.iterdir()) == ["t.h5.parts", "tmp"]
    assert not [path for path in folder.rglob("*") if path.suffix in {".tmp", ".lock"}]
    assert not list((folder / "tmp").iterdir())
    with pytest.raises(ProcessLookupError):  # no worker is left
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("number", list(ENDING))
def test_an_encoding_that_is_ended_with_its_group_keeps_its_chunks_and_nothing_else(tmp_path, number):
    process = start_encoding(tmp_path)
    os.killpg(process.pid, number)
    check_end(process, number, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(("number", "kill"), [(signal.SIGTERM, os.killpg), (signal.SIGKILL, os.kill)])
def test_processes_on_devices_end_with_the_encoding_and_say_nothing(tmp_path, number, kill):
    process = start_encoding(tmp_path, "--devices", "cpu:2", samples=50)
    kill(process.pid, number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == ENDING.get(number, -number), err
    assert err.count("error:") == (number in ENDING)
    assert "Traceback" not in err
    assert "Warning" not in err
    wait_for_end(process.pid)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"t.h5.parts", "tmp"} | ({"t.h5.lock"} if number == signal.SIGKILL else set())
    assert not list((tmp_path / "tmp").iterdir())


def wait_for_end(group):
    """Wait until no process of the group is left; those that were killed may still be ending."""
    until(lambda: not members(group))


def members(group):
    """Processes of a group that have not ended. In a container orphans that have ended may stay, as zombies."""
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of, *_ = each.read_text().rpartition(")")[2].split()
            found += [each.parent.name] if int(of) == group and state not in "ZX" else []
    return found


def test_nohup_and_background_jobs_are_not_ended_by_the_signals_that_they_ignore(tmp_path):
    """But by another one, which their workers do not get."""

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start_encoding(tmp_path, preexec_fn=ignore)
    chunks = len(list(tmp_path.glob("t.h5.parts/*.npz")))
    os.killpg(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGINT)
    while len(list(tmp_path.glob("t.h5.parts/*.npz"))) < chunks + 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    check_end(process, signal.SIGTERM, tmp_path)


@pytest.mark.parametrize("variables", [{}, {"AVARC_HOME": "~nobody-at-all/x"}, {"XDG_CONFIG_HOME": "~nobody-at-all"}])
def test_without_a_home_folder_nothing_is_registered_and_nothing_can_be(monkeypatch, capsys, tmp_path, variables):
    for name in ("AVARC_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.chdir(tmp_path)
    assert main(["models"]) == 0
    assert main(["classify", str(next(DIGITS.glob("3/*"))), "--workers", "0"]) == 0
    weights = DIGITS.parent / "vqvae.safetensors"
    assert main(["models", "add", "mine", str(weights)]) == 1
    err = capsys.readouterr().err
    assert str(paths.NO_HOME) in err
    assert "AVARC_HOME" in err
    assert "bug in avarc" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["models", "classify .", "data check .", "sample 3 --out s.png"])
def test_a_deleted_working_folder_is_at_most_one_error(monkeypatch, tmp_path, capsys, command):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(command.split()) in (0, 1, 2)
    err = capsys.readouterr().err
    assert "bug in avarc" not in err
    assert "Traceback" not in err
