"""Downloads the bytes of a file from its server, and resumes after cut connections and killed processes.

huggingface_hub's own download deletes an unfinished file when it fails, so the next run would start over. This one
keeps the file, requests only the rest (Range), and checks every response before it writes anything.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session

from avarc_cli.errors import AvarcError, Interrupted
from avarc_cli.progress import Notify, Progress
from avarc_cli.zoo import hub

REPORTS = 1000  # of progress per file, at most


def fetch(remote: hub.RemoteFile, partial: Path, progress: Progress, notify: Notify) -> None:
    """Download the missing bytes of a file. The caller must verify the content.

    Args:
        partial: may contain the beginning of the file already. In case of an error it is kept for the next attempt.
        notify: called before waiting for a retry.
    Raises: AvarcError if the hub refuses, fails too often in a row, or the disk is full; Interrupted.
    """
    try:
        _fetch_with_retries(remote, partial, progress, notify)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: {_size(partial) / 1e6:,.0f} MB of {remote.file.filename} are downloaded",
            fix="run the same command again: it continues from there",
        ) from None


def _fetch_with_retries(remote: hub.RemoteFile, partial: Path, progress: Progress, notify: Notify) -> None:
    """Send requests until the file is complete. Failures are counted only while no new byte arrives."""
    most, failures = _size(partial), 0
    while True:
        try:
            return _request(remote, partial, progress)
        except AvarcError:
            raise
        except Exception as problem:  # noqa: BLE001  # the client may raise anything on an invalid response
            if _size(partial) > most:
                most, failures = _size(partial), 0
            delay = hub.retry_delay(problem, failures)
            if delay is None or failures == hub.MAX_RETRIES:
                raise hub.to_avarc_error(problem, remote.file) from None
            failures += 1
            hub.wait(delay, problem, remote.file, notify)


def _request(remote: hub.RemoteFile, partial: Path, progress: Progress) -> None:
    """Send one request for the missing bytes. Raises: InvalidResponse, ErrorStatus, and what the client raises."""
    done = _size(partial)
    if remote.size is not None and done > remote.size:
        partial.unlink()
        done = 0
    if done == remote.size:
        return
    headers = remote.headers
    if done:
        headers["Range"] = f"bytes={done}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", remote.url, headers=headers, timeout=timeout) as response:
        if response.status_code == 416:  # range not satisfiable: the partial file is not a beginning of this file
            partial.unlink(missing_ok=True)
            raise hub.InvalidResponse(f"it has no bytes from {done:,} on")
        if response.status_code >= 400:
            raise hub.ErrorStatus(response.status_code, response.headers)
        start, size = _check_response(response.status_code, response.headers, done, remote.size)
        _write(response.iter_bytes(), partial, start, size, progress)
    if _size(partial) != size:
        raise hub.InvalidResponse(f"the response ended after {_size(partial):,} of {size:,} bytes")


def _check_response(status: int, headers: Mapping[str, str], requested: int, size: int | None) -> tuple[int, int]:
    """Check that the response contains the requested part of the file.

    Args:
        requested: first byte that was requested; a server may ignore it and begin at 0.
        size: of the file, as the hub said before; None if it did not.
    Returns: first byte of the response, and size of the file.
    Raises: InvalidResponse.
    """
    if "html" in headers.get("content-type", ""):
        raise hub.InvalidResponse("it returned a web page instead of the file, perhaps from a proxy or a login")
    start, length = 0, _content_length(headers)
    if status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("content-range", "").strip())
        start, length = (int(span[1]), int(span[2])) if span else (-1, -1)
    elif status != 200:
        raise hub.InvalidResponse(f"it responded with status {status}")
    if start not in (0, requested):
        found = headers.get("content-range")
        raise hub.InvalidResponse(f"the bytes from {requested:,} on were requested, it returned {found!r}")
    if size is not None and length is not None and length != size:
        raise hub.InvalidResponse(f"it sends {length:,} bytes, but the file has {size:,}")
    known = size if size is not None else length
    if known is None:
        raise hub.InvalidResponse("it does not say how long the file is")
    return start, known


def _write(chunks: Any, partial: Path, start: int, size: int, progress: Progress) -> None:
    """Append the chunks, or overwrite the file if they begin at 0; never write more than `size` bytes in all."""
    try:
        file = partial.open("ab" if start else "wb")
    except OSError as problem:
        raise disk_error(partial, problem) from None
    done = reported = start
    progress(done, size)
    with file:
        for chunk in chunks:
            wanted = chunk[: size - done]
            try:
                file.write(wanted)
                file.flush()
            except OSError as problem:
                raise disk_error(partial, problem) from None
            done += len(wanted)
            if done == size or done - reported > size // REPORTS:
                progress(done, size)
                reported = done
            if done == size:
                return


def disk_error(path: Path, problem: OSError) -> AvarcError:
    """The error to show for a file that cannot be written."""
    if problem.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return AvarcError(
            f"there is no space left for {path.name}",
            f"{problem.strerror}; {_size(path) / 1e6:,.0f} MB of it are in {path.parent}",
            "free some space and run it again, it continues from there; or move the cache (HF_HOME), or use --dir",
        )
    return AvarcError(
        f"cannot write {path}", problem.strerror or str(problem), "check the permissions of the folder, or use --dir"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _content_length(headers: Mapping[str, str]) -> int | None:
    """Size of the file according to Content-Length; None if it is missing, or counts compressed bytes."""
    text = headers.get("content-length", "")
    return int(text) if text.isdecimal() and headers.get("content-encoding", "identity") == "identity" else None
