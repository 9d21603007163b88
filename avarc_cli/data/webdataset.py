"""WebDataset: images and their labels in tar files, read in place through the members' offsets."""

from __future__ import annotations

import io
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from avarc_cli.data import imagenet_val as truth
from avarc_cli.data.folders import IMAGE_SUFFIXES
from avarc_cli.data.image_source import EMPTY
from avarc_cli.data.listing import Listing, name_positions, number_classes, numbered_classes, settle
from avarc_cli.data.tar import DamagedTar, Member, Scan
from avarc_cli.errors import UnreadableImage, UsageError

CLASS_LISTS = ("classnames.txt", "classes.txt")  # beside the shards or above: a name a line, in the order of numbers
JSON_NAMES = ("synset", "wnid", "class_name", "label_name", "class")  # fields of a .json that may name the class
JSON_NUMBERS = ("label", "cls", "class_id", "class")
LABEL_BYTES = 1 << 20  # of a .cls, .json or .txt; more is something else
CUT = "the tar ends within it"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


@dataclass(frozen=True, eq=False)
class Members:
    """Pictures in tar files. shards: paths; shard (N,) int32, offset, size (N,) int64: where each one's bytes are."""

    shards: tuple[str, ...]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    def open(self, row: int) -> BinaryIO:
        size = int(self.size[row])
        with open(self.shards[self.shard[row]], "rb", buffering=0) as file:
            there = os.fstat(file.fileno()).st_size
            if self.offset[row] + size > there:  # asked before reading: a damaged size may be absurd
                raise UnreadableImage(f"cannot read {self.where(row)}", f"{CUT}, at byte {there:,}")
            return io.BytesIO(os.pread(file.fileno(), size, int(self.offset[row])))

    def where(self, row: int) -> str:
        return f"byte {self.offset[row]:,} of {self.shards[self.shard[row]]}"

    def take(self, rows: np.ndarray) -> Members:
        return Members(self.shards, self.shard[rows], self.offset[rows], self.size[rows])

    def broken(self) -> Iterator[tuple[int, str]]:
        ends = np.array([os.path.getsize(path) for path in self.shards])[self.shard]
        for row in np.flatnonzero((self.size == 0) | (self.offset + self.size > ends)).tolist():
            yield row, EMPTY if self.size[row] == 0 else CUT


