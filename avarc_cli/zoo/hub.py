"""Looks up files on the Hugging Face hub and on web servers, and turns refusals into errors with a fix.

huggingface_hub does the communication: its endpoint and mirrors (HF_ENDPOINT), tokens (HF_TOKEN, `hf auth login`),
proxies and offline mode apply. Web servers have no tokens, and a mirror of their own (AVARC_MIRROR).
"""

from __future__ import annotations

import datetime
import email.utils
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfFileMetadata, constants, get_hf_file_metadata, get_session, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not listed

from avarc_cli.errors import AvarcError, first_line
from avarc_cli.progress import Notify
from avarc_cli.zoo import paths
from avarc_cli.zoo.card import Downloadable, HubFile, WebFile
from avarc_cli.zoo.digests import is_digest

MAX_RETRIES = 4  # in a row without receiving a new byte
BACKOFF = (1.0, 2.0, 4.0, 8.0)  # seconds before each retry, unless the hub says how long to wait
MAX_DELAY = 300.0  # seconds; the hub limits the number of requests per five minutes
MAX_REASON = 300  # characters of a client's message

_TRANSIENT = {
    408: "the request timed out",
    429: "too many requests",
    500: "the server has an internal error",
    502: "the server is not available behind its gateway",
    503: "the server is not available",
    504: "the server is not available behind its gateway",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_HEAD = {403, 405, 501}  # of servers that answer GET requests only

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub, or on a web server."""

    file: Downloadable  # with the requested revision
    commit: str  # that the revision refers to; "" for a file on a web server
    digest: str | None  # of the content (`digests`): its sha256, or git's own of a small file; None if unknown
    size: int | None  # bytes; None if only the download will tell

    @property
    def url(self) -> str:
        """Of this commit, so that a retry gets the same content."""
        if isinstance(self.file, WebFile):
            return web_url(self.file)
        return hf_hub_url(self.file.repo, self.file.filename, revision=self.commit)

    @property
    def headers(self) -> dict[str, str]:
        """Of requests. Only the hub gets the user's token."""
        headers: dict[str, str] = build_hf_headers(token=None if isinstance(self.file, HubFile) else False)
        return {**headers, "Accept-Encoding": "identity"}  # lengths and ranges must refer to plain bytes


class Unreachable(AvarcError):
    """There is no connection, what answers is not a hub, or the hub has another file. One in the cache will do."""


class ErrorStatus(Exception):
    """The hub answered with an HTTP error status."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers
        super().__init__(f"status {status}")


class InvalidResponse(Exception):
    """The hub's response contradicts itself or what was requested."""


def look_up(file: HubFile, notify: Notify) -> RemoteFile:
    """Ask the hub for the commit, size and digest of a file.

    Args:
        file: its revision may be a branch, a tag or a commit; None is `main`.
        notify: called before waiting for a retry.
    Raises: AvarcError as `to_avarc_error`; Unreachable if there is no hub.
    """
    url = hf_hub_url(file.repo, file.filename, revision=file.revision)
    found = _with_retries(lambda: _metadata(url), file, notify)
    commit, etag = found.commit_hash or "", (found.etag or "").lower()
    if not is_commit(commit):
        raise Unreachable(
            f"{constants.ENDPOINT} does not respond like a Hugging Face hub",
            "its response contains no commit; it may come from a proxy, a login page or another kind of mirror",
            "check the connection, proxy and HF_ENDPOINT",
        )
    digest = file.sha256 or etag
    if not is_digest(digest):
        raise AvarcError(
            f"{file.filename} of {file.repo} cannot be verified",
            f"{constants.ENDPOINT} provides no sha256 for it, only '{etag}'",
            "use another HF_ENDPOINT; or get the file in another way and use its path",
        )
    if len(etag) == len(digest) and etag != digest:  # of the same kind
        raise Unreachable(
            f"{file.filename} of {file.repo} is not the file that avarc knows",
            f"its sha256 is {etag}, expected is {digest}: it may have been replaced since",
            "see whether there is a newer avarc; or get the file in another way and use its path",
        )
    return RemoteFile(file, commit, digest, found.size if found.size and found.size > 0 else None)


def look_up_web(file: WebFile, notify: Notify) -> RemoteFile:
    """Ask a web server for the size of a file. Arguments, Raises: as `look_up`."""
    remote = RemoteFile(file, "", file.sha256, None)

    def ask() -> int | None:
        response = get_session().head(
            remote.url, headers=remote.headers, timeout=constants.HF_HUB_ETAG_TIMEOUT, follow_redirects=True
        )
        if response.status_code in _NO_HEAD:
            return None
        if response.status_code >= 400:
            raise ErrorStatus(response.status_code, response.headers)
        text = response.headers.get("content-length", "")
        return int(text) if text.isdecimal() and int(text) > 0 else None

    return RemoteFile(file, "", file.sha256, _with_retries(ask, file, notify))


def _with_retries(ask: Callable[[], _Found], file: Downloadable, notify: Notify) -> _Found:
    """What `ask` returns, asked again where the server's status says that it may help. Raises: as `to_avarc_error`."""
    failures = 0
    while True:
        try:
            return ask()
        except ErrorStatus as status:
            delay = retry_delay(status, failures)
            if delay is None or failures == MAX_RETRIES:
                raise to_avarc_error(status, file) from None
            failures += 1
            wait(delay, status, file, notify)
        except Exception as problem:  # noqa: BLE001  # the client may raise anything on an invalid response
            raise to_avarc_error(problem, file) from None


def _metadata(url: str) -> HfFileMetadata:
    try:
        return get_hf_file_metadata(url)
    except HfHubHTTPError as problem:
        raise ErrorStatus(problem.response.status_code, problem.response.headers) from None


def web_url(file: WebFile) -> str:
    """Where a file of a web server is read: at its own address, or in the folder that AVARC_MIRROR names."""
    mirror = os.environ.get("AVARC_MIRROR")
    return f"{mirror.rstrip('/')}/{file.filename}" if mirror else file.url


def server(file: Downloadable) -> str:
    """The address that messages name."""
    if isinstance(file, HubFile):
        return constants.ENDPOINT
    url = web_url(file)
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else url


def mirror_variable(file: Downloadable) -> str:
    """The environment variable that names another server."""
    return "HF_ENDPOINT" if isinstance(file, HubFile) else "AVARC_MIRROR"


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a full commit hash, which always refers to the same content."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def retry_delay(problem: Exception, failures: int) -> float | None:
    """Seconds to wait before the next attempt; None if a retry is useless, or the wait would be too long."""
    backoff = BACKOFF[min(failures, len(BACKOFF) - 1)]
    if isinstance(problem, OfflineModeIsEnabled):
        return None
    if not isinstance(problem, ErrorStatus):
        return backoff
    if problem.status not in _TRANSIENT:
        return None
    requested = requested_delay(problem.headers)
    if requested is None:
        return backoff
    return requested if requested <= MAX_DELAY else None


def wait(seconds: float, problem: Exception, file: Downloadable, notify: Notify) -> None:
    """Sleep, after notifying the user of the reason."""
    why = _TRANSIENT.get(problem.status, str(problem)) if isinstance(problem, ErrorStatus) else _reason(problem)
    notify(f"{server(file)}: {why}; trying again in {seconds:.0f} s")
    time.sleep(seconds)


def requested_delay(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: Retry-After (a number or a date), else the hub's own RateLimit header."""
    retry_after = headers.get("retry-after", "").strip()
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        until = email.utils.parsedate_to_datetime(retry_after)
        return max(0.0, (until - datetime.datetime.now(until.tzinfo)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        pass
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return float(limit[1]) if limit else None


def to_avarc_error(problem: Exception, file: Downloadable) -> AvarcError:
    """The error to show for any failure to look up or download a file."""
    what = f"cannot download {file.filename} of {file.repo}"
    if isinstance(problem, AvarcError):
        return problem
    if isinstance(problem, ErrorStatus):
        return _status_error(what, problem, file)
    if isinstance(problem, OfflineModeIsEnabled):
        return AvarcError(what, "HF_HUB_OFFLINE is set", "unset it, or copy the file from a machine that has it")
    if isinstance(problem, InvalidResponse):
        fix = f"try again later, or use another {mirror_variable(file)}"
        return AvarcError(what, f"{server(file)}: {problem}", fix)
    return Unreachable(
        f"{what}: there is no connection to {server(file)}",
        _reason(problem),
        f"check the network, proxy and {mirror_variable(file)}; "
        "the downloaded part is kept, and the next run continues from there",
    )


def _status_error(what: str, problem: ErrorStatus, file: Downloadable) -> AvarcError:
    status = problem.status
    if status in _TRANSIENT:
        why = f"{_TRANSIENT[status]} (status {status})"
        delay = requested_delay(problem.headers)
        if delay is not None:
            return AvarcError(what, f"{why}; it asks to wait {delay:,.0f} s", f"run it again in {delay / 60:,.0f} min")
        return AvarcError(what, why, "run it again later; the downloaded part is kept")
    if isinstance(file, WebFile):
        fix = f"get it from elsewhere and put it into {paths.torch_folder()}, or set AVARC_MIRROR"
        return AvarcError(what, f"{server(file)} responds with status {status}", fix)
    return _refusal(what, problem, file)


def _refusal(what: str, problem: ErrorStatus, file: HubFile) -> AvarcError:
    """The error for a status of the hub that will not change by itself."""
    status, code = problem.status, problem.headers.get("x-error-code", "")
    message = problem.headers.get("x-error-message", "")
    page = f"{constants.ENDPOINT}/{file.repo}"
    log_in = "set HF_TOKEN, or run `hf auth login`"
    if "Invalid credentials" in message:
        fix = f"create one in the settings of your account, and {log_in}"
        return AvarcError(what, "the hub does not recognize your token", fix)
    if code == "GatedRepo" or (status == 403 and not code):
        is_gated = "is gated" if code else "may be gated"
        why = f"{file.repo} {is_gated}: its owner must grant access (status {status})"
        also = "; your token must belong to that account" if get_token() else f"; then {log_in}"
        return AvarcError(what, why, f"ask for access at {page}{also}")
    if code == "RevisionNotFound":
        why = f"{file.repo} has no revision '{file.revision or constants.DEFAULT_REVISION}'"
        return AvarcError(what, why, f"see {page}/commits/main, or omit --revision")
    if code == "EntryNotFound":
        at = f" at revision {file.revision}" if file.revision else ""
        return AvarcError(what, f"there is no such file{at}; it may have been renamed", f"see {page}/tree/main")
    if status == 401 or code == "RepoNotFound":
        why = f"{file.repo} does not exist, or is private or gated (status {status})"
        return AvarcError(what, why, f"see {page}; if you have access, {log_in}")
    return AvarcError(what, f"the hub responds with status {status}{': ' + message if message else ''}", f"see {page}")


def _reason(problem: Exception) -> str:
    """The first line of a client's message, which may be long."""
    return first_line(problem)[:MAX_REASON]
