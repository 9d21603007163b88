"""How library code reports progress, without knowing how it is shown."""

from __future__ import annotations

from typing import Protocol


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
