"""An index of weights files that were read before, so that the next load neither hashes nor unpickles gigabytes.

Like git's index, it identifies a file by path, size and times; a file for which these changed has no valid entry. An
entry has the file's sha256, and, for a pickle, the path of a safetensors copy, which loads memory-mapped. Entries and
copies are in `paths.weights_folder()`, never in the Hugging Face cache, and may be deleted at any time.
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

HASH_BLOCK = 1 << 22  # bytes read at a time
STAT_KEY = "look"  # of `stat` in the JSON of an entry


@dataclass(frozen=True)
class FileStat:
    """What the file system knows about a file, to notice changes without reading it."""

    size: int  # bytes
    mtime_ns: int  # last change of the content
    ctime_ns: int  # unlike mtime, it cannot be set back

    @classmethod
    def of(cls, path: Path) -> FileStat:
        """Raises: OSError."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@dataclass(frozen=True)
class IndexEntry:
    """What is known about a weights file."""

    source: str  # real path of the file
    sha256: str  # of its bytes, in hex
    stat: FileStat  # of the file when it was read
    copy: str | None = None  # path of the safetensors copy; None if the file is safetensors itself
    copy_size: int = 0  # bytes
    copy_mtime_ns: int = 0  # of the copy

    def valid_copy(self) -> Path | None:
        """The copy, if it exists and did not change since it was made."""
        if self.copy is None:
            return None
        path = Path(self.copy)
        try:
            stat = path.stat()
        except OSError:
            return None
        return path if (stat.st_size, stat.st_mtime_ns) == (self.copy_size, self.copy_mtime_ns) else None


def sha256_of_file(path: Path, progress: Callable[[int], None] = lambda done: None) -> str:
    """The sha256 of a file's bytes, in hex. `progress` gets the number of bytes read. Raises: CheckpointError."""
    sha256, done = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(HASH_BLOCK):
                sha256.update(block)
                done += len(block)
                progress(done)
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read", str(problem), "check its permissions") from None
    return sha256.hexdigest()


def find(path: Path) -> IndexEntry | None:
    """The entry of a file that did not change since; None if there is none, or none that can be read."""
    entry = _read(path)
    try:
        return entry if entry is not None and entry.stat == FileStat.of(path) else None
    except OSError:
        return None


def is_indexed(path: Path) -> bool:
    """Whether loading this file needs neither hashing nor unpickling."""
    entry = find(path)
    return entry is not None and (entry.copy is None or entry.valid_copy() is not None)


def write(entry: IndexEntry) -> None:
    """Add or replace an entry. Raises: OSError."""
    data = {STAT_KEY if key == "stat" else key: value for key, value in dataclasses.asdict(entry).items()}
    file = _entry_file(Path(entry.source))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, (json.dumps(data, indent=2) + "\n").encode())


def forget(path: Path) -> None:
    """Delete the entry of a file, which may have changed or be gone, and its copy. Raises: OSError."""
    entry = _read(path)
    if entry is not None and entry.copy is not None:
        Path(entry.copy).unlink(missing_ok=True)
    _entry_file(path).unlink(missing_ok=True)


def copy_path(sha256: str) -> Path:
    """Where the safetensors copy of a pickle with this sha256 is stored."""
    return paths.weights_folder() / f"{sha256}.safetensors"


def _read(path: Path) -> IndexEntry | None:
    """The entry of a file, whether or not the file changed since; None if there is none that can be read."""
    try:
        data = json.loads(_entry_file(path).read_text("utf-8"))
        return IndexEntry(stat=FileStat(**data.pop(STAT_KEY)), **data)
    except (AttributeError, OSError, TypeError, ValueError, KeyError):
        return None  # the index only saves time


def _entry_file(path: Path) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    return paths.weights_folder() / f"{key}.json"
