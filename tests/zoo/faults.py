"""Helpers for tests of failing hubs, networks and disks, which run the command for one file of a megabyte."""

from zoo.conftest import VAR, sha256

from avarc_cli.cli import main

NAME, FILE = "var-vqvae-256", "vae_ch160v4096z32.pth"


def download(capsys, *words):
    """Run the command: (exit code, stderr). Checks that errors are complete."""
    code = main(["download", NAME, *map(str, words)])
    err = capsys.readouterr().err
    assert "Traceback" not in err and "bug" not in err, err
    assert code == 0 or ("why:" in err and "fix:" in err), err
    return code, err


def installed(home):
    """Every file that might be loaded. Checks that the name of a blob is its sha256."""
    found = [p for p in home.rglob("*") if p.is_file() and p.suffix == ".pth"]
    blobs = [p for p in home.rglob("blobs/*") if not p.name.endswith(".incomplete")]
    assert all(p.name == sha256(p.read_bytes()) for p in blobs)
    return found + blobs


def partial(home):
    return next(home.rglob("*.incomplete"), None)


def fails(hub, home, capsys, *words):
    code, err = download(capsys)
    assert code == 1, err
    assert all(word in err for word in words), err
    assert not installed(home)
    return err


def works(hub, home, capsys):
    code, err = download(capsys)
    assert code == 0, err
    assert {sha256(p.read_bytes()) for p in installed(home)} == {sha256(hub.files[VAR, FILE])}
    assert partial(home) is None
    return err


def cut(hub, times, at=300_000):
    """Let the connection break after `at` bytes, the first `times` times."""
    left = [times]

    @hub.rule
    def breaks(request):
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
