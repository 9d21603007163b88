"""Whether a file may be written where the user wants it, decided before any work begins.

An existing file is replaced only with `--overwrite`, and only by one of its own kind: a mistyped name must not cost
a photo.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.work.locks import only_writer

READ = 64
"""Bytes of an existing file that are looked at; every `Kind` is recognized within them."""


@dataclass(frozen=True)
class Kind:
    """A kind of file that avarc writes."""

    name: str
    """As messages call it."""
    suffixes: tuple[str, ...]
    """Suffixes that its name may have, lower case; empty: any."""
    start: re.Pattern[bytes]
    """What its first bytes match."""

    def takes(self, path: Path) -> bool:
        """Whether a file of this name can be of this kind."""
        return not self.suffixes or path.suffix.lower() in self.suffixes


_HDF5_START = re.compile(rb"\x89HDF\r\n\x1a\n")

CACHE = Kind("a token cache", (), _HDF5_START)
FEATURES = Kind("features of captions", (".safetensors",), re.compile(rb".{8}\{", re.DOTALL))
HDF5 = Kind("HDF5", (".h5", ".hdf5"), _HDF5_START)
HTML = Kind("HTML", (".html", ".htm"), re.compile(rb"\s*<!doctype html", re.IGNORECASE))
JSON = Kind("JSON", (".json",), re.compile(rb"\s*\{"))
JSON_LINES = Kind("JSON lines", (".jsonl",), re.compile(rb"\s*\{"))
NPY = Kind("npy", (".npy",), re.compile(rb"\x93NUMPY"))
NPZ = Kind("npz", (".npz",), re.compile(rb"PK"))
PARQUET = Kind("Parquet", (".parquet",), re.compile(rb"PAR1"))
PREDICTIONS_CSV = Kind("a CSV file of predictions", (".csv",), re.compile(rb"index,path,prediction,"))
PREDICTIONS_JSON = Kind("a JSON file of predictions", (".json",), re.compile(rb'\{\n  "out": '))
PNG = Kind("PNG", (".png",), re.compile(rb"\x89PNG\r\n\x1a\n"))
SVG = Kind("SVG", (".svg",), re.compile(rb"\s*<(\?xml|svg|!DOCTYPE svg)"))
WEIGHTS = Kind("safetensors", (), re.compile(rb".{8}\{", re.DOTALL))


@contextmanager
def reserved(path: Path | None, *kinds: Kind, overwrite: bool, inputs: Iterable[Path] = ()) -> Iterator[None]:
    """Check as `check_output`, and be the only process that writes this file until the end of the block.

    Nothing is reserved for None, an optional file that was not asked for.

    Raises: as `check_output` and `only_writer`.
    """
    if path is None:
        yield
        return
    check_output(path, *kinds, overwrite=overwrite, inputs=inputs)
    with only_writer(path):
        yield


def check_output(path: Path, *kinds: Kind, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Check that a file of one of these kinds can be written here without destroying anything.

    Args:
        overwrite: whether a file of the same kind may be replaced.
        inputs: files that the command reads, and never replaces.
    Raises: UsageError.
    """
    what = f"cannot write '{path}'"
    kind = next((kind for kind in kinds if kind.takes(path)), None)
    if kind is None:
        suffixes = " or ".join(suffix for kind in kinds for suffix in kind.suffixes)
        raise UsageError(what, f"there is no format '{path.suffix}'", f"name a file ending in {suffixes}")
    if not path.parent.is_dir():
        raise UsageError(what, f"'{path.parent}' is not a folder", "name a file in a folder that exists")
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise UsageError(what, "it is a folder", f"name a file, such as {path / 'out'}{''.join(kind.suffixes[:1])}")
    if any(file.exists() and path.exists() and path.samefile(file) for file in inputs):
        raise UsageError(what, "this command reads it", "name another file")
    if path.is_symlink() or not path.is_file():
        why = "it is a link" if path.is_symlink() else "it is a device or a pipe"
        raise UsageError(what, why, "name a regular file")
    if not overwrite:
        _remove_leftovers(path)
        raise UsageError(f"'{path}' exists", fix="name another file, or add --overwrite")
    if not _is_replaceable(path, kind):
        raise UsageError(what, f"a file of this name exists, and it is not {kind.name}", "delete it, or name another")


def _remove_leftovers(path: Path) -> None:
    """Delete what a process left that was killed when the output was complete."""
    with suppress(AvarcError, OSError), only_writer(path):
        pass


def _is_replaceable(path: Path, kind: Kind) -> bool:
    with path.open("rb") as file:
        start = file.read(READ)
    return not start or kind.start.match(start) is not None  # an empty file holds nothing to lose


def check_new_folder(path: Path) -> None:
    """Check that a folder can be written here. Raises: UsageError when there is anything but an empty folder."""
    if not path.parent.is_dir():
        raise UsageError(f"cannot write '{path}'", f"'{path.parent}' is not a folder", "choose one that exists")
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        _remove_leftovers(path)
        raise UsageError(f"'{path}' exists", fix="name another folder, or delete it first")
