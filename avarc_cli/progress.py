"""How library code reports progress: it opens a bar for each step, and the caller decides how bars look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias


class ProgressBar(Protocol):
    """One step of the work."""

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report that `done` items of this step are finished, earlier ones included; `note` stands beside the bar."""
        ...


StartProgress: TypeAlias = Callable[[str, int], AbstractContextManager[ProgressBar]]
"""(description, number of items) -> the bar of a `with` block. `console.progress` is one."""


class _NoBar:
    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        pass


@contextmanager
def silent(description: str, total: int) -> Iterator[ProgressBar]:
    """A `StartProgress` that shows nothing."""
    yield _NoBar()
