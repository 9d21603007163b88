"""The errors a user can meet: what happened, why, and what to do about it.

Library code raises these; `cli.main` shows them without a traceback and exits with their code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

MAX_NAMES = 5  # names in one message: enough to show the pattern

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREADABLE = 3  # the work is done, but some inputs could not be read


class AvarcError(Exception):
    """A problem for the user, in three parts.

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


class NoneReadable(UnreadableImage):
    """No image at all could be read."""

    exit_code = AvarcError.exit_code


class CheckpointError(AvarcError):
    """A weights file is corrupt, or not what was expected."""


class CacheError(AvarcError):
    """A token cache is corrupt, or was made for something else."""


class Interrupted(AvarcError):
    """The user stopped the work; what was finished is kept."""

    exit_code = 130


def none_readable(source: str, unreadable: Sequence[tuple[str, str]]) -> NoneReadable:
    """The error for a source without a readable image.

    Args:
        unreadable: (name, reason) of every image.
    """
    name, reason = unreadable[0]
    if len(unreadable) == 1:
        return NoneReadable(f"the only image of '{source}' is not readable", f"'{name}': {reason}")
    what = f"none of the {len(unreadable):,} images of '{source}' is readable"
    return NoneReadable(what, f"the first is '{name}': {reason}")


def shorten_list(names: Sequence[str], limit: int = MAX_NAMES) -> str:
    """The first few names, and how many more there are: "a, b, c and 7 more"."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out; CPU allocators and CUDA libraries say so only in words."""
    words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED", "start new thread")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


@contextmanager
def out_of_memory_as(what: str, fix: str) -> Iterator[None]:
    """Raises: AvarcError with these texts where memory runs out inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise AvarcError(what, first_line(error), fix) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its type where there is no message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


MAX_VALUE_LENGTH = 100
"""Characters of one value in a message; a sha256 (64) is shown in full, a list of class names is not."""


def describe_differences(
    there: Mapping[str, Any], here: Mapping[str, Any], *, sides: tuple[str, str] = ("there", "here")
) -> str:
    """The fields that differ, with both values: "samples: 1 there, 2 here; ..."; empty when none differs.

    Args:
        there, here: what a file records and what is asked for now, as JSON types. A missing field equals null; a field
            of a nested mapping is named "model.sha256".
        sides: the words after the two values.
    """
    theirs, ours = _flatten(there), _flatten(here)
    differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return "; ".join(
        f"{name}: {_shorten(theirs.get(name))} {sides[0]}, {_shorten(ours.get(name))} {sides[1]}" for name in differing
    )


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value  # as JSON gives it back
    return flat


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 3]}..."
