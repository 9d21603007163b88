"""What is remembered about a weights file, so that the next load neither hashes nor unpickles gigabytes.

A note names the file, how it looked (size and times, as git's index has them), its sha256, and for a pickle the copy
of its tensors as safetensors, which loads memory-mapped. A file that looks otherwise now has no note. Notes and copies
lie in `paths.weights_folder()`, never in the hub's cache, and may be deleted at any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from avarc_cli.errors import CheckpointError
from avarc_cli.storage import write_bytes
from avarc_cli.zoo import paths


@dataclass(frozen=True)
class Look:
    """How a file looks without reading it: size in bytes, times in nanoseconds. ctime cannot be set back."""

    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class Note:
    """source is the file's real path; copy the safetensors of its tensors, None where the source is one itself."""

    source: str
    sha256: str
    look: Look
    copy: str | None = None
    copy_size: int = 0
    copy_mtime_ns: int = 0

    def whole_copy(self) -> Path | None:
        """The copy, if it is there and was not touched since it was made."""
        if self.copy is None:
            return None
        path = Path(self.copy)
        try:
            stat = path.stat()
        except OSError:
            return None
        return path if (stat.st_size, stat.st_mtime_ns) == (self.copy_size, self.copy_mtime_ns) else None


def digest(path: Path, progress: Callable[[int], None] = lambda done: None) -> str:
    """sha256 of a file's bytes, in hex; `progress` hears how many were read. Raises CheckpointError."""
    sha256, done = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                sha256.update(block)
                done += len(block)
                progress(done)
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read", str(problem), "check its permissions") from None
    return sha256.hexdigest()


def look(path: Path) -> Look:
    """Raises: OSError."""
    stat = path.stat()
    return Look(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def find(path: Path) -> Note | None:
    """The note of a file that still looks as it did; None where there is none, or none that can be read."""
    try:
        data = json.loads(_note_file(path).read_text("utf-8"))
        note = Note(**{**data, "look": Look(**data["look"])})
        return note if note.look == look(path) else None
    except (OSError, TypeError, ValueError, KeyError):
        return None  # a note only saves time


def is_kept(path: Path) -> bool:
    """Whether a load of this file would be fast."""
    note = find(path)
    return note is not None and (note.copy is None or note.whole_copy() is not None)


def write(note: Note) -> None:
    """Remember it. Raises: OSError."""
    file = _note_file(Path(note.source))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, (json.dumps(dataclasses.asdict(note), indent=2) + "\n").encode())


def forget(path: Path) -> None:
    """Delete what is remembered about a file, its copy included. Raises: OSError."""
    note = find(path)
    if note is not None and note.copy is not None:
        Path(note.copy).unlink(missing_ok=True)
    _note_file(path).unlink(missing_ok=True)


def copy_file(sha256: str) -> Path:
    """Where the copy of a pickle with that digest lies."""
    return paths.weights_folder() / f"{sha256}.safetensors"


def _note_file(path: Path) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    return paths.weights_folder() / f"{key}.json"
