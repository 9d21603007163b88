"""Which format a source has, and what its class numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from avarc_cli.data.class_numbers import interpret_numbers
from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.known import NO_DATASET, get_dataset
from avarc_cli.data.labels import UNKNOWN
from avarc_cli.errors import AvarcError, CacheError, UnreadableImage, UsageError, shorten_list
from avarc_cli.tokens.interchange import arrays, json_lines, llamagen, numbered, randar
from avarc_cli.tokens.interchange.codes import Codes
from avarc_cli.words import counted

FORMATS = "a folder of codes by LlamaGen or RandAR, JSON lines (.jsonl), or an array (.npy, .npz)"
OF_FILES = (".jsonl", ".npy", ".npz")
MAX_CLASSES = 2**20
"""Class numbers are below it where nothing names the classes."""


def check_source(path: Path) -> None:
    """Raises: UsageError for a path that is not of any format, by the names in it; AvarcError; CacheError."""
    if not path.exists():
        raise UsageError(f"'{path}' does not exist", fix=f"name {FORMATS}")
    if path.is_dir():
        with _readable(path):
            _recognize(path)
    elif path.suffix.lower() not in OF_FILES:
        raise UsageError(f"cannot import '{path}'", f"there is no format '{path.suffix}'", f"name {FORMATS}")


def open_codes(path: Path, vocab_size: int, views: int | None) -> Codes:
    """List the tokens of a source.

    Args:
        vocab_size: tokens are below it.
        views: lines of one image, in JSON lines; None for one. Other formats tell the number themselves.
    Raises: UsageError for what has no known format, and for `views` where the format has no use for them; CacheError
        naming the first file or line that is missing or wrong.
    """
    check_source(path)
    suffix = "" if path.is_dir() else path.suffix.lower()
    if views is not None and suffix != ".jsonl":
        raise UsageError("no use for --views", f"'{path}' tells how many views an image has", "leave out --views")
    with _readable(path):
        if suffix == ".jsonl":
            codes = json_lines.open_codes(path, vocab_size, views or 1)
        elif suffix:
            codes = arrays.open_npy(path) if suffix == ".npy" else arrays.open_npz(path)
        else:
            folder, open_folder = _recognize(path)
            codes = open_folder(folder)
    if not len(codes):
        raise CacheError(f"there is nothing to import in '{path}'", f"it holds {codes.kind}, without an image")
    return codes


def _recognize(path: Path) -> tuple[Path, Callable[[Path], Codes]]:
    """The folder of codes that this is, or the only one in it that is called ..._codes, and what opens it.

    Raises: UsageError when there is none or several; OSError.
    """
    path = path if path.name not in ("", "..") else path.resolve()  # its name counts
    inner = sorted(each for each in path.iterdir() if each.name.endswith(llamagen.CODES) and each.is_dir())
    if len(inner) > 1:
        raise UsageError(f"'{path}' has several folders of codes", shorten_list([f.name for f in inner]), "name one")
    folder = inner[0] if inner else path
    if numbered.numbered_folders(folder):
        return folder, randar.open_codes
    if folder.name.endswith(llamagen.CODES):
        return folder, llamagen.open_codes
    why = f"'{folder}' is not called ...{llamagen.CODES}, nor are its sub-folders called after class numbers"
    raise UsageError(f"'{path}' holds no codes that are known", why, f"name {FORMATS}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises: AvarcError in place of an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise AvarcError(f"cannot read '{path}'", error.strerror or str(error)) from error
    except UnreadableImage as error:
        raise AvarcError(f"cannot read '{path}'", error.why) from error


def as_images(codes: Codes, source: str, dataset: str | None, class_names: Sequence[str] | None) -> ImageSet:
    """The images whose tokens these are, with their classes.

    Args:
        source: as the user wrote it.
        dataset: the known dataset whose class numbers the labels are; None or NO_DATASET for none.
        class_names: by class number; None where nothing names the classes: then they are called after their numbers.
    Raises: UsageError for an unknown dataset, numbers that it does not have, and names that occur twice; CacheError
        naming the first label that is out of range.
    """
    if class_names is not None and len(set(class_names)) < len(class_names):
        twice = next(name for name in class_names if class_names.count(name) > 1)
        raise UsageError("two classes have the same name", f"'{twice}'", "give one name a line, in the classes' order")
    top = len(class_names) if class_names is not None else MAX_CLASSES
    outside = np.flatnonzero((codes.labels < UNKNOWN) | (codes.labels >= top))
    if len(outside):
        row = int(outside[0])
        why = f"there are {counted(top, 'class')}, numbered from 0; -1 is for an unknown one"
        raise CacheError(f"'{codes.label_names(row)}' names class {codes.labels[row]}", why)
    labels, note = codes.labels, ""
    name = "" if dataset in (None, NO_DATASET) or class_names is not None else str(dataset)
    if name:
        labels, class_names, note = _of_dataset(codes.labels, name, source)
    elif class_names is None:
        class_names = [str(number) for number in range(int(codes.labels.max()) + 1)]
    return ImageSet(
        encoded=codes.encoded,
        labels=labels.astype(np.int32),
        class_names=tuple(class_names),
        source=source,
        names=codes.names,
        dataset=name,
        layout=codes.kind,
        notes=(note,) if note else (),
    )


def _of_dataset(numbers: np.ndarray, name: str, source: str) -> tuple[np.ndarray, Sequence[str], str]:
    """Labels (N,), the classes of a known dataset that they are indices of, and a note. Raises: UsageError."""
    known, distinct = get_dataset(name), np.unique(numbers[numbers >= 0])
    if known.has_own_classes:
        fix = "name them, one a line in the order of their numbers: --class-names FILE"
        raise UsageError(f"'{source}' has class numbers", f"{known.title} has no numbers for its classes", fix)
    words, how = interpret_numbers([str(number) for number in distinct.tolist()], name, source)
    new = np.full(int(numbers.max()) + 2, UNKNOWN)  # the last entry is for -1
    new[distinct] = [known.ids.index(word) for word in words]
    return new[numbers], known.ids, f"labels are {how}" if words else ""
