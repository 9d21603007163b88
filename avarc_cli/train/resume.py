"""Where a training that was stopped is kept. There is no torch here: commands look before they import it."""

from __future__ import annotations

from pathlib import Path

from avarc_cli.storage import beside


def resume_file(out: Path) -> Path:
    """Where the unfinished training of `out` is kept."""
    return beside(out, ".ckpt")
