"""Image datasets in Parquet and Arrow files, as published on the hub: a column of encoded images, one of classes.

pyarrow is an extra: `pip install 'avarc[data]'`.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

from avarc_cli.data.image_source import open_regular
from avarc_cli.data.listing import Listing, name_positions, number_classes, numbered_classes, settle
from avarc_cli.errors import UnreadableImage, UsageError

SUFFIXES = (".parquet", ".arrow")
LABELS = ("label", "labels", "fine_label", "class", "cls", "target", "category")  # names of label columns, best first
GROUPS_KEPT = 2  # row groups in memory, per process
_reading = threading.Lock()  # pyarrow's readers are not for several threads at once


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are of use. image: its name; is_struct: whether it is {bytes, path}; label: its name, or
    ""; classes: the names of its numbers, where the metadata has them."""

    image: str
    is_struct: bool
    label: str
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """Pictures in rows of tables. files: paths; file (N,) int32; row (N,) int64 within its file; image: the column."""

    files: tuple[str, ...]
    file: np.ndarray
    row: np.ndarray
    image: str

    def __len__(self) -> int:
        return len(self.row)

    def open(self, row: int) -> BinaryIO:
        path = self.files[self.file[row]]
        try:
            with _reading:
                value = _open_file(os.getpid(), path).picture(self.image, int(self.row[row]))
        except _errors() as error:
            raise UnreadableImage(f"cannot read {self.where(row)}", str(error).split("\n", maxsplit=1)[0]) from error
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):  # a picture of its own, beside the table
                return open_regular(os.path.join(os.path.dirname(path), value["path"]))
            value = value.get("bytes")
        if value is None:
            raise UnreadableImage(f"cannot read {self.where(row)}", "the row holds no picture")
        return io.BytesIO(value)

    def where(self, row: int) -> str:
        return f"row {self.row[row]:,} of {self.files[self.file[row]]}"

    def take(self, rows: np.ndarray) -> Rows:
        return Rows(self.files, self.file[rows], self.row[rows], self.image)

    def broken(self) -> Iterator[tuple[int, str]]:
        yield from ()  # nothing shows without reading


def open_tables(folder: str, files: Sequence[str], wanted: str | None) -> Listing:
    """The images in the rows of Parquet or Arrow files, in the order given. Pictures are not read.

    Args:
        folder: what names of files are relative to. wanted: as open_folder.
    Raises: UsageError without pyarrow, for a file that cannot be read or has no column of images, for files that
        differ in their columns, and as listing.settle.
    """
    paths = [os.path.join(folder, name) for name in files]
    columns: Columns | None = None
    names: list[str] = []
    sizes: list[int] = []
    told: list[Any] = []
    for name, path in zip(files, paths, strict=True):
        try:
            opened = _Table(path)
            found = _columns(opened.schema, path)
            if columns not in (None, found):
                raise UsageError(f"'{path}' has other columns than '{paths[0]}'", fix="name files of one dataset")
            columns = found
            pictures = opened.strings(f"{found.image}.path") if found.is_struct else [None] * opened.rows
            told += opened.values(found.label) if found.label else [None] * opened.rows
        except _errors() as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise UsageError(f"cannot read the table '{path}'", reason, "copy or download it again") from error
        prefix = f"{name}/" if len(files) > 1 else ""
        names += [f"{prefix}{i:07d}" + (f"/{os.path.basename(p)}" if p else "") for i, p in enumerate(pictures)]
        sizes.append(opened.rows)
    assert columns is not None, "called without files"
    rows = Rows(
        tuple(paths),
        np.repeat(np.arange(len(paths), dtype=np.int32), sizes),
        np.concatenate([np.arange(size, dtype=np.int64) for size in sizes]),
        columns.image,
    )
    stem = os.path.join(folder, os.path.basename(files[0]).partition("-")[0])  # validation-00000-of-00014.parquet
    labels, classes, notes = _labels(told, columns, wanted, stem)
    kind = os.path.splitext(files[0])[1][1:]
    layout = f"{len(files)} {kind} {'files' if len(files) > 1 else 'file'}, images in column '{columns.image}'"
    layout += f", classes in '{columns.label}'" if columns.label else ""
    return settle(Listing(rows, names, labels, classes, "", layout, notes), wanted, stem)