@dataclass
class _Samples:
    """What is found while shards are scanned: an entry an image, labels as texts that are kept once."""

    names: list[str] = field(default_factory=list)
    shard: array[int] = field(default_factory=lambda: array("i"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    labels: list[str | None] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, shard: int, image: Member, parts: dict[str, str]) -> None:
        self.names.append(name)
        self.shard.append(shard)
        self.offset.append(image.offset)
        self.size.append(image.size)
        label, text = parts.get("cls") or parts.get("json"), parts.get("txt")
        self.labels.append(None if label is None else self.kept.setdefault(label, label))
        self.texts.append(None if text is None else self.kept.setdefault(text, text))

    def pictures(self, shards: Sequence[str]) -> Members:
        arrays = (np.array(column) for column in (self.shard, self.offset, self.size))
        return Members(tuple(shards), *arrays)


def open_shards(folder: str, shards: Sequence[str], wanted: str | None) -> Listing:
    """The images in tar files, shard by shard in the order given, in the order they have there.

    A sample is `<key>.jpg|png|webp|...` with its label in `<key>.cls` (a number or a name), `.json` or `.txt`. Tar
    files without any of these have the folders in them as classes.

    Args:
        folder: what shards' names are relative to. wanted: as open_folder.
    Raises: UsageError for a tar that is compressed or damaged, and as listing.settle. One that is cut is noted: its
        last member is an unreadable image.
    """
    samples = _Samples()
    for number, shard in enumerate(shards):
        prefix = f"{shard}/" if len(shards) > 1 else ""
        _scan(os.path.join(folder, shard), number, prefix, samples)
    pictures = samples.pictures([os.path.join(folder, shard) for shard in shards])
    labels, classes, notes = _labels(samples, os.path.join(folder, shards[0]), wanted)
    layout = f"{len(shards)} tar {'files' if len(shards) > 1 else 'file'}"
    listing = Listing(pictures, samples.names, labels, classes, "", layout, (*samples.notes, *notes))
    return settle(listing, wanted, os.path.join(folder, os.path.splitext(shards[0])[0]))


def _scan(path: str, number: int, prefix: str, samples: _Samples) -> None:
    """Add the samples of one shard. Members of a sample follow each other; a second image begins a new one."""
    _refuse_compressed(path)
    scan = Scan(path)
    key, image, parts = "", None, dict[str, str]()
    try:
        with open(path, "rb", buffering=0) as file:
            for member in scan:
                folder, base = os.path.split(member.name)
                stem, _, suffix = base.partition(".")
                kind = suffix.rpartition(".")[2].lower()
                is_image = f".{kind}" in IMAGE_SUFFIXES
                if base.startswith(".") or not (is_image or kind in ("cls", "json", "txt")):
                    continue
                sample = os.path.join(folder, stem)
                if sample != key or (is_image and image):
                    if image:
                        samples.add(prefix + image.name, number, image, parts)
                    key, image, parts = sample, None, {}
                if is_image:
                    image = member
                elif member.size <= LABEL_BYTES:
                    text = os.pread(file.fileno(), member.size, member.offset).decode("utf-8", "replace").strip()
                    parts[kind] = _json_label(text) if kind == "json" else text
    except DamagedTar as error:
        fix = "copy or download it again, or name the other files without it"
        raise UsageError(f"'{path}' is not a readable tar", str(error), fix) from None
    if image:
        samples.add(prefix + image.name, number, image, parts)
    if not scan.complete:
        samples.notes.append(f"'{path}' ends without an end mark: it may have been cut")


def _refuse_compressed(path: str) -> None:
    with open(path, "rb") as file:
        kind = COMPRESSED.get(file.read(2))
    if kind:
        raise UsageError(f"'{path}' is compressed ({kind})", "its members have no offsets to read at", "uncompress it")


def _json_label(text: str) -> str:
    """The class name, else the class number, that a sample's JSON tells; "" for none."""
    try:
        values = json.loads(text)
    except ValueError:
        return ""
    if not isinstance(values, dict):
        return ""
    named = (values[name] for name in JSON_NAMES if isinstance(values.get(name), str))
    numbered = (str(values[name]) for name in JSON_NUMBERS if isinstance(values.get(name), (int, str)))
    return next(named, "") or next(numbered, "")


def _labels(samples: _Samples, first: str, wanted: str | None) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
    """Labels, class names and notes."""
    notes: tuple[str, ...] = ()
    told = samples.labels
    if not any(told) and any(samples.texts):
        different = len(set(samples.texts))
        if 2 * different <= len(samples.texts):
            told = samples.texts
        else:
            notes = (f"the .txt files hold {different:,} different texts: not taken for class names",)
    if not any(told) and truth.is_flat(samples.names):
        told, file = truth.read_truth(os.path.dirname(first), samples.names)
        notes += (f"labels from {file}" if file else f"these validation images have no labels: {truth.HOW}",)
    if not any(told):
        told = [os.path.basename(os.path.dirname(name)) or None for name in samples.names]
        told = [None if name and name.endswith(".tar") else name for name in told]  # the shard is no class
    labels, classes = number_classes(name or None for name in told)
    if classes and all(name.isdecimal() for name in classes):
        classes, more = _named(classes, first, wanted)
        notes += more
    return labels, classes, notes


def _named(numbers: list[str], first: str, wanted: str | None) -> tuple[list[str], tuple[str, ...]]:
    """Names of class numbers, from a list beside the shards, or as the dataset has them, and notes."""
    beside = Path(first).parent
    lists = [place / name for place in (beside, beside.parent) for name in CLASS_LISTS]
    path = next((place for place in lists if place.is_file()), None)
    if path is None:
        names, taken_for = numbered_classes(numbers, wanted, os.path.splitext(first)[0])
        return names, (f"labels are numbers, taken for {taken_for}",)
    try:
        listed = [line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the class names in '{path}'", str(error)) from error
    if max(map(int, numbers)) >= len(listed):
        why = f"it has {len(listed)} names, the labels go up to {max(map(int, numbers))}"
        raise UsageError(f"'{path}' does not name every class", why, "one name a line, in the order of the numbers")
    names, notes = name_positions(listed)
    return [names[int(number)] for number in numbers], (f"class names from {path}", *notes)
