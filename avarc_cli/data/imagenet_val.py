"""Labels of ImageNet's validation images in a flat folder, from the label files that commonly accompany them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from avarc_cli.data.labels import imagenet1k
from avarc_cli.errors import UsageError

FILE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\b", re.IGNORECASE)
KAGGLE = "LOC_val_solution.csv"  # lines "ImageId,PredictionString"; the second begins with the synset
SYNSETS = "imagenet_2012_validation_synset_labels.txt"  # one synset per line, in the order of the images
CAFFE = "val.txt"  # lines "file name, index": indices from 0, of the sorted synsets
DEVKIT = "ILSVRC2012_validation_ground_truth.txt"  # one class number per line, from 1, in the devkit's own order
DEVKIT_CLASSES = ("map_clsloc.txt", "meta.mat")  # files that define this order
PARENTS = ("", "..", "../..")  # folders to search, relative to that of the images
CHILDREN = ("", "data", "devkit/data", "ILSVRC2012_devkit_t12/data")  # relative to each of those
USABLE = f"put {KAGGLE}, {SYNSETS}, {CAFFE}, or {DEVKIT} with {' or '.join(DEVKIT_CLASSES)}, beside the images"
NO_LABELS = f"these ImageNet validation images have no labels: {USABLE}"


def is_flat(names: Sequence[str]) -> bool:
    """Whether these are validation images, and not in folders."""
    return bool(names) and all(map(FILE_NAME.match, names))


def read_labels(folder: str, names: Sequence[str]) -> tuple[list[str | None], str]:
    """Read the labels of validation images, which are identified by the number in their names.

    Args:
        folder: that of the images. The label file is searched here, in the two folders above, and in a devkit there.
        names: (N,) names of the images.
    Returns: (N,) synsets, and the label file; Nones and "" if there is no such file.
    Raises: UsageError for a file that cannot be read, contains unknown classes, or lacks the devkit's class order.
    """
    path = next(filter(None, (_find(folder, name) for name in (KAGGLE, SYNSETS, DEVKIT, CAFFE))), None)
    if path is None:
        return [None] * len(names), ""
    readers = {KAGGLE: _read_kaggle, SYNSETS: _read_synsets, DEVKIT: _read_devkit, CAFFE: _read_caffe}
    synsets = readers[path.name](path)
    return [synsets.get(_number(name)) for name in names], str(path)


def _find(folder: str, name: str) -> Path | None:
    candidates = (Path(folder, parent, child, name) for parent in PARENTS for child in CHILDREN)
    return next((path for path in candidates if path.is_file()), None)


def _number(name: str) -> int:
    found = FILE_NAME.match(os.path.basename(name))
    return int(found[1]) if found else -1


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the labels in '{path}'", str(error)) from error
    return [line for line in lines if line]


def _check_synset(synset: str, path: Path, line: str) -> str:
    """Return the synset. Raises: UsageError with the line of the file if it is not one of ImageNet-1k."""
    if synset not in imagenet1k().ids:
        raise UsageError(
            f"'{path}' does not label ImageNet",
            f"'{line[:80]}' does not contain a class of ImageNet-1k",
            f"replace the file: {USABLE}",
        )
    return synset


# The readers return the synset of each image number.


def _read_kaggle(path: Path) -> dict[int, str]:
    rows = [line.partition(",") for line in _lines(path) if FILE_NAME.match(line)]
    return {_number(name): _check_synset(boxes.partition(" ")[0], path, name + "," + boxes) for name, _, boxes in rows}


def _read_synsets(path: Path) -> dict[int, str]:
    return {number: _check_synset(line, path, line) for number, line in enumerate(_lines(path), start=1)}


def _read_caffe(path: Path) -> dict[int, str]:
    ids = imagenet1k().ids
    synsets = {}
    for line in _lines(path):
        name, _, label = line.replace("\t", " ").rpartition(" ")
        in_range = label.isdecimal() and int(label) < len(ids)
        synsets[_number(name)] = ids[int(label)] if in_range else _check_synset(label, path, line)
    return synsets


def _read_devkit(path: Path) -> dict[int, str]:
    order = _devkit_classes(path)
    synsets = {}
    for number, line in enumerate(_lines(path), start=1):
        synset = order.get(int(line), "") if line.isdecimal() else ""
        synsets[number] = _check_synset(synset, path, line)
    return synsets


def _devkit_classes(ground_truth: Path) -> dict[int, str]:
    """The synset of each class number of the devkit, from a file beside the ground truth."""
    for name in DEVKIT_CLASSES:
        path = _find(str(ground_truth.parent), name)
        if path is not None:
            pairs = _read_map(path) if name.endswith(".txt") else _read_meta(path)
            return {number: _check_synset(synset, path, f"{synset} {number}") for synset, number in pairs}
    raise UsageError(
        f"'{ground_truth}' needs a file that defines its class numbers",
        "they follow the devkit's own order, not the sorted order that models use",
        f"put the devkit's {' or '.join(DEVKIT_CLASSES)} beside it",
    )


def _read_map(path: Path) -> list[tuple[str, int]]:
    """Lines like `n02119789 1 kit_fox`."""
    rows = [line.split() for line in _lines(path)]
    if not all(len(row) >= 2 and row[1].isdecimal() for row in rows):
        raise UsageError(f"cannot read '{path}'", "its lines should be like: n02119789 1 kit_fox")
    return [(row[0], int(row[1])) for row in rows]


def _read_meta(path: Path) -> list[tuple[str, int]]:
    """The devkit's MATLAB table `synsets`: one row per synset; those without children are the classes."""
    try:
        from scipy.io import loadmat
    except ImportError:
        fix = "pip install scipy, or put the devkit's map_clsloc.txt beside it"
        raise UsageError(f"reading '{path}' needs scipy", "it is a MATLAB file", fix) from None
    try:
        rows = loadmat(path, squeeze_me=True)["synsets"]
        return [(str(row["WNID"]), int(row["ILSVRC2012_ID"])) for row in rows if int(row["num_children"]) == 0]
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise UsageError(f"cannot read '{path}'", f"it is not a devkit's meta.mat: {error}") from error
