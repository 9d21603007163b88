"""The unfinished cache: a folder `OUT.parts` with the request and one file a unit of images.

`request.json` says what is being made; `000012.npz` holds unit 12. Both are written whole or not at all, so what is
there can be used by the next run, if it asks for the same.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avarc_cli.errors import AvarcError
from avarc_cli.storage import remove_leftovers, write_bytes

# What zip files and arrays in them are known to raise when their bytes are not as they were written.
DAMAGED = (
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


REQUEST = "request.json"


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read: its index in the full set, its name, and the reason."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Part:
    """What became of one unit of images.

    rows: (n,) int64, indices in the full set of the readable ones, increasing; tokens: (n, S, L) uint16;
    latents: (n, Z, h, w) float16, or None where they are not kept.
    """

    rows: np.ndarray
    tokens: np.ndarray
    latents: np.ndarray | None
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True)
class Parts:
    """The folder of a cache in the making.

    total: images of the request; unit: images a part; sample_shape: (S, L); latents: whether they are kept.
    """

    folder: Path
    total: int
    unit: int
    sample_shape: tuple[int, int]
    latents: bool

    @property
    def count(self) -> int:
        """Number of units."""
        return -(-self.total // self.unit)

    def images(self, number: int) -> range:
        """Indices in the full set of a unit's images."""
        return range(number * self.unit, min((number + 1) * self.unit, self.total))

    def open(self, request: Mapping[str, Any]) -> None:
        """Make the folder ready for the request: keep the parts of an equal one, drop those of another.

        Nobody else may open it meanwhile, or be at work in it for another request. Raises: OSError.
        """
        if recorded_request(self.folder) != request:
            self.remove()  # without a request nothing says what the parts are
            self.folder.mkdir()
            write_bytes(self.folder / REQUEST, json.dumps(request, sort_keys=True, indent=1).encode())

    def clean(self, units: range) -> None:
        """Delete what a kill left half-written of these units, and of the assembly. Raises: OSError."""

        def is_unused(name: str) -> bool:
            number = name.partition(".")[0]
            return not number.isdecimal() or int(number) in units

        remove_leftovers(self.folder, is_unused)

    def remove(self) -> None:
        """Delete the folder, if it is there. Raises: OSError."""
        remove_parts(self.folder)

    def finished(self) -> set[int]:
        """Numbers of the units that have a part. They appear whole; whether a disk damaged one, `damaged` tells."""
        names = (path.name for path in self.folder.glob("*.npz"))
        return {int(name[:-4]) for name in names if name[:-4].isdecimal()} & set(range(self.count))

    def damaged(self, numbers: Iterable[int]) -> list[int]:
        """Those of these units whose part cannot be used."""
        return [number for number in numbers if not self._is_whole(number)]

    def size(self) -> int:
        """Bytes of all parts and the request."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def save(self, number: int, part: Part) -> None:
        """Write one unit. Raises: OSError."""
        arrays = {"rows": part.rows, "tokens": part.tokens}
        if part.latents is not None:
            arrays["latents"] = part.latents
        text = json.dumps([[bad.index, bad.name, bad.reason] for bad in part.unreadable])
        arrays["unreadable"] = np.frombuffer(text.encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_bytes(self._path(number), buffer.getvalue())

    def load(self, number: int) -> Part:
        """Read one unit. Raises: one of DAMAGED when it is missing, cut short, or not what this request makes."""
        with self._path(number).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            listed = json.loads(file["unreadable"].tobytes())
            part = Part(
                rows=file["rows"],
                tokens=file["tokens"],
                latents=file["latents"] if self.latents else None,
                unreadable=tuple(Unreadable(*entry) for entry in listed),
            )
        done = sorted([*part.rows.tolist(), *(bad.index for bad in part.unreadable)])
        shape = (len(part.rows), *self.sample_shape)
        if done != list(self.images(number)) or part.tokens.shape != shape or part.tokens.dtype != np.uint16:
            raise ValueError(f"part {number} is of another request")
        if part.latents is not None and len(part.latents) != len(part.rows):
            raise ValueError(f"part {number} has latents of {len(part.latents)} of {len(part.rows)} images")
        return part

    def stream(self, numbers: Iterable[int]) -> Iterator[Part]:
        """These units, one after the other. Raises: AvarcError when one was damaged since it was written."""
        for number in numbers:
            try:
                yield self.load(number)
            except DAMAGED as error:
                what = f"'{self._path(number)}' was damaged while it was in use"
                raise AvarcError(what, str(error), "run the same command again: it is made anew") from error

    def _is_whole(self, number: int) -> bool:
        try:
            self.load(number)
        except DAMAGED:
            return False
        return True

    def summary(self, numbers: Iterable[int]) -> tuple[int, list[tuple[str, str]]]:
        """Readable images of these units, and (name, reason) of the others. Raises: AvarcError, like `stream`."""
        images, unreadable = 0, []
        for part in self.stream(numbers):
            images += len(part.rows)
            unreadable += [(bad.name, bad.reason) for bad in part.unreadable]
        return images, unreadable

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def recorded_request(folder: Path) -> dict[str, Any] | None:
    """What the parts in a folder were made for; None when there is no folder, or nothing in it can be used."""
    try:
        request = json.loads((folder / REQUEST).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return request if isinstance(request, dict) else None


def remove_parts(folder: Path) -> None:
    """Delete a folder of parts, if it is there. Raises: OSError."""
    if folder.exists():
        # First: a folder that lost only some of its parts to a kill must not pass for a usable one.
        (folder / REQUEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
