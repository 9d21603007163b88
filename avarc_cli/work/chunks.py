"""Work in progress on disk: a folder with the request, and one file for each finished chunk.

    FOLDER/request.json    what is being made
    FOLDER/000012.npz      the result of chunk 12, as named arrays

Files appear in one step, so a process that is killed leaves work that can be continued. What the arrays mean, and
whether they are right, only the caller's `ChunkFormat` knows.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from avarc_cli import strict_json
from avarc_cli.errors import AvarcError, shorten_list
from avarc_cli.storage import new_folder, remove_leftovers, write_bytes
from avarc_cli.zip_check import open_npz

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

Tick: TypeAlias = Callable[[int], None]
"""Called with the number of items that were finished since the last call; below 0 where a worker died with its work."""

CORRUPT = (
    OSError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
"""What reading zip files and arrays raises when bytes changed; tests/tokens/test_encoded.py changes bytes at random."""

REQUEST = "request.json"

# Without the random part, and cache.h5: what earlier versions left.
_OWN_NAME = re.compile(r"(request\.json|cache\.h5|\d{6,}\.npz)((\.[0-9a-f]{8})?\.tmp)?")


@dataclass(frozen=True)
class Chunks:
    """Items 0 to `items` - 1, divided into chunks: consecutive items, numbered from 0."""

    items: int
    """Number of items."""

    size: int
    """Items of each chunk; the last one may have fewer."""

    @property
    def count(self) -> int:
        """Number of chunks."""
        return -(-self.items // self.size)

    def items_of(self, number: int) -> range:
        """The items of a chunk."""
        return range(number * self.size, min((number + 1) * self.size, self.items))

    def count_items(self, numbers: Iterable[int]) -> int:
        """Number of items in these chunks."""
        return sum(len(self.items_of(number)) for number in numbers)


class ChunkTask(Protocol[Result_co]):
    """What is computed. Ray sends a copy to each worker, so it must be picklable.

    Processes on other devices of this machine get no copy, but a `loader`, which reads the weights again.

    The result of a chunk may depend on its items only, not on the process or on the chunks that it computed before.
    """

    @property
    def uses_gpu(self) -> bool:
        """Whether a worker needs a GPU for itself."""
        ...

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, Result_co]]:
        """Number and result of each of these chunks, in this order.

        Args:
            chunks: number -> items.
        """
        ...

    def loader(self) -> TaskLoader[Result_co]:
        """Makes this task in another process of this machine. It is small, and picklable."""
        ...


class TaskLoader(Protocol[Result_co]):
    """Makes a task in the process that is to compute its chunks."""

    def __call__(self, device: str, /) -> ChunkTask[Result_co]:
        """The task on this device, as torch names it. Raises: AvarcError when it cannot be loaded there."""
        ...


class ChunkFormat(Protocol[Result]):
    """How the result of a chunk is stored."""

    def to_arrays(self, result: Result) -> Mapping[str, np.ndarray]:
        """The arrays of a chunk file, in this order. `to_json_array` makes one of anything that JSON knows."""
        ...

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> Result:
        """The result for these items. Arrays are read when they are looked up.

        Raises: one of CORRUPT unless the arrays are such a result.
        """
        ...


@dataclass(frozen=True)
class ChunkFolder(Generic[Result]):
    """The folder of some work. Methods raise OSError when the disk fails."""

    path: Path
    """The folder."""
    chunks: Chunks
    """How the work is divided."""
    format: ChunkFormat[Result]
    """How results are stored."""

    def create(self, request: Mapping[str, Any]) -> None:
        """Delete what is there, and begin the work that `request` describes.

        No other process may use the folder meanwhile. Raises: as `check_own`; OSError.
        """
        with self.filled(request):
            pass

    @contextmanager
    def filled(self, request: Mapping[str, Any]) -> Iterator[ChunkFolder[Result]]:
        """As `create`; the chunks that the block saves in the folder it gets appear together with the new folder.

        A process that is killed in the block leaves a temporary folder (`storage.remove_leftovers_of`).
        """
        check_own(self.path)
        delete(self.path)
        with new_folder(self.path) as temporary:
            yield replace(self, path=temporary)
            write_bytes(temporary / REQUEST, json.dumps(request, sort_keys=True, indent=1).encode())

    def clean(self, numbers: range) -> None:
        """Delete what killed processes left half-written of these chunks, which no other process may be computing."""

        def is_unused(name: str) -> bool:
            number = name.partition(".")[0]
            return not number.isdecimal() or int(number) in numbers

        remove_leftovers(self.path, is_unused)

    def finished(self) -> set[int]:
        """Numbers of the chunks that have a file. It was complete when it appeared; `corrupt` tells whether it is."""
        names = (path.name for path in self.path.glob("*.npz"))
        return {int(name[:-4]) for name in names if name[:-4].isdecimal()} & set(range(self.chunks.count))

    def corrupt(self, numbers: Iterable[int]) -> list[int]:
        """Those of these chunks whose file cannot be used."""
        return [number for number in numbers if not self._is_usable(number)]

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.path.iterdir())

    def save(self, number: int, result: Result) -> None:
        """Write the file of a chunk in one step; the same result gives the same bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self.format.to_arrays(result))
        write_bytes(self._file(number), buffer.getvalue())

    def load(self, number: int) -> Result:
        """Read the file of a chunk. Raises: one of CORRUPT when it is missing, cut short, changed or another's."""
        with open_npz(self._file(number)) as arrays:
            return self.format.from_arrays(self.chunks.items_of(number), arrays)

    def read(self, number: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of these arrays that the file of a chunk has. Raises: one of CORRUPT."""
        with open_npz(self._file(number)) as arrays:
            return {name: arrays[name] for name in names if name in arrays}

    def remove(self, number: int) -> None:
        """Delete the file of a chunk, which is then to be computed again."""
        self._file(number).unlink()

    def stream(self, numbers: Iterable[int]) -> Iterator[Result]:
        """The results of these chunks, one at a time. Raises: AvarcError when a file became corrupt meanwhile."""
        for number in numbers:
            try:
                yield self.load(number)
            except CORRUPT as error:
                what = f"'{self._file(number)}' became corrupt while it was in use"
                raise AvarcError(what, str(error), "run the same command again to compute it again") from error

    def _is_usable(self, number: int) -> bool:
        try:
            self.load(number)
        except CORRUPT:
            return False
        return True

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06d}.npz"


def recorded_request(folder: Path) -> dict[str, Any] | None:
    """What a folder of chunks was created for; None when there is no folder, or no readable request in it."""
    try:
        request = strict_json.parse((folder / REQUEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return request if isinstance(request, dict) else None


def check_own(folder: Path) -> None:
    """Raises: AvarcError when something else than a folder of chunks has this name."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        why = "it is not a folder"
    elif folder.exists() and (foreign := [file.name for file in folder.iterdir() if not _is_own(file)]):
        why = f"it holds {shorten_list(sorted(foreign))}"
    else:
        return
    raise AvarcError(f"'{folder}' is not a folder of avarc's", why, "move it, or write to another file")


def delete(folder: Path) -> None:
    """Delete the chunks in a folder, if it exists, and the folder unless it holds anything else. Raises: OSError."""
    if not folder.is_dir() or folder.is_symlink():
        return
    # First: without its request, a folder that a kill left half-deleted is not continued.
    (folder / REQUEST).unlink(missing_ok=True)
    for file in filter(_is_own, list(folder.iterdir())):
        file.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _is_own(file: Path) -> bool:
    return _OWN_NAME.fullmatch(file.name) is not None and not file.is_dir()


def to_json_array(value: Any) -> np.ndarray:
    """A JSON value as an array for a chunk file: its text in UTF-8, uint8."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def from_json_array(array: np.ndarray) -> Any:
    """The value that `to_json_array` stored. Raises: ValueError."""
    return strict_json.parse(array.tobytes())
