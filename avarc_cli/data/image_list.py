"""Lists of images and their classes: text with tabs, CSV, JSON lines, and MXNet's .lst."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from avarc_cli import strict_json
from avarc_cli.data.image_names import is_image
from avarc_cli.data.image_source import ImageFiles
from avarc_cli.data.label_fields import CLASS_FIELDS, PATH_FIELDS, class_text, find_fields, scalar_class
from avarc_cli.data.scanned_input import ScannedInput, number_classes, resolve_dataset
from avarc_cli.errors import UsageError, shorten_list

LIST_SUFFIXES = frozenset({".csv", ".jsonl", ".lst", ".tsv", ".txt"})
TABLES = (".csv", ".jsonl")  # whose columns have names
LIST = "list of image files"  # layout
MXNET = re.compile(r"\d+\t-?\d+(\.\d+)?\t[^\t]+")  # index, class number, path
FORM = "write path<TAB>class, or path alone, on each line"
HEADER = "begin it with a line like file_name,label"


@dataclass(frozen=True)
class ListedImages:
    """The images that a list names."""

    paths: list[str]  # (N,) as written
    classes: list[str | None]  # (N,) None if unknown
    column: str = ""  # of the classes, "" without one
    columns: tuple[str, ...] = ()  # all of them, if they have names


def open_list(path: Path, dataset: str | None) -> ScannedInput:
    """List the images that a text file names, in its order; paths are relative to the file.

    Args:
        dataset: as in open_folder.
    Raises: UsageError as read_list and resolve_dataset; OSError.
    """
    listed = read_list(path)
    labels, classes = number_classes(listed.classes)
    layout, notes = LIST, tuple[str, ...]()
    if listed.columns:
        layout = f"{LIST}, classes in column '{listed.column}'" if listed.column else f"{LIST}, without classes"
        used = {listed.column, *find_fields(listed.columns, PATH_FIELDS)}
        others = [name for name in listed.columns if name not in used]
        notes = (f"columns that are not used: {shorten_list(others)}",) if others else ()
    names = [PurePosixPath(name).as_posix() for name in listed.paths]
    images = ImageFiles(path.parent.as_posix(), listed.paths)
    return resolve_dataset(ScannedInput(images, names, labels, classes, layout=layout, notes=notes), dataset, str(path))


def read_list(path: Path) -> ListedImages:
    """Read a list of images, in the form that its suffix and its first line tell.

    Raises: UsageError for a table without a column of images, JSON lines that are none, and lines with more columns
        than a path and a class; OSError.
    """
    # surrogateescape preserves names that are not UTF-8. splitlines() would also split at characters that names may
    # contain.
    text = path.read_text("utf-8-sig", errors="surrogateescape")
    if "\0" in text:
        raise UsageError(f"'{path}' is not text in UTF-8", "it contains null characters, as UTF-16 does", "convert it")
    if path.suffix.lower() == ".jsonl":
        return _read_records(list(_json_lines(text, path)), path)
    if path.suffix.lower() == ".csv":
        return _read_csv(text, path)
    return _read_lines(text, path)


def _read_lines(text: str, path: Path) -> ListedImages:
    """Lines of path<TAB>class; also MXNet's, and those of a table that begins with the names of its columns."""
    lines = [line for line in text.split("\n") if line.strip()]
    if lines and all(map(MXNET.fullmatch, lines)):
        rows = [line.split("\t") for line in lines]
        columns = ("index", "label", "path")
        return ListedImages([row[2] for row in rows], [class_text(row[1]) for row in rows], "label", columns)
    header = lines[0].split("\t") if lines else []
    if len(header) > 1 and find_fields(header, PATH_FIELDS) and find_fields(header, CLASS_FIELDS):
        return _read_csv(text, path, "\t")
    paths: list[str] = []
    classes: list[str | None] = []
    for number, line in enumerate(lines, start=1):
        name, _, rest = line.partition("\t")
        class_name, tab, _ = rest.strip().partition("\t")
        if tab:
            fix = f"{FORM}; index<TAB>class number<TAB>path, as MXNet has it, is read as well"
            raise UsageError(f"'{path}' is not a list of images", f"line {number} has more than two columns", fix)
        if name.strip():
            paths.append(name)
            classes.append(class_name or None)
    return ListedImages(paths, classes)


def _read_csv(text: str, path: Path, delimiter: str = ",") -> ListedImages:
    """A table with a line of column names, or one of paths and classes alone."""
    first = text.partition("\n")[0]
    if delimiter == "," and "," not in first:
        delimiter = next((other for other in ";\t" if other in first), ",")
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise UsageError(f"cannot read '{path}'", str(error), HEADER) from None
    if rows and is_image(rows[0][0]) and len(rows[0]) <= 2:
        return ListedImages([row[0] for row in rows], [class_text("".join(row[1:2])) for row in rows])
    header = [name.strip() for name in rows[0]] if rows else []
    return _read_records([dict(zip(header, row, strict=False)) for row in rows[1:]], path, header)


def _read_records(records: Sequence[dict[str, object]], path: Path, header: Sequence[str] = ()) -> ListedImages:
    columns = tuple(dict.fromkeys([*header, *(name for record in records for name in record)]))
    paths = [name for name in columns if records and all(is_image(str(record.get(name))) for record in records)]
    image = next(iter([*find_fields(columns, PATH_FIELDS), *paths]), None)
    if image is None:
        has = shorten_list(columns) if columns else "missing"
        why = f"no column is called {', '.join(PATH_FIELDS[:4])} or the like; its columns are {has}"
        raise UsageError(f"'{path}' is not a list of images", why, HEADER)
    column = next((name for name in find_fields(columns, CLASS_FIELDS) if name != image), "")
    named = [record for record in records if isinstance(record.get(image), str) and record[image]]
    return ListedImages([str(r[image]) for r in named], [scalar_class(r.get(column)) for r in named], column, columns)


def _json_lines(text: str, path: Path) -> Iterator[dict[str, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                record = strict_json.parse(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise UsageError(f"cannot read '{path}'", f"line {number} is not a JSON object", "write one a line")
            yield record
