"""Image datasets in Parquet and Arrow files, as on the Hugging Face hub: a column of encoded images, one of classes.

pyarrow is optional: `pip install 'avarc[data]'`.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

from avarc_cli.data.arrow_messages import claimed_bytes
from avarc_cli.data.class_numbers import interpret_numbers, unique_names
from avarc_cli.data.image_source import check_inside, open_regular, stamp_files
from avarc_cli.data.label_fields import class_text
from avarc_cli.data.scanned_input import ScannedInput, number_classes, resolve_dataset
from avarc_cli.data.table_columns import Columns, find_columns, folder_columns
from avarc_cli.errors import UnreadableImage, UsageError, first_line
from avarc_cli.words import counted

SUFFIXES = (".parquet", ".arrow")
CACHED_GROUPS = 2  # row groups in memory, per process and file
CACHED_FILES = 4  # open files per process
SMALL = 2**26  # bytes that a table of any size may take when it is uncompressed
MAX_COMPRESSION = 32  # times the file that a larger table may take; encoded images hardly get smaller
_reading = threading.Lock()  # pyarrow's readers must not be used by several threads at once


@dataclass(frozen=True, eq=False)
class TableImages:
    """Encoded images in the rows of tables."""

    files: tuple[str, ...]  # paths of the tables
    folders: tuple[str, ...]  # of each file: what paths in it must not lead out of; "" for any path
    file: np.ndarray  # (N,) int32, index into files
    row: np.ndarray  # (N,) int64, row in that file
    column: str  # of the images
    beside: tuple[str, ...] = ()  # (N,) files beside the tables that may hold the images; empty: the tables hold all

    def __len__(self) -> int:
        return len(self.row)

    def open(self, row: int) -> BinaryIO:
        path = self.files[self.file[row]]
        try:
            with _reading:
                value = _open_table(os.getpid(), path, os.stat(path).st_mtime_ns).value(self.column, int(self.row[row]))
        except _errors() as error:
            raise UnreadableImage(f"cannot read {self.location(row)}", first_line(error)) from error
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):  # the image is a file of its own, beside the table
                return self._open_beside(path, value["path"], self.folders[self.file[row]])
            value = value.get("bytes")
        if value is None:
            raise UnreadableImage(f"cannot read {self.location(row)}", "the row holds no picture")
        return io.BytesIO(value)

    def _open_beside(self, table: str, name: str, folder: str) -> BinaryIO:
        path = _beside(table, name)
        if folder:
            why = f"its table names '{name}', outside of the folder; --allow-outside reads such files"
            check_inside(path, folder, why)
        return open_regular(path)

    def location(self, row: int) -> str:
        return f"row {self.row[row]:,} of {self.files[self.file[row]]}"

    def take(self, rows: np.ndarray) -> TableImages:
        beside = tuple(self.beside[row] for row in rows.tolist()) if self.beside else ()
        return replace(self, file=self.file[rows], row=self.row[rows], beside=beside)

    def find_unreadable(self) -> Iterator[tuple[int, str]]:
        yield from ()  # nothing is known without reading

    def stamps(self) -> np.ndarray:
        stamps_N2: np.ndarray = stamp_files(self.files)[self.file]
        if self.beside:  # of an image that may be in either file, both count
            stamps_N2 = stamps_N2 + stamp_files(self.beside)
        return stamps_N2


@dataclass
class _Rows:
    """What is collected while tables are scanned."""

    columns: Columns | None = None  # the same in every file
    names: list[str] = field(default_factory=list)  # (N,)
    labels: list[Any] = field(default_factory=list)  # (N,) values of the label column
    sizes: list[int] = field(default_factory=list)  # rows of each file
    beside: list[str] = field(default_factory=list)  # (N,) files that may hold the images, if a table lacks any

    def add(self, path: str, prefix: str, first_path: str) -> None:
        """Add the rows of one file. Raises: UsageError."""
        try:
            table = _Table(path)
            columns = find_columns(table.schema, path)
            if self.columns not in (None, columns):
                raise UsageError(f"'{path}' has other columns than '{first_path}'", fix="name files of one dataset")
            self.columns = columns
            files = list(table.strings(f"{columns.image}.path")) if columns.is_struct else [None] * table.num_rows
            if columns.is_struct and table.may_lack(columns.image):
                self.beside += [""] * (len(self.names) - len(self.beside))
                self.beside += [_beside(path, name) if isinstance(name, str) and name else "" for name in files]
            if columns.label and not columns.in_folders:
                self.labels += table.values(columns.label)
            else:
                self.labels += [folder_columns(path).get(columns.label)] * table.num_rows
        except _errors() as error:
            fix = "copy or download it again"
            raise UsageError(f"cannot read the table '{path}'", first_line(error), fix) from error
        shown = (f"/{os.path.basename(file)}" if isinstance(file, str) and file else "" for file in files)
        self.names += [f"{prefix}{row:07d}{name}" for row, name in enumerate(shown)]
        self.sizes.append(table.num_rows)

    def images(self, paths: Sequence[str], folders: Sequence[str], column: str) -> TableImages:
        file = np.repeat(np.arange(len(paths), dtype=np.int32), self.sizes)
        row = np.concatenate([np.arange(size, dtype=np.int64) for size in self.sizes])
        beside = (*self.beside, *[""] * (len(row) - len(self.beside))) if self.beside else ()
        return TableImages(tuple(paths), tuple(folders), file, row, column, beside)


def _beside(table: str, name: str) -> str:
    """The file that a table names instead of holding an image."""
    return os.path.join(os.path.dirname(table), name)


def open_tables(
    folder: str, files: Sequence[str], requested: str | None, *, allow_outside: bool = False
) -> ScannedInput:
    """List the images in the rows of Parquet or Arrow files, in the given order, without reading any image.

    Args:
        folder: what the names of the files are relative to.
        requested: as in open_folder.
        allow_outside: read images of paths that lead out of `folder`, or of a table's own folder if that is "".
    Raises: UsageError if pyarrow is missing, a file cannot be read or has no column of images, or files differ in
        their columns; and as resolve_dataset.
    """
    paths = [os.path.join(folder, name) for name in files]
    rows = _Rows()
    for name, path in zip(files, paths, strict=True):
        rows.add(path, f"{name}/" if len(files) > 1 else "", paths[0])
    columns = rows.columns
    assert columns is not None, "called without files"
    folders = ["" if allow_outside else folder or os.path.dirname(path) or "." for path in paths]
    images = rows.images(paths, folders, columns.image)
    stem = os.path.join(folder, os.path.basename(files[0]).partition("-")[0])  # validation-00000-of-00014.parquet
    labels, classes, notes = _number_labels(rows.labels, columns, requested, stem)
    kind = os.path.splitext(files[0])[1][1:]
    layout = f"{counted(len(files), f'{kind} file')}, images in column '{columns.image}'"
    in_folders = f"the names of folders ({columns.label}=...)"
    if columns.label:
        layout += f", classes in {in_folders if columns.in_folders else repr(columns.label)}"
        layout += "" if classes else ", all of them unknown"
    if columns.unused:
        notes += (f"columns that are not used as classes: {', '.join(columns.unused)}",)
    return resolve_dataset(ScannedInput(images, rows.names, labels, classes, "", layout, notes), requested, stem)


def _number_labels(
    values: list[Any], columns: Columns, requested: str | None, path: str
) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
    """Labels, class names and notes. Negative numbers, nulls and NaN mean unknown, as on the hub and in pandas."""
    if any(isinstance(value, float) and value % 1 > 0 for value in values):
        note = f"column '{columns.label}' contains fractions: not used as classes"
        labels, classes = number_classes([None] * len(values))
        return labels, classes, (note,)
    labels, classes = number_classes(map(class_text, values))
    if not classes or not all(name.isdecimal() for name in classes):
        return labels, classes, ()
    if not columns.class_names:
        names, how = interpret_numbers(classes, requested, path)
        return labels, names, (f"labels are numbers, taken for {how}",)
    largest, known = max(map(int, classes)), len(columns.class_names)
    if largest >= known:
        why = f"the largest in column '{columns.label}' is {largest}, its schema has {known} class names"
        fix = "name files of one dataset; if they are, one is corrupt"
        raise UsageError(f"labels in '{path}' have no class name", why, fix)
    names, notes = unique_names(columns.class_names)
    return labels, [names[int(number)] for number in classes], notes


class _Table:
    """An open file. Raises: the exceptions listed by `_errors`."""

    def __init__(self, path: str) -> None:
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise UsageError(
                f"reading '{path}' needs pyarrow", "it is not installed", "pip install 'avarc[data]'"
            ) from None
        self._parquet: Any = None
        self._arrow: Any = None
        if path.lower().endswith(".parquet"):
            self._parquet = pq.ParquetFile(path, page_checksum_verification=True)
            self.schema, self.num_rows = self._parquet.schema_arrow, int(self._parquet.metadata.num_rows)
            groups = range(self._parquet.metadata.num_row_groups)
            self._starts = np.cumsum([0, *(self._parquet.metadata.row_group(g).num_rows for g in groups)])
            self._group = lru_cache(maxsize=CACHED_GROUPS)(self._read_group)
            data = sum(self._parquet.metadata.row_group(g).total_byte_size for g in groups)
            _check_claims(path, rows=self.num_rows, uncompressed=data)
            return
        self._arrow = _read_arrow(path)
        self.schema, self.num_rows = self._arrow.schema, int(self._arrow.num_rows)
        _check_claims(path, rows=self.num_rows)

    def value(self, column: str, row: int) -> Any:
        """One value of a column, as a Python object."""
        if self._parquet is None:
            return self._arrow.column(column)[row].as_py()
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._group(group, column)[row - int(self._starts[group])].as_py()

    def values(self, column: str) -> list[Any]:
        """A whole column, as Python objects."""
        values: list[Any] = self._read(column).column(column).to_pylist()
        return values

    def strings(self, column: str) -> Iterable[str | None]:
        """A field of a struct column, such as "image.path"; Nones if there is no such field."""
        outer, _, inner = column.partition(".")
        kind = self.schema.field(outer).type
        if inner not in [kind.field(i).name for i in range(kind.num_fields)]:
            return [None] * self.num_rows
        import pyarrow.compute as pc

        values: list[str | None] = pc.struct_field(self._read(column).column(outer), inner).to_pylist()
        return values

    def may_lack(self, column: str) -> bool:
        """Whether the bytes of some image in a struct column may be missing."""
        if self._parquet is None:
            return any(chunk.field("bytes").null_count for chunk in self._arrow.column(column).chunks)
        metadata, name = self._parquet.metadata, f"{column}.bytes"
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            parts = [group.column(i) for i in range(group.num_columns)]
            statistics = next((part.statistics for part in parts if part.path_in_schema == name), None)
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                return True
        return False

    def _read(self, column: str) -> Any:
        """A table that contains at least this column."""
        return self._arrow if self._parquet is None else self._parquet.read(columns=[column], use_threads=False)

    def _read_group(self, group: int, column: str) -> Any:
        return self._parquet.read_row_group(group, columns=[column], use_threads=False).column(column)


def _check_claims(path: str, *, rows: int = 0, uncompressed: int = 0) -> None:
    """Refuse a file that claims what it can hardly hold, before room is made for that.

    Args:
        uncompressed: bytes of its compressed parts.
    Raises: ValueError.
    """
    size = os.path.getsize(path)
    if not 0 <= rows <= size:
        raise ValueError(f"it claims {rows:,} rows, in a file of {size:,} bytes")
    if uncompressed > max(SMALL, MAX_COMPRESSION * size):
        raise ValueError(f"it claims {uncompressed:,} bytes of data, in a file of {size:,}")


def _read_arrow(path: str) -> Any:
    """The table in an Arrow stream or file; images stay on disk until they are read.

    Raises: pyarrow.ArrowInvalid also for offsets that lead out of the file, which would end the process when used.
    """
    import pyarrow as pa

    mapped = pa.memory_map(path)
    _check_claims(path, uncompressed=claimed_bytes(mapped))
    mapped.seek(0)
    try:
        stream = pa.ipc.open_stream(mapped)
        schema, batches = stream.schema, iter(stream)
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(mapped)
        schema, batches = file.schema, map(file.get_batch, range(file.num_record_batches))
    checked = []
    for batch in batches:
        batch.validate(full=True)
        checked.append(batch)
    return pa.Table.from_batches(checked, schema)


@lru_cache(maxsize=CACHED_FILES)
def _open_table(process: int, path: str, modified: int) -> _Table:
    """The open file, in its present state. Each process opens its own: they must not share a file position."""
    return _Table(path)


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises on corrupt files."""
    try:
        from pyarrow import ArrowException
    except ImportError:
        return (OSError,)
    return (OSError, ArrowException, ValueError, KeyError)
