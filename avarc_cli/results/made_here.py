"""Which run folders were made by this user: the files that such a run names are the user's own choice.

A run folder that somebody else made, or that was edited, may name any file of the reader's. So the digest of run.json
is kept as the name of an empty file among the user's settings when a run is finished.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from avarc_cli.zoo.paths import config_folder


def remember(run_json: Path) -> None:
    """Record that this run was made here. Raises: OSError when run.json cannot be read."""
    mark = _mark(run_json)
    with suppress(OSError):  # without a place for settings, reports have to be asked to read images
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def was_made_here(run_json: Path) -> bool:
    """Whether `remember` was called for a run with the same run.json. Raises: OSError when it cannot be read."""
    return _mark(run_json).is_file()


def _mark(run_json: Path) -> Path:
    return config_folder() / "runs" / hashlib.sha256(run_json.read_bytes()).hexdigest()
