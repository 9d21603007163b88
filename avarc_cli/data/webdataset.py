"""WebDataset: images and their labels in tar files, read in place by the byte offsets of the members."""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from avarc_cli.data import imagenet_val
from avarc_cli.data.class_numbers import interpret_numbers, unique_names
from avarc_cli.data.compressed import check_uncompressed
from avarc_cli.data.image_names import class_folder, classes_of_tars, is_wrapper, synset_of
from avarc_cli.data.image_source import EMPTY, stamp_files
from avarc_cli.data.scanned_input import ScannedInput, number_classes, resolve_dataset
from avarc_cli.data.tar import CorruptTar, Member, TarScanner
from avarc_cli.data.tar_samples import TarSamples, label_of
from avarc_cli.errors import UnreadableImage, UsageError
from avarc_cli.words import counted

CLASS_LISTS = ("classnames.txt", "classes.txt")  # beside the shards or in the folder above: class names, one per line
MAX_IMAGE_SIZE = 2**29  # bytes of an encoded image: the largest that is decoded (MAX_PIXELS), uncompressed
TRUNCATED = "the tar ends within it"


@dataclass(frozen=True, eq=False)
class TarImages:
    """Encoded images in tar files."""

    shards: tuple[str, ...]  # paths of the tar files
    shard: np.ndarray  # (N,) int32, index into shards
    offset: np.ndarray  # (N,) int64, bytes
    size: np.ndarray  # (N,) int64, bytes

    def __len__(self) -> int:
        return len(self.shard)

    def open(self, row: int) -> BinaryIO:
        size = int(self.size[row])
        with open(self.shards[self.shard[row]], "rb", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            if self.offset[row] + size > end:  # checked before reading: a corrupt size may be enormous
                raise UnreadableImage(f"cannot read {self.location(row)}", f"{TRUNCATED}, at byte {end:,}")
            if size > MAX_IMAGE_SIZE:
                raise UnreadableImage(f"cannot read {self.location(row)}", f"its {size:,} bytes are too many")
            return io.BytesIO(os.pread(file.fileno(), size, int(self.offset[row])))

    def location(self, row: int) -> str:
        return f"byte {self.offset[row]:,} of {self.shards[self.shard[row]]}"

    def take(self, rows: np.ndarray) -> TarImages:
        return TarImages(self.shards, self.shard[rows], self.offset[rows], self.size[rows])

    def find_unreadable(self) -> Iterator[tuple[int, str]]:
        ends = np.array([os.path.getsize(path) for path in self.shards])[self.shard]
        for row in np.flatnonzero((self.size == 0) | (self.offset + self.size > ends)).tolist():
            yield row, EMPTY if self.size[row] == 0 else TRUNCATED

    def stamps(self) -> np.ndarray:
        stamps_N2: np.ndarray = stamp_files(self.shards)[self.shard]
        return stamps_N2


@dataclass
class _Samples:
    """What is collected while shards are scanned, one entry per image. Arrays and shared texts keep it small."""

    names: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)  # of each shard: what its names begin with
    shard: array[int] = field(default_factory=lambda: array("i"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    labels: list[str | None] = field(default_factory=list)  # from .cls, .json, and others like .label
    texts: list[str | None] = field(default_factory=list)  # from .txt
    kinds: set[str] = field(default_factory=set)  # of files that the labels are from
    interned: dict[str, str] = field(default_factory=dict)  # each distinct label and text once
    notes: list[str] = field(default_factory=list)
    unused: dict[str, tuple[int, str]] = field(default_factory=dict)  # why members are not used -> number, the first

    def add(self, name: str, shard: int, image: Member, parts: dict[str, str]) -> None:
        """Add a sample; `parts` has the contents of its other files by suffix."""
        self.names.append(name)
        self.shard.append(shard)
        self.offset.append(image.offset)
        self.size.append(image.size)
        label, kind = label_of(parts)
        text = parts.get("txt")
        self.labels.append(self.interned.setdefault(label, label) or None)
        self.kinds.add(kind)
        self.texts.append(None if text is None else self.interned.setdefault(text, text))

    @property
    def inner_names(self) -> Iterator[str]:
        """The names in the tars."""
        return (name[len(self.prefixes[n]) :] for name, n in zip(self.names, self.shard, strict=True))

    def images(self, shards: Sequence[str]) -> TarImages:
        arrays = (np.array(column) for column in (self.shard, self.offset, self.size))
        return TarImages(tuple(shards), *arrays)


def open_shards(folder: str, shards: Sequence[str], requested: str | None) -> ScannedInput:
    """List the images in tar files, shard by shard in the given order, within a shard in the order of its members.

    A sample is `<key>.jpg|png|webp|...` with its label in `<key>.cls` (a number or a name), `.json` or `.txt`
    (`tar_samples`). In tar files without any of these, the classes are the folders in the tar.

    Args:
        folder: what the names of the shards are relative to.
        requested: as in open_folder.
    Raises: UsageError for a tar that is compressed or corrupt, and as resolve_dataset. A truncated tar is only noted:
        its last member is an unreadable image.
    """
    samples = _Samples()
    for number, shard in enumerate(shards):
        samples.prefixes.append(f"{shard}/" if len(shards) > 1 else "")
        _scan(os.path.join(folder, shard), number, samples)
    paths = [os.path.join(folder, shard) for shard in shards]
    images = samples.images(paths)
    labels, classes, notes = _number_labels(samples, paths, requested)
    layout = counted(len(shards), "tar file") + ("" if classes else ", without labels")
    unused = [f"not used: {why} ({n:,}), such as {name}" for why, (n, name) in samples.unused.items()]
    scanned = ScannedInput(images, samples.names, labels, classes, "", layout, (*samples.notes, *notes, *unused))
    return resolve_dataset(scanned, requested, os.path.join(folder, os.path.splitext(shards[0])[0]))


def _scan(path: str, number: int, samples: _Samples) -> None:
    """Add the samples of one shard."""
    prefix = samples.prefixes[number]
    check_uncompressed(path)
    scanner, found = TarScanner(path), TarSamples()
    try:
        with open(path, "rb", buffering=0) as file:

            def read(member: Member) -> str:
                return os.pread(file.fileno(), member.size, member.offset).decode("utf-8", "replace").strip()

            for member in scanner:
                found.add(member, read)
    except CorruptTar as error:
        fix = "copy or download it again, or name the other files without it"
        raise UsageError(f"'{path}' is not a readable tar", str(error), fix) from None
    for name, image, parts in found.samples():
        samples.add(prefix + name, number, image, parts)
    for why, name in found.unused:
        count, first = samples.unused.get(why, (0, prefix + name))
        samples.unused[why] = count + 1, first
    if not scanner.complete:
        samples.notes.append(f"'{path}' has no end-of-archive mark: it may be truncated")
    if scanner.continues:
        samples.notes.append(
            f"'{path}' goes on after its end-of-archive mark; that part is not read (joined with cat?)"
        )


def _number_labels(
    samples: _Samples, shards: Sequence[str], requested: str | None
) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
    """Labels, class names and notes.

    Args:
        shards: paths of the tars.
    """
    class_names, notes = _class_names(samples, shards)
    labels, classes = number_classes(name or None for name in class_names)
    if classes and all(name.isdecimal() for name in classes):
        classes, more = _names_of_numbers(classes, shards[0], requested)
        notes += more
    return labels, classes, notes


def _class_names(samples: _Samples, shards: Sequence[str]) -> tuple[Sequence[str | None], tuple[str, ...]]:
    """The class name or number of each image, from the first of these that has any, and notes.

    Label files in the tar; .txt files; folders in the tar; label files for ImageNet's validation images; synsets in
    the names of the images; the names of the tars.
    """
    notes: tuple[str, ...] = ()
    if any(samples.kinds):
        if others := sorted(samples.kinds.difference({"", "cls", "json"})):
            notes = (f"classes from .{' and .'.join(others)} files",)
        return samples.labels, notes
    if any(samples.texts):
        distinct = set(samples.texts)
        if 2 * len(distinct) <= len(samples.texts) or all(text is None or text.isdecimal() for text in distinct):
            return samples.texts, (*notes, "classes from .txt files")
        notes = (f"the .txt files contain {counted(len(distinct), 'different text')}: not used as class names",)
    folders = [class_folder(name) for name in samples.inner_names]
    if not all(is_wrapper(folder) for folder in set(folders) if folder):
        return folders, notes
    if imagenet_val.is_flat([os.path.basename(name) for name in samples.inner_names]):
        synsets, file = imagenet_val.read_labels(os.path.dirname(shards[0]), samples.names)
        notes += (f"labels from {file}" if file else imagenet_val.NO_LABELS,)
        if any(synsets):
            return synsets, notes
    if any(map(synset_of, samples.names)):
        return list(map(synset_of, samples.names)), (*notes, "classes from the names of the images")
    of_tar = classes_of_tars(shards)
    if any(of_tar):
        notes += ("classes from the names of the tar files",)
    elif len(shards) > 1:
        notes += ("the names of the tar files are not taken for classes, but for parts of one set",)
    return [of_tar[number] for number in samples.shard], notes


def _names_of_numbers(numbers: list[str], first: str, requested: str | None) -> tuple[list[str], tuple[str, ...]]:
    """Names of class numbers, from a list beside the shards, or as the dataset has them, and notes."""
    beside = Path(first).parent
    lists = [folder / name for folder in (beside, beside.parent) for name in CLASS_LISTS]
    path = next((file for file in lists if file.is_file()), None)
    if path is None:
        names, how = interpret_numbers(numbers, requested, os.path.splitext(first)[0])
        return names, (f"labels are numbers, taken for {how}",)
    try:
        listed = [line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the class names in '{path}'", str(error)) from error
    largest = max(map(int, numbers))
    if largest >= len(listed):
        why = f"it has {counted(len(listed), 'name')}, the largest label is {largest}"
        raise UsageError(f"'{path}' does not name every class", why, "one name per line, in the order of the numbers")
    names, notes = unique_names(listed)
    return [names[int(number)] for number in numbers], (f"class names from {path}", *notes)
