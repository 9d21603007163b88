"""Full disks, Ctrl-C, kills and other processes: what is here is kept, and nothing wrong is ever in place."""

import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from download_faults import FILE, NAME, download, fails, installed, partial, works
from fake_hub import VAR
from killing import until
from programs import run

pytestmark = pytest.mark.usefixtures("megabyte")


# ---- the disk


def test_free_space_is_checked_before_the_first_byte(hub, home, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    fails(hub, home, capsys, "not enough space", "HF_HOME")
    assert not hub.seen("GET")


def test_a_full_disk_is_reported_and_the_rerun_resumes(hub, home, capsys):
    """RLIMIT_FSIZE stands in for the full disk: writes beyond it fail in the same place."""
    done = run("small_disk", 500_000, "download", NAME, env=environment(hub, home))
    assert done.returncode == 1 and "no space left" in done.stderr and "continues from there" in done.stderr, (
        done.stderr
    )
    assert 0 < partial(home).stat().st_size <= 500_000
    assert not installed(home)
    works(hub, home, capsys)


def test_an_unwritable_cache_is_reported(hub, home, capsys):
    (home / "hub").write_text("a file where the folder should be")
    code, err = download(capsys)
    assert code == 1 and "cannot write" in err


# ---- the user, and other processes


def environment(hub, home):
    return os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": "0",
        "AVARC_HOME": str(home / "avarc"),
    }


@pytest.fixture
def half(hub):
    """The first half of the content comes at once, the rest never; the connection stays open until the test ends."""
    finished = threading.Event()

    @hub.rule
    def waits(request):
        if not request.is_blob or "Range" in request.headers:
            return False
        content = hub.files[VAR, FILE]
        request.reply(200, {"Content-Length": str(len(content))}, send=content[: len(content) // 2])
        request.wfile.flush()
        finished.wait(300)
        return True

    yield
    finished.set()


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_an_interrupted_or_killed_download_resumes(hub, home, half, capsys, how, code):
    process = subprocess.Popen(
        [sys.executable, "-m", "avarc_cli", "download", NAME],
        env=environment(hub, home),
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: partial(home) is not None and partial(home).stat().st_size >= 1 << 19)
    process.send_signal(how)
    err = process.communicate(timeout=300)[1]
    assert process.returncode == code, err
    assert "Traceback" not in err
    if how != signal.SIGKILL:
        assert "interrupted" in err and "continues from there" in err
    assert not installed(home)
    works(hub, home, capsys)
    assert hub.seen("GET")[-1].headers["Range"] == f"bytes={1 << 19}-"


def test_two_processes_fetch_a_file_once(hub, home):
    words = [sys.executable, "-m", "avarc_cli", "download", NAME]
    started = [subprocess.Popen(words, env=environment(hub, home), stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=300) and process.returncode for process in started] == [0, 0]
    assert len([r for r in hub.seen("GET") if r.path.startswith("/cdn/")]) == 1
    assert len(installed(home)) == 2, "a blob, and the name that leads to it"
