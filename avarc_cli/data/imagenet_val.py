"""Labels of ImageNet's validation images where these lie in one folder, from the files that people have beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from avarc_cli.data.known import SYNSET
from avarc_cli.data.labels import imagenet1k
from avarc_cli.errors import UsageError

VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\b")
KAGGLE = "LOC_val_solution.csv"  # ImageId,PredictionString: the first word of which is a synset
SYNSETS = "imagenet_2012_validation_synset_labels.txt"  # a synset a line, in the order of the images
CAFFE = "val.txt"  # file name and index in sorted order, from 0
DEVKIT = "ILSVRC2012_validation_ground_truth.txt"  # a number a line, from 1, in the devkit's own order of classes
DEVKIT_ORDER = ("map_clsloc.txt", "meta.mat")  # files that tell this order
BESIDE = ("", "..", "../..")
BELOW = ("", "data", "devkit/data", "ILSVRC2012_devkit_t12/data")
HOW = f"put {KAGGLE}, {SYNSETS}, {CAFFE}, or {DEVKIT} with {' or '.join(DEVKIT_ORDER)}, beside the images"


def is_flat(names: Sequence[str]) -> bool:
    """Whether these are validation images without class folders."""
    split = (os.path.split(name) for name in names)
    return bool(names) and all(
        VALIDATION.match(base) and not SYNSET.fullmatch(os.path.basename(folder)) for folder, base in split
    )


def read_truth(folder: str, names: Sequence[str]) -> tuple[list[str | None], str]:
    """The synset of each image, and the file that told; Nones and "" where there is no such file.

    Looked for in the folder, in those above it, and in a devkit beside. Images are known by their number.
    Raises: UsageError for a file that cannot be read, speaks of unknown classes, or lacks the devkit's order.
    """
    path = next(filter(None, (_find(folder, name) for name in (KAGGLE, SYNSETS, DEVKIT, CAFFE))), None)
    if path is None:
        return [None] * len(names), ""
    readers = {KAGGLE: _by_comma, SYNSETS: _by_line, DEVKIT: _by_devkit, CAFFE: _by_index}
    synsets = readers[path.name](path)
    return [synsets.get(_number(name)) for name in names], str(path)


def _find(folder: str, name: str) -> Path | None:
    places = (Path(folder, beside, below, name) for beside in BESIDE for below in BELOW)
    return next((place for place in places if place.is_file()), None)


def _number(name: str) -> int:
    found = VALIDATION.match(os.path.basename(name))
    return int(found[1]) if found else -1


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the labels in '{path}'", str(error)) from error
    return [line for line in lines if line]


def _known(synset: str, path: Path, line: str) -> str:
    if synset not in imagenet1k().ids:
        raise UsageError(
            f"'{path}' does not label ImageNet", f"'{line[:80]}' names no class of ImageNet-1k", f"replace it: {HOW}"
        )
    return synset


def _by_comma(path: Path) -> dict[int, str]:
    rows = [line.partition(",") for line in _lines(path) if VALIDATION.match(line)]
    return {_number(name): _known(boxes.partition(" ")[0], path, name + "," + boxes) for name, _, boxes in rows}


def _by_line(path: Path) -> dict[int, str]:
    return {number: _known(line, path, line) for number, line in enumerate(_lines(path), start=1)}


def _by_index(path: Path) -> dict[int, str]:
    ids = imagenet1k().ids
    synsets = {}
    for line in _lines(path):
        name, _, label = line.rpartition(" ")
        in_range = label.isdecimal() and int(label) < len(ids)
        synsets[_number(name)] = ids[int(label)] if in_range else _known(label, path, line)
    return synsets


def _by_devkit(path: Path) -> dict[int, str]:
    order = _devkit_order(path)
    synsets = {}
    for number, line in enumerate(_lines(path), start=1):
        synset = order.get(int(line), "") if line.isdecimal() else ""
        synsets[number] = _known(synset, path, line)
    return synsets


def _devkit_order(truth: Path) -> dict[int, str]:
    """Synset of each class number of the devkit, from a file beside the ground truth."""
    for name in DEVKIT_ORDER:
        path = _find(str(truth.parent), name)
        if path is not None:
            pairs = _read_map(path) if name.endswith(".txt") else _read_meta(path)
            return {number: _known(synset, path, f"{synset} {number}") for synset, number in pairs}
    raise UsageError(
        f"'{truth}' numbers the classes in the devkit's own order, which no file here tells",
        "it is not the sorted order that models use",
        f"put the devkit's {' or '.join(DEVKIT_ORDER)} beside it",
    )


def _read_map(path: Path) -> list[tuple[str, int]]:
    """Lines `n02119789 1 kit_fox`."""
    rows = [line.split() for line in _lines(path)]
    if not all(len(row) >= 2 and row[1].isdecimal() for row in rows):
        raise UsageError(f"cannot read '{path}'", "its lines should be like: n02119789 1 kit_fox")
    return [(row[0], int(row[1])) for row in rows]


def _read_meta(path: Path) -> list[tuple[str, int]]:
    """The devkit's MATLAB table `synsets`: a row a synset, of which those without children are the classes."""
    try:
        from scipy.io import loadmat
    except ImportError:
        fix = "pip install scipy, or put the devkit's map_clsloc.txt beside it"
        raise UsageError(f"reading '{path}' needs scipy", "it is a MATLAB file", fix) from None
    try:
        rows = loadmat(path, squeeze_me=True)["synsets"]
        return [(str(row["WNID"]), int(row["ILSVRC2012_ID"])) for row in rows if int(row["num_children"]) == 0]
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise UsageError(f"cannot read '{path}'", f"it is no devkit's meta.mat: {error}") from error
