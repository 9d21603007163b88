"""An index of weights files that were read before, so that the next load neither hashes nor unpickles gigabytes.

Like git's index, it identifies a file by path, size and times; a file for which these changed has no valid entry. An
entry has the file's sha256, and, for a pickle, its safetensors copies, which load memory-mapped: one for each set of
weights that was asked for. Entries and copies are in `paths.weights_folder()`, never in the Hugging Face cache, and may
be deleted at any time.

A copy is used if its size and time are those that were recorded, and a sample of its bytes: the header, and BLOCKS
blocks of BLOCK bytes from begin to end. This detects a copy that was replaced, cut, or damaged in more than a BLOCKS-th
of its length, in milliseconds. It does not detect single changed bytes; `avarc models verify` compares all of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from avarc_cli import strict_json
from avarc_cli.errors import CheckpointError
from avarc_cli.storage import write_bytes
from avarc_cli.zoo import paths

HASH_BLOCK = 1 << 22  # bytes read at a time
BLOCKS, BLOCK = 64, 4096  # of a sample: how many, and bytes of one
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
class Copy:
    """What is known about a safetensors copy of a pickle."""

    path: str
    size: int  # bytes
    mtime_ns: int  # last change of the content
    sample: str  # `sample` of it
    sha256: str  # of all of its bytes, in hex

    @classmethod
    def of(cls, path: Path) -> Copy:
        """Raises: OSError; CheckpointError."""
        stat = path.stat()
        return cls(str(path), stat.st_size, stat.st_mtime_ns, sample(path), sha256_of_file(path))

    def is_valid(self) -> bool:
        """Whether it exists and did not change since it was made, as far as size, time and a sample tell."""
        path = Path(self.path)
        try:
            stat = path.stat()
            return (stat.st_size, stat.st_mtime_ns, sample(path)) == (self.size, self.mtime_ns, self.sample)
        except OSError:
            return False


@dataclass(frozen=True)
class IndexEntry:
    """What is known about a weights file."""

    source: str  # real path of the file
    sha256: str  # of its bytes, in hex
    stat: FileStat  # of the file when it was read
    copies: Mapping[str, Copy] = field(default_factory=dict)
    """By the name of the set of weights ("" for the one that is read without a name); none if it is safetensors."""
    finite: bool = False
    """Whether its weights, read without a name of a set, were found to be finite."""

    def valid_copy(self, weight_set: str | None = None) -> Path | None:
        """The copy with this set of weights, if it exists and did not change since it was made."""
        copy = self.copies.get(weight_set or "")
        return Path(copy.path) if copy is not None and copy.is_valid() else None


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


def sample(path: Path) -> str:
    """A digest of the header of a safetensors file and of blocks from begin to end. Raises: OSError."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")  # of the header, as the format has it
        digest.update(file.read(min(length, HASH_BLOCK)))
        for i in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * i // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def find(path: Path) -> IndexEntry | None:
    """The entry of a file that did not change since; None if there is none, or none that can be read."""
    entry = recorded(path)
    try:
        return entry if entry is not None and entry.stat == FileStat.of(path) else None
    except OSError:
        return None


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, from its entry if the file did not change since. Raises: CheckpointError."""
    entry = find(path)
    return entry.sha256 if entry else sha256_of_file(path)


def remember(path: Path) -> str:
    """As `sha256`, and record it, so that the next call need not read the file. Raises: CheckpointError."""
    entry = find(path)
    if entry is not None:
        return entry.sha256
    stat = FileStat.of(path) if path.exists() else None  # before reading: a file that changes meanwhile has no entry
    digest = sha256_of_file(path)
    if stat is not None:
        with suppress(OSError):  # the index only saves time
            write(IndexEntry(os.path.realpath(path), digest, stat))
    return digest


def is_finite(path: Path) -> bool:
    """Whether the weights in a file that did not change since were found to be finite."""
    entry = find(path)
    return entry is not None and entry.finite


def remember_finite(path: Path) -> None:
    """Record that the weights in a file were found to be finite, if it has an entry."""
    entry = find(path)
    if entry is not None and not entry.finite:
        with suppress(OSError):  # the index only saves time
            write(dataclasses.replace(entry, finite=True))


def is_indexed(path: Path, weight_set: str | None = None) -> bool:
    """Whether loading these weights of a file needs neither hashing nor unpickling."""
    entry = find(path)
    return entry is not None and (not entry.copies or entry.valid_copy(weight_set) is not None)


def write(entry: IndexEntry) -> None:
    """Add or replace an entry. Raises: OSError."""
    data = {STAT_KEY if key == "stat" else key: value for key, value in dataclasses.asdict(entry).items()}
    file = _entry_file(Path(entry.source))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, (json.dumps(data, indent=2) + "\n").encode())


def forget(path: Path) -> None:
    """Delete the entry of a file, which may have changed or be gone, and its copies. Raises: OSError."""
    entry = recorded(path)
    for copy in entry.copies.values() if entry else ():
        Path(copy.path).unlink(missing_ok=True)
    _entry_file(path).unlink(missing_ok=True)


def copy_path(sha256: str, weight_set: str | None = None) -> Path:
    """Where the safetensors copy of a set of weights is stored; sha256 is of the pickle."""
    suffix = "" if weight_set is None else "-" + hashlib.sha256(os.fsencode(weight_set)).hexdigest()[:8]
    return paths.weights_folder() / f"{sha256}{suffix}.safetensors"


def recorded(path: Path) -> IndexEntry | None:
    """The entry of a file, whether or not the file changed since; None if there is none that can be read."""
    try:
        data = strict_json.parse(_entry_file(path).read_text("utf-8"))
        copies = {name: Copy(**copy) for name, copy in data.pop("copies").items()}
        return IndexEntry(stat=FileStat(**data.pop(STAT_KEY)), copies=copies, **data)
    except (AttributeError, OSError, TypeError, ValueError, KeyError):
        return None  # the index only saves time


def _entry_file(path: Path) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    return paths.weights_folder() / f"{key}.json"
