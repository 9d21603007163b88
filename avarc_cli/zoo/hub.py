"""What the Hugging Face hub says about a file, and its refusals in our words. Talking is huggingface_hub's business:
endpoint and mirrors (HF_ENDPOINT), tokens (HF_TOKEN, `hf auth login`), proxies and offline mode are as it has them.
"""

from __future__ import annotations

import datetime
import email.utils
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from avarc_cli.errors import AvarcError
from avarc_cli.zoo.card import HubFile

RETRIES = 4  # in a row without a new byte
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each, where the hub does not say how long
LONGEST_PAUSE = 300.0  # seconds; the hub counts requests in windows of five minutes
PASSING = {408, 429, 500, 502, 503, 504}  # statuses that may be gone the next time

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Remote:
    """A file as the hub has it: the commit that the revision stands for, and what the content must be."""

    file: HubFile
    commit: str
    sha256: str
    size: int | None  # bytes; None where only the download itself will tell

    @property
    def url(self) -> str:
        """Of the commit, so that an answer to a retry belongs to the same content."""
        return hf_hub_url(self.file.repo, self.file.filename, revision=self.commit)


class Unreachable(AvarcError):
    """Nobody answers as a hub would."""


class Refused(Exception):
    """The hub answers with a status that is no success."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers
        super().__init__(f"status {status}")


class BadAnswer(Exception):
    """The hub answers with something that cannot be right."""


def look_up(file: HubFile, say: Say) -> Remote:
    """Ask the hub for the file's commit, size and sha256.

    Args:
        file: its revision may be a branch, a tag or a commit; None is `main`.
        say: hears about waiting.
    Raises: AvarcError in the words of `told`; Unreachable where there is no hub.
    """
    url = hf_hub_url(file.repo, file.filename, revision=file.revision)
    for attempt in range(RETRIES + 1):
        try:
            found = get_hf_file_metadata(url)
            break
        except HfHubHTTPError as problem:
            refused = Refused(problem.response.status_code, problem.response.headers)
            seconds = pause(refused, attempt)
            if seconds is None or attempt == RETRIES:
                raise told(refused, file) from None
            wait(seconds, refused, say)
        except Exception as problem:  # noqa: BLE001  # a client fed nonsense raises what the nonsense says
            raise told(problem, file) from None
    commit, etag = found.commit_hash or "", (found.etag or "").lower()
    if not is_commit(commit):
        raise Unreachable(
            f"{constants.ENDPOINT} does not answer as a Hugging Face hub",
            "it names no commit; a proxy, a log-in page or a mirror of another kind may stand between",
            "check the connection, proxy and HF_ENDPOINT",
        )
    sha256 = file.sha256 or etag
    if not _SHA256.fullmatch(sha256):
        raise AvarcError(
            f"{file.filename} of {file.repo} cannot be verified",
            f"{constants.ENDPOINT} names no sha256 for it, only '{etag}'",
            "use another HF_ENDPOINT; or get the file another way and name it by its path",
        )
    return Remote(file, commit, sha256, found.size if found.size and found.size > 0 else None)


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which never means something else tomorrow."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def pause(problem: Exception, failures: int) -> float | None:
    """Seconds to wait before trying again; None where that makes no sense, or would take too long."""
    backoff = PAUSES[min(failures, len(PAUSES) - 1)]
    if isinstance(problem, OfflineModeIsEnabled):
        return None
    if not isinstance(problem, Refused):
        return backoff
    if problem.status not in PASSING:
        return None
    asked = asked_to_wait(problem.headers)
    if asked is None:
        return backoff
    return asked if asked <= LONGEST_PAUSE else None


def wait(seconds: float, problem: Exception, say: Say) -> None:
    """Sleep, and say why."""
    why = _STATUSES.get(problem.status, str(problem)) if isinstance(problem, Refused) else _reason(problem)
    say(f"{constants.ENDPOINT}: {why}; trying again in {seconds:.0f} s")
    time.sleep(seconds)


def asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for: Retry-After (a number or a date), else the hub's own RateLimit header."""
    asked = headers.get("retry-after", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        until = email.utils.parsedate_to_datetime(asked)
        return max(0.0, (until - datetime.datetime.now(until.tzinfo)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        pass
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return float(limit[1]) if limit else None


_STATUSES = {
    408: "the request took too long",
    429: "too many requests",
    500: "the hub has an internal error",
    502: "the hub is not available behind its gateway",
    503: "the hub is not available",
    504: "the hub is not available behind its gateway",
}


def told(problem: Exception, file: HubFile) -> AvarcError:
    """Any failure to look up or fetch a file, as what happened, why, and what to do."""
    what = f"cannot download {file.filename} of {file.repo}"
    if isinstance(problem, AvarcError):
        return problem
    if isinstance(problem, Refused):
        return _refusal(what, problem, file)
    if isinstance(problem, OfflineModeIsEnabled):
        return AvarcError(what, "HF_HUB_OFFLINE is set", "unset it, or copy the file from a machine that has it")
    if isinstance(problem, BadAnswer):
        return AvarcError(what, f"{constants.ENDPOINT}: {problem}", "try again later, or use another HF_ENDPOINT")
    return Unreachable(
        f"{what}: there is no connection to {constants.ENDPOINT}",
        _reason(problem),
        "check the network, proxy and HF_ENDPOINT; what was downloaded is kept, and a rerun goes on from there",
    )


def _refusal(what: str, problem: Refused, file: HubFile) -> AvarcError:
    status, code = problem.status, problem.headers.get("x-error-code", "")
    page = f"{constants.ENDPOINT}/{file.repo}"
    log_in = "set HF_TOKEN, or run `hf auth login`"
    if "Invalid credentials" in problem.headers.get("x-error-message", ""):
        return AvarcError(what, "the hub does not know your token", f"make one at its settings/tokens, and {log_in}")
    if code == "GatedRepo" or (status == 403 and not code):
        is_gated = "is gated" if code else "may be gated"
        why = f"{file.repo} {is_gated}: the hub gives it only to whom its owner has let in (status {status})"
        also = "; your token must belong to that account" if get_token() else f"; then {log_in}"
        return AvarcError(what, why, f"ask for access at {page}{also}")
    if code == "RevisionNotFound":
        why = f"{file.repo} has no revision '{file.revision or constants.DEFAULT_REVISION}'"
        return AvarcError(what, why, f"see {page}/commits/main, or leave --revision out")
    if code == "EntryNotFound":
        at = f" at revision {file.revision}" if file.revision else ""
        return AvarcError(what, f"there is no such file{at}; it may have been renamed", f"see {page}/tree/main")
    if status == 401 or code == "RepoNotFound":
        why = f"{file.repo} is not there, or is private or gated (status {status})"
        return AvarcError(what, why, f"see {page}; if you may read it, {log_in}")
    if status in PASSING:
        asked = asked_to_wait(problem.headers)
        why = f"{_STATUSES[status]} (status {status})"
        if asked is not None:
            return AvarcError(what, f"{why}; it asks to wait {asked:,.0f} s", f"run it again in {asked / 60:,.0f} min")
        return AvarcError(what, why, "run it again later; what was downloaded is kept")
    said = problem.headers.get("x-error-message", "")
    return AvarcError(what, f"the hub answers with status {status}{': ' + said if said else ''}", f"see {page}")


def _reason(problem: Exception) -> str:
    """The first line of what went wrong; some of the client's errors have no words."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:300]
