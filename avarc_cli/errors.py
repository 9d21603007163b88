"""The errors a user can meet: what happened, why, and what to do about it.

Library code raises these; `cli.main` shows them without a traceback and exits with their code.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_NAMES = 5  # names in one message: enough to show the pattern

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREADABLE = 3  # the work is done, but some inputs could not be read


class AvarcError(Exception):
    """Something the user should know about, told in three parts.

    Args:
        what: what happened, one sentence, naming the file or option.
        why: the cause, with the values that disagree side by side.
        fix: what to do next, as a command where there is one.
    """

    exit_code = EXIT_FAILED

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what, why, fix)

    def __str__(self) -> str:
        why = f"\n  why: {self.why}" if self.why else ""
        fix = f"\n  fix: {self.fix}" if self.fix else ""
        return f"{self.what}{why}{fix}"


class UsageError(AvarcError):
    """The request itself is wrong: an option, a plan, a name. Nothing was done."""

    exit_code = EXIT_USAGE


class UnreadableImage(AvarcError):
    """One image could not be read; the run goes on without it and lists it at the end.

    Token caches store `why` for each image: changing the texts changes the bytes of caches.
    """

    exit_code = EXIT_UNREADABLE


class CheckpointError(AvarcError):
    """A weights file is damaged, or not what was expected."""


class CacheError(AvarcError):
    """A token cache is damaged, or was made for something else."""


class Interrupted(AvarcError):
    """The user stopped the work; what was finished is kept."""

    exit_code = 130


def shorten_list(names: Sequence[str], limit: int = MAX_NAMES) -> str:
    """The first few names, and how many more there are: "a, b, c and 7 more"."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
