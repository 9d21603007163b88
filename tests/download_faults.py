"""Helpers for tests of `avarc download` with a hub, network or disk that fails: one file of a megabyte."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_hub import VAR, Handler, Hub, sha256

from avarc_cli.cli import main

NAME, FILE = "var-vqvae-256", "vae_ch160v4096z32.pth"

Capture = pytest.CaptureFixture[str]


def download(capsys: Capture, *words: object) -> tuple[int, str]:
    """Run `avarc download`: (exit code, stderr), after checking what must hold in every case."""
    code = main(["download", NAME, *map(str, words)])
    err = capsys.readouterr().err
    assert "Traceback" not in err and "bug" not in err, err
    assert code == 0 or ("why:" in err and "fix:" in err), err
    return code, err


def installed(home: Path) -> list[Path]:
    """Every file that could be loaded, after checking that each blob is named by its digest."""
    found = [p for p in home.rglob("*") if p.is_file() and p.suffix == ".pth"]
    blobs = [p for p in home.rglob("blobs/*") if not p.name.endswith(".incomplete")]
    assert all(p.name == sha256(p.read_bytes()) for p in blobs)
    return found + blobs


def partial(home: Path) -> Path | None:
    """The file of an unfinished download."""
    return next(home.rglob("*.incomplete"), None)


def partial_size(home: Path) -> int:
    """Bytes of the unfinished download; 0 without one."""
    path = partial(home)
    return 0 if path is None else path.stat().st_size


def fails(hub: Hub, home: Path, capsys: Capture, *words: str) -> str:
    """The download ends with exit code 1, these words on stderr, and no file in place; returns stderr."""
    code, err = download(capsys)
    assert code == 1, err
    assert all(word in err for word in words), err
    assert not installed(home)
    return err


def works(hub: Hub, home: Path, capsys: Capture) -> str:
    """The download succeeds, with the right file in place and nothing unfinished; returns stderr."""
    code, err = download(capsys)
    assert code == 0, err
    assert {sha256(p.read_bytes()) for p in installed(home)} == {sha256(hub.files[VAR, FILE])}
    assert partial(home) is None
    return err


def cut(hub: Hub, times: int, at: int = 300_000) -> None:
    """Close the connection after `at` bytes of each of the first `times` answers."""
    left = [times]

    @hub.rule
    def breaks(request: Handler) -> bool:
        if not request.is_blob or not left[0]:
            return False
        left[0] -= 1
        content = hub.files[VAR, FILE]
        begin = int((request.headers.get("Range") or "bytes=0-")[6:-1])
        rest = content[begin:]
        headers = {"Content-Length": str(len(rest))}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return request.reply(206 if begin else 200, headers, send=rest[:at])
