"""How library code reports progress, without knowing how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias


class Progress(Protocol):
    """Called as work advances, with what is done so far. `console.ProgressBar.update` is one."""

    def __call__(self, done: int, total: int | None = None, note: str = "", /) -> None:
        """Report progress.

        Args:
            done: items finished (images, bytes, steps), those of earlier, interrupted work included.
            total: items in all; None when it is unknown, or was reported before.
            note: what is being done, or a running result; "" to leave it as it is.
        """
        ...


def no_progress(done: int, total: int | None = None, note: str = "", /) -> None:
    """Show nothing."""


MetricsProgress: TypeAlias = Callable[[int, dict[str, float]], None]
"""Called with the items finished (images, steps) and running averages by name."""


def no_metrics(done: int, values: dict[str, float], /) -> None:
    """A `MetricsProgress` that shows nothing."""


Notify: TypeAlias = Callable[[str], None]
"""Called with a message for the user: that batches had to shrink, or a download waits."""


def no_message(message: str, /) -> None:
    """A `Notify` that shows nothing."""


class ProgressBar(Protocol):
    """One step of the work."""

    @property
    def update(self) -> Progress:
        """Called as the step advances."""
        ...


StartProgress: TypeAlias = Callable[[str, int | None], AbstractContextManager[ProgressBar]]
"""(description, number of items if it is known) -> the bar of a `with` block. `console.progress` is one."""


class _NoBar:
    update: Progress = staticmethod(no_progress)


@contextmanager
def silent(description: str, total: int | None) -> Iterator[ProgressBar]:
    """A `StartProgress` that shows nothing."""
    yield _NoBar()
