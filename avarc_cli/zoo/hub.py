"""Looks up files on the Hugging Face hub, and turns its refusals into errors with a fix.

huggingface_hub does the communication: its endpoint and mirrors (HF_ENDPOINT), tokens (HF_TOKEN, `hf auth login`),
proxies and offline mode apply.
"""

from __future__ import annotations

import datetime
import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from avarc_cli.errors import AvarcError, first_line
from avarc_cli.progress import Notify
from avarc_cli.zoo.card import HubFile
from avarc_cli.zoo.digests import is_digest

MAX_RETRIES = 4  # in a row without receiving a new byte
BACKOFF = (1.0, 2.0, 4.0, 8.0)  # seconds before each retry, unless the hub says how long to wait
MAX_DELAY = 300.0  # seconds; the hub limits the number of requests per five minutes
MAX_REASON = 300  # characters of a client's message

_TRANSIENT = {
    408: "the request timed out",
    429: "too many requests",
    500: "the hub has an internal error",
    502: "the hub is not available behind its gateway",
    503: "the hub is not available",
    504: "the hub is not available behind its gateway",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub."""

    file: HubFile  # with the requested revision
    commit: str  # that the revision refers to
    digest: str  # of the content (`digests`): its sha256, or git's own of a small file
    size: int | None  # bytes; None if only the download will tell

    @property
    def url(self) -> str:
        """Of this commit, so that a retry gets the same content."""
        return hf_hub_url(self.file.repo, self.file.filename, revision=self.commit)


class Unreachable(AvarcError):
    """There is no connection, or what answers is not a hub."""


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
    for attempt in range(MAX_RETRIES + 1):
        try:
            found = get_hf_file_metadata(url)
            break
        except HfHubHTTPError as problem:
            status = ErrorStatus(problem.response.status_code, problem.response.headers)
            delay = retry_delay(status, attempt)
            if delay is None or attempt == MAX_RETRIES:
                raise to_avarc_error(status, file) from None
            wait(delay, status, notify)
        except Exception as problem:  # noqa: BLE001  # the client may raise anything on an invalid response
            raise to_avarc_error(problem, file) from None
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
    return RemoteFile(file, commit, digest, found.size if found.size and found.size > 0 else None)


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


def wait(seconds: float, problem: Exception, notify: Notify) -> None:
    """Sleep, after notifying the user of the reason."""
    why = _TRANSIENT.get(problem.status, str(problem)) if isinstance(problem, ErrorStatus) else _reason(problem)
    notify(f"{constants.ENDPOINT}: {why}; trying again in {seconds:.0f} s")
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


def to_avarc_error(problem: Exception, file: HubFile) -> AvarcError:
    """The error to show for any failure to look up or download a file."""
    what = f"cannot download {file.filename} of {file.repo}"
    if isinstance(problem, AvarcError):
        return problem
    if isinstance(problem, ErrorStatus):
        return _status_error(what, problem, file)
    if isinstance(problem, OfflineModeIsEnabled):
        return AvarcError(what, "HF_HUB_OFFLINE is set", "unset it, or copy the file from a machine that has it")
    if isinstance(problem, InvalidResponse):
        return AvarcError(what, f"{constants.ENDPOINT}: {problem}", "try again later, or use another HF_ENDPOINT")
    return Unreachable(
        f"{what}: there is no connection to {constants.ENDPOINT}",
        _reason(problem),
        "check the network, proxy and HF_ENDPOINT; the downloaded part is kept, and the next run continues from there",
    )


def _status_error(what: str, problem: ErrorStatus, file: HubFile) -> AvarcError:
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
    if status in _TRANSIENT:
        why = f"{_TRANSIENT[status]} (status {status})"
        delay = requested_delay(problem.headers)
        if delay is not None:
            return AvarcError(what, f"{why}; it asks to wait {delay:,.0f} s", f"run it again in {delay / 60:,.0f} min")
        return AvarcError(what, why, "run it again later; the downloaded part is kept")
    return AvarcError(what, f"the hub responds with status {status}{': ' + message if message else ''}", f"see {page}")


def _reason(problem: Exception) -> str:
    """The first line of a client's message, which may be long."""
    return first_line(problem)[:MAX_REASON]
