"""The array of pictures that `avarc sample` draws: its file, and whether it may be written.

    FILE.npz         arr_0: uint8 (N, H, H, 3), RGB, class after class, as the evaluators of FID read it
    FILE.npz.json    the request

Until both are there the pictures are in `FILE.npz.parts` (`work.chunks`), and the record may be there alone.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avarc_cli.errors import UsageError
from avarc_cli.sampling.folder import Layout, PictureFolder, PicturePlace, check_parent, read_record
from avarc_cli.storage import beside
from avarc_cli.work import chunks
from avarc_cli.zip_check import INVALID

MEMBER = "arr_0.npy"
SHAPE = "shape"
"""The field of a request with the shape of the array."""


@dataclass(frozen=True)
class PictureArray(PicturePlace):
    """A file of pictures, finished or not."""

    path: Path

    @property
    def record(self) -> Path:
        return beside(self.path, ".json")

    def recorded(self) -> Mapping[str, Any] | None:
        return read_record(self.record) if os.path.lexists(self.path) else None

    def check(self) -> None:
        path, what = self.path, f"cannot write '{self.path}'"
        check_parent(path)
        chunks.check_own(self.parts)
        for request in self.requests():
            if Layout.recorded(request) is None or _shape(request) is None:
                raise UsageError(what, "other work of avarc's is there", "name another --out")
        for file in (path, self.record):
            if file.is_symlink() or (os.path.lexists(file) and not file.is_file()):
                raise UsageError(what, f"'{file}' is not a regular file", "name another --out")
        if path.exists() and self.recorded() is None:
            raise UsageError(f"'{path}' exists", f"there is no '{self.record.name}' with it", "name another --out")
        if self.record.exists() and Layout.recorded(read_record(self.record)) is None:
            raise UsageError(what, f"'{self.record}' exists, and is not avarc's", "move it, or name another --out")

    def missing(self, layout: Layout) -> Iterator[Path]:
        """The file, if it is not the one that was written."""
        request = self.recorded()
        if request is None or not self._holds(_shape(request)):
            yield self.path

    def _holds(self, shape: tuple[int, ...] | None) -> bool:
        """Whether the file has an array of pictures of this shape, and nothing else."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = [(each.filename, each.file_size) for each in archive.infolist()]
        except INVALID:
            return False
        return shape is not None and members == [(MEMBER, len(header(shape)) + math.prod(shape))]

    def check_complete(self, layout: Layout) -> None:
        if any(self.missing(layout)):
            why = f"it is not what '{self.record.name}' says"
            raise UsageError(f"'{self.path}' was complete, and has changed", why, "add --overwrite to draw it again")

    def prepare(self, layout: Layout, items: range) -> None:
        return None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)  # after the file: the record marks that as avarc's
        chunks.delete(self.parts)


def place_of(path: Path) -> PicturePlace:
    """Where pictures go that are drawn to this path: FILE.npz, unless it is a folder, or a folder."""
    is_array = path.suffix.lower() == ".npz" and not path.is_dir()
    return PictureArray(path) if is_array else PictureFolder.at(path)


def header(shape: tuple[int, ...]) -> bytes:
    """What precedes an array of pictures in its file."""
    buffer = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def _shape(request: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Of the array of a request; None where it is one of other pictures."""
    shape = request.get(SHAPE)
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(each) is int for each in shape):
        return None
    return tuple(shape)