def _labels(
    told: list[Any], columns: Columns, wanted: str | None, path: str
) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
    """Labels, class names and notes. Numbers below zero and nulls are unknown, as on the hub."""
    texts = [None if value is None or (isinstance(value, int) and value < 0) else str(value) for value in told]
    labels, classes = number_classes(texts)
    if not classes or not all(name.isdecimal() for name in classes):
        return labels, classes, ()
    if not columns.classes:
        names, taken_for = numbered_classes(classes, wanted, path)
        return labels, names, (f"labels are numbers, taken for {taken_for}",)
    if max(map(int, classes)) >= len(columns.classes):
        why = f"column '{columns.label}' goes up to {max(map(int, classes))}, its schema names {len(columns.classes)}"
        raise UsageError(f"labels in '{path}' have no name", why, "the files are damaged, or not of one dataset")
    names, notes = name_positions(columns.classes)
    return labels, [names[int(number)] for number in classes], notes


def _columns(schema: Any, path: str) -> Columns:
    """The columns of use, by the hub's metadata where there is some, else by type and name. Raises: UsageError."""
    import pyarrow as pa

    features = _features(schema)
    fields = {field.name: field.type for field in schema}

    def holds_images(name: str) -> bool:
        kind = fields[name]
        if pa.types.is_struct(kind):
            return "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
        binary: bool = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return binary

    images = [name for name in fields if holds_images(name)]
    marked = [name for name in images if features.get(name, {}).get("_type") == "Image"]
    if not images:
        has = ", ".join(f"{name} ({kind})" for name, kind in list(fields.items())[:8])
        raise UsageError(f"'{path}' has no column of images", f"its columns are {has}", "name an image dataset")
    image = (marked or images)[0]
    simple = [name for name, kind in fields.items() if pa.types.is_integer(kind) or pa.types.is_string(kind)]
    classes = [name for name in simple if features.get(name, {}).get("_type") == "ClassLabel"]
    label = next((name for name in LABELS if name in (classes or simple)), classes[0] if classes else "")
    named = features.get(label, {}).get("names") or ()
    return Columns(image, pa.types.is_struct(fields[image]), label, tuple(map(str, named)))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What the hub's `datasets` wrote about the columns; empty where it wrote nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    known = features.items() if isinstance(features, dict) else ()
    return {name: feature for name, feature in known if isinstance(feature, dict)}


class _Table:
    """An open file: schema, number of rows, columns, and pictures by row. Raises: what `_errors` lists."""

    def __init__(self, path: str) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise UsageError(
                f"reading '{path}' needs pyarrow", "it is not installed", "pip install 'avarc[data]'"
            ) from None
        self._parquet: Any = None
        self._arrow: Any = None
        if path.lower().endswith(".parquet"):
            self._parquet = pq.ParquetFile(path)
            self.schema, self.rows = self._parquet.schema_arrow, int(self._parquet.metadata.num_rows)
            groups = range(self._parquet.metadata.num_row_groups)
            self._starts = np.cumsum([0, *(self._parquet.metadata.row_group(g).num_rows for g in groups)])
            self._group = lru_cache(maxsize=GROUPS_KEPT)(self._read_group)
            return
        mapped = pa.memory_map(path)  # pictures stay on disk until they are asked for
        try:
            self._arrow = pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            self._arrow = pa.ipc.open_file(mapped).read_all()
        self.schema, self.rows = self._arrow.schema, int(self._arrow.num_rows)

    def picture(self, column: str, row: int) -> Any:
        """The value of the image column: bytes, or {bytes, path}."""
        if self._parquet is None:
            return self._arrow.column(column)[row].as_py()
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._group(group, column)[row - int(self._starts[group])].as_py()

    def values(self, column: str) -> list[Any]:
        """A column, as Python has it."""
        read = self._arrow if self._parquet is None else self._parquet.read(columns=[column], use_threads=False)
        listed: list[Any] = read.column(column).to_pylist()
        return listed

    def strings(self, column: str) -> Iterable[str | None]:
        """A field of a struct column ("image.path"); Nones where there is no such field."""
        outer, _, inner = column.partition(".")
        kind = self.schema.field(outer).type
        if inner not in [kind.field(i).name for i in range(kind.num_fields)]:
            return [None] * self.rows
        read = self._arrow if self._parquet is None else self._parquet.read(columns=[column], use_threads=False)
        import pyarrow.compute as pc

        listed: list[str | None] = pc.struct_field(read.column(outer), inner).to_pylist()
        return listed

    def _read_group(self, group: int, column: str) -> Any:
        return self._parquet.read_row_group(group, columns=[column], use_threads=False).column(column)


@lru_cache(maxsize=4)
def _open_file(process: int, path: str) -> _Table:
    """The file, opened once in each process: a worker must not share its parent's place in it."""
    return _Table(path)


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises on damaged files."""
    try:
        from pyarrow import ArrowException
    except ImportError:
        return (OSError,)
    return (OSError, ArrowException, ValueError, KeyError)
