"""Whether output fits a terminal."""

from __future__ import annotations


def too_long(shown: str, width: int) -> list[str]:
    """The lines that are longer than this and could be shorter: not a single word, such as a path."""
    return [line for line in shown.splitlines() if len(line) > width and " " in line.strip()]
