"""Bytes from the hub into a file, across cut connections and killed processes.

huggingface_hub's own download deletes an unfinished file when it fails, so a rerun would begin again. This one keeps
it, asks for the rest (Range), and believes nothing about the answer that it has not checked.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not listed

from avarc_cli.errors import AvarcError, Interrupted
from avarc_cli.progress import Progress
from avarc_cli.zoo import hub


def fetch(remote: hub.Remote, partial: Path, progress: Progress, say: hub.Say) -> None:
    """Make `partial` as long as the file is, keeping what it holds. Whether that is right, the caller must check.

    Raises: AvarcError when the hub refuses, or fails too often in a row; when the disk is full. Interrupted.
        In every case `partial` is left for the next attempt.
    """
    try:
        _persist(remote, partial, progress, say)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: {_size(partial) / 1e6:,.0f} MB of {remote.file.filename} are here",
            fix="run the same command again: it goes on from there",
        ) from None


def _persist(remote: hub.Remote, partial: Path, progress: Progress, say: hub.Say) -> None:
    """Request until all is here; failures count only while no new byte comes."""
    most, failures = _size(partial), 0
    while True:
        try:
            return _request(remote, partial, progress)
        except AvarcError:
            raise
        except Exception as problem:  # noqa: BLE001  # whatever the hub's client raises on what a server may send
            if _size(partial) > most:
                most, failures = _size(partial), 0
            seconds = hub.pause(problem, failures)
            if seconds is None or failures == hub.RETRIES:
                raise hub.told(problem, remote.file) from None
            failures += 1
            hub.wait(seconds, problem, say)


def _request(remote: hub.Remote, partial: Path, progress: Progress) -> None:
    """One request for what is missing. Raises hub.BadAnswer, hub.Refused, or what the client raises."""
    here = _size(partial)
    if remote.size is not None and here > remote.size:
        partial.unlink()
        here = 0
    if here == remote.size:
        return
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # compressed, lengths and ranges mean nothing
    if here:
        headers["Range"] = f"bytes={here}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", remote.url, headers=headers, timeout=timeout) as response:
        if response.status_code == 416:  # what is here is not a beginning of what it has
            partial.unlink(missing_ok=True)
            raise hub.BadAnswer(f"it has no bytes from {here:,} on")
        if response.status_code >= 400:
            raise hub.Refused(response.status_code, response.headers)
        start, size = _extent(response.status_code, response.headers, here, remote.size)
        _write(response.iter_bytes(), partial, start, size, progress)
    if _size(partial) != size:
        raise hub.BadAnswer(f"the answer ended after {_size(partial):,} of {size:,} bytes")


def _extent(status: int, headers: Mapping[str, str], here: int, size: int | None) -> tuple[int, int]:
    """Where in the file the answer begins, and how long the file is.

    Args:
        here: where it was asked to begin; a server may ignore that, and begin at 0.
        size: what the hub said before; None where it said nothing.
    """
    if "html" in headers.get("content-type", ""):
        raise hub.BadAnswer("it answers with a web page, perhaps of a proxy or a log-in, instead of the file")
    start, length = 0, _length(headers)
    if status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("content-range", "").strip())
        start, length = (int(span[1]), int(span[2])) if span else (-1, -1)
    elif status != 200:
        raise hub.BadAnswer(f"it answers with status {status}")
    if start not in (0, here):
        raise hub.BadAnswer(f"asked for the bytes from {here:,}, it answers with {headers.get('content-range')!r}")
    if size is not None and length is not None and length != size:
        raise hub.BadAnswer(f"it sends {length:,} bytes, though the file has {size:,}")
    known = size if size is not None else length
    if known is None:
        raise hub.BadAnswer("it does not say how long the file is")
    return start, known


def _write(chunks: Any, partial: Path, start: int, size: int, progress: Progress) -> None:
    """Append, or begin again where the answer does; never more than `size` bytes."""
    try:
        file = partial.open("ab" if start else "wb")
    except OSError as problem:
        raise disk_trouble(partial, problem) from None
    done = told = start
    progress(done, size)
    with file:
        for chunk in chunks:
            wanted = chunk[: size - done]
            try:
                file.write(wanted)
                file.flush()
            except OSError as problem:
                raise disk_trouble(partial, problem) from None
            done += len(wanted)
            if done == size or done - told > size // 1000:  # a thousand steps are enough for any bar
                progress(done, size)
                told = done
            if done == size:
                return


def disk_trouble(path: Path, problem: OSError) -> AvarcError:
    """A file that cannot be written, as what happened, why, and what to do."""
    if problem.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return AvarcError(
            f"there is no space left for {path.name}",
            f"{problem.strerror}; {_size(path) / 1e6:,.0f} MB of it are in {path.parent}",
            "free some space and run it again, it goes on from there; or move the cache (HF_HOME), or use --dir",
        )
    return AvarcError(
        f"cannot write {path}", problem.strerror or str(problem), "check the folder's permissions, or use --dir"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _length(headers: Mapping[str, str]) -> int | None:
    """What Content-Length says about the file: nothing, where the content is compressed all the same."""
    text = headers.get("content-length", "")
    return int(text) if text.isdecimal() and headers.get("content-encoding", "identity") == "identity" else None
