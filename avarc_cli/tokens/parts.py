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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avarc_cli.errors import AvarcError, CacheError
from avarc_cli.tokens.files import TEMPORARY, write_whole
from avarc_cli.tokens.header import differences

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

    def open(self, request: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder ready for the request: keep the parts of an equal one, clean up what a kill left.

        Raises: CacheError when it holds parts of another request and `overwrite` is not set; OSError.
        """
        made_for = self.request()
        if made_for is not None and not overwrite and (differing := differences(made_for, request)):
            raise CacheError(
                f"'{self.folder}' holds the unfinished work of another request",
                differing,
                "ask for the same again to finish it, or drop it with --overwrite",
            )
        if made_for != request:
            self.remove()  # without a request nothing says what the parts are
            self.folder.mkdir()
            write_whole(self.folder / "request.json", json.dumps(request, sort_keys=True, indent=1).encode())
        for temporary in self.folder.glob(f"*{TEMPORARY}"):
            temporary.unlink()

    def remove(self) -> None:
        """Delete the folder, if it is there. Raises: OSError."""
        if self.folder.exists():
            # First: a folder that lost only some of its parts to a kill must not pass for a usable one.
            (self.folder / "request.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder)

    def missing(self) -> Iterator[int]:
        """Numbers of the units that are still to be done; a damaged part counts as missing."""
        for number in range(self.count):
            try:
                self.load(number)
            except DAMAGED:
                yield number

    def finished(self) -> int:
        """How many units have a part, damaged or not."""
        return sum(self._path(number).exists() for number in range(self.count))

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
        write_whole(self._path(number), buffer.getvalue())

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

    def all(self) -> Iterator[Part]:
        """Every unit in order, for the assembly. Raises: AvarcError when one was damaged since it was written."""
        for number in range(self.count):
            try:
                yield self.load(number)
            except DAMAGED as error:
                what = f"'{self._path(number)}' was damaged while it was in use"
                raise AvarcError(what, str(error), "run the same command again: it is made anew") from error

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def request(self) -> dict[str, Any] | None:
        """What the parts were made for; None when there is no folder, or nothing in it can be used."""
        try:
            request = json.loads((self.folder / "request.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return request if isinstance(request, dict) else None
