"""Image sets: opened from folders, files, text files of paths, tar shards and tables, and reduced to parts."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from avarc_cli.data.compressed import check_uncompressed, is_compressed
from avarc_cli.data.containers import is_container, open_containers, scan_containers
from avarc_cli.data.even_sample import draw_evenly
from avarc_cli.data.folders import FLAT, FOLDERS, open_folder
from avarc_cli.data.image_list import LIST, LIST_SUFFIXES, open_list
from avarc_cli.data.image_names import IMAGE_SUFFIXES
from avarc_cli.data.image_source import ImageFiles, ImageSource, digest, join
from avarc_cli.data.imagenet_val import NO_LABELS
from avarc_cli.data.known import datasets
from avarc_cli.data.labels import UNKNOWN, close_names, compose, human_name, imagenet1k, match, normalize
from avarc_cli.data.per_class import first_per_class
from avarc_cli.data.preprocess import Preprocess, read_rgb
from avarc_cli.data.scanned_input import ScannedInput, resolve_dataset
from avarc_cli.data.tables import SUFFIXES as TABLE_SUFFIXES
from avarc_cli.errors import MAX_NAMES, UnreadableImage, UsageError, shorten_list
from avarc_cli.words import counted

IMAGE = "image files"  # layout
PLAIN_LAYOUTS = (IMAGE, LIST, FOLDERS, FLAT)  # so common that no note is needed


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images in a fixed order."""

    encoded: ImageSource  # the encoded images
    labels: np.ndarray  # (N,) int32, index into class_names, or UNKNOWN
    class_names: tuple[str, ...]  # sorted; synsets if the dataset has ImageNet's classes
    source: str  # the inputs, as the user wrote them
    names: Sequence[str]  # (N,) path of each image below the source, with forward slashes, as caches record it
    dataset: str = ""  # name of the known dataset ("imagenet-r"), "" for any other
    layout: str = ""  # how the images are stored, in words
    notes: tuple[str, ...] = ()  # what was recognized, and what else the user should know

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The image files, if the set consists of files. `load` does not use them: a million take a gigabyte."""
        return tuple(Path(self.encoded.location(row)) for row in range(len(self)))

    def load(self, index: int, preprocess: Preprocess) -> np.ndarray:
        """View 0 of one image, (size, size, 3). Otherwise as `load_views`."""
        return load_pixels(lambda: self.encoded.open(index), self.encoded.location(index), self.dataset, preprocess)

    def load_views(
        self, index: int, preprocess: Preprocess, on_digest: Callable[[bytes], object] | None = None
    ) -> np.ndarray:
        """Read and preprocess one image, after cropping ObjectNet's red border. Safe in worker processes and threads.

        Args:
            on_digest: called with the digest of the encoded image, if it can be opened, before it is decoded.
        Returns: pixels of all views, (V, size, size, 3), uint8 RGB.
        Raises: UnreadableImage.
        """

        def open_image() -> BinaryIO:
            file = self.encoded.open(index)
            if on_digest is not None:
                on_digest(digest(file))
            return file

        location = self.encoded.location(index)
        return preprocess.apply_views(_read(open_image, location, self.dataset, preprocess), location)

    def classes_outside_imagenet(self) -> tuple[str, ...]:
        """The classes of a known dataset that no class of ImageNet-1k corresponds to: 200 of ObjectNet's."""
        known = datasets().get(self.dataset)
        if known is None or not known.has_own_classes:
            return ()
        return tuple(name for name in self.class_names if name not in known.ids)

    def select(self, classes: Sequence[str] | None, per_class: int | None, limit: int | None) -> ImageSet:
        """A part of the set, in the same order. The selections are applied in the order of the arguments.

        Args:
            classes: keep only these, by id or human name (ignoring case; `_` is a space). class_names shrinks. If the
                set has no images of some of them, but of others, a note says so.
            per_class: keep this many images of each class, the first by name (in ImageNet-R, one of each style in
                turn). Drops unlabeled images. A note says which classes have fewer.
            limit: keep the first images up to this number.
        Raises: UsageError if there are no images of any of the classes, or for one that neither the dataset nor
            ImageNet has; for numbers below 1, and per_class without labels.
        """
        for option, number in (("per class", per_class), ("in all", limit)):
            if number is not None and number < 1:
                raise UsageError(f"cannot select {number} images {option}", "the number must be at least 1")
        selected = self if classes is None else self._of_classes(classes)
        if per_class is not None:
            selected = selected._first_per_class(per_class)
        return selected if limit is None else selected.take(np.arange(min(limit, len(selected))))

    def first(self, count: int | None) -> ImageSet:
        """The first `count` images of the set, or all if there are fewer; None for all. Raises: UsageError."""
        return self.select(None, None, count)

    def sample(self, count: int, seed: int) -> ImageSet:
        """`count` images of the set, drawn evenly over the classes (`draw_evenly`). Raises: UsageError."""
        return self.take(draw_evenly(self.labels, count, seed))

    def _of_classes(self, classes: Sequence[str]) -> ImageSet:
        known = self._spellings()
        missing = [name for name in classes if normalize(name) not in known]
        if len(missing) == len(classes) or not all(map(self._may_have, missing)):
            close = close_names(missing[0], known) or self.class_names[:MAX_NAMES]
            why = f"it has classes like {', '.join(close)}" if close else "its images have no labels"
            listed = shorten_list([human_name(name) for name in missing])
            raise UsageError(f"'{self.source}' has no images of {listed}", why)
        wanted = sorted({index for name in classes for index in known.get(normalize(name), [])})
        new_label = np.full(len(self.class_names) + 1, UNKNOWN, dtype=np.int32)  # the last entry is for -1
        new_label[wanted] = np.arange(len(wanted))
        labels = new_label[self.labels]
        names = tuple(self.class_names[index] for index in wanted)
        selected = replace(self, labels=labels, class_names=names).take(np.flatnonzero(labels != UNKNOWN))
        if not missing:
            return selected
        listed = shorten_list([human_name(name) for name in missing])
        of = f"{len(missing):,} of the {counted(len(classes), 'class')} of the subset"
        return selected._with_note(f"there are no images of {of}: {listed}")

    def _may_have(self, class_name: str) -> bool:
        """Whether a class without images is one of the dataset, or of ImageNet: missing rather than misspelled."""
        known, space = datasets().get(self.dataset), imagenet1k()
        if known is not None and known.id_of(class_name) is not None:
            return True
        return normalize(class_name) in map(normalize, (*space.ids, *space.names))

    def _with_note(self, note: str) -> ImageSet:
        return replace(self, notes=(*self.notes, note))

    def _spellings(self) -> dict[str, list[int]]:
        """Class indices by every normalized name of a class: folder, human name, and synsets of ImageNet."""
        by_name: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(self.class_names):
            by_name[normalize(name)].append(index)
        known, space = datasets().get(self.dataset), imagenet1k()
        aliases: list[tuple[str, tuple[str, ...]]]
        if known is None or not known.has_own_classes:
            found = zip(self.class_names, match(self.class_names, space).tolist(), strict=True)
            aliases = [(name, (space.names[i], space.ids[i])) for name, i in found if i != UNKNOWN]
        else:
            aliases = [(label, (title, *synsets)) for label, title, synsets in known.spellings()]
        own = {name: list(indices) for name, indices in by_name.items()}
        for name, others in aliases:
            for other in others:
                by_name[normalize(other)] += own.get(normalize(name), [])
        return {name: sorted(set(indices)) for name, indices in by_name.items() if indices}

    def _first_per_class(self, per_class: int) -> ImageSet:
        if not self.class_names:
            raise UsageError(
                f"cannot select images per class from '{self.source}'",
                "its images have no labels",
                "put each class in its own sub-folder, or use --limit",
            )
        by_style = bool(self.dataset) and datasets()[self.dataset].has_styles
        selected = self.take(first_per_class(self.labels, self.names, per_class, by_style=by_style))
        counts = np.bincount(selected.labels, minlength=len(self.class_names))
        fewer = [human_name(self.class_names[index]) for index in np.flatnonzero(counts < per_class)]
        if not fewer:
            return selected
        of = f"{counted(len(fewer), 'class')}: {shorten_list(fewer)}"
        return selected._with_note(f"there are fewer than {per_class:,} images of {of}")

    def take(self, rows: np.ndarray) -> ImageSet:
        """The images of these rows, in this order; the classes stay the same."""
        names = tuple(self.names[row] for row in rows.tolist())
        return replace(self, encoded=self.encoded.take(rows), labels=self.labels[rows], names=names)


def load_pixels(open_file: Callable[[], BinaryIO], location: str, dataset: str, preprocess: Preprocess) -> np.ndarray:
    """As `ImageSet.load`, for one image.

    Args:
        open_file: opens the encoded image.
        location: how errors refer to the image.
        dataset: name of the known dataset that it belongs to, or "".
    """
    return preprocess.apply(_read(open_file, location, dataset, preprocess), location)


def _read(open_file: Callable[[], BinaryIO], location: str, dataset: str, preprocess: Preprocess) -> Image.Image:
    """The image in RGB, without ObjectNet's border. Arguments as of `load_pixels`."""
    image = read_rgb(open_file, location, reference=preprocess.reference)
    known = datasets().get(dataset)
    if known and known.border:
        border, (width, height) = known.border, image.size
        if min(width, height) <= 2 * border:
            raise UnreadableImage(f"cannot read '{location}'", f"{width} x {height} pixels are all border")
        image = image.crop((border, border, width - border, height - border))
    return image


def open_images(inputs: Sequence[Path], dataset: str | None = None, *, allow_outside: bool = False) -> ImageSet:
    """List the images of folders, files, lists, tar shards and tables, without opening any image.

    In a folder, a class is a sub-folder that contains images, at any depth; images outside of sub-folders are
    unlabeled, unless a file beside them has their labels. Hidden files are skipped, others that are no images noted. A
    folder without images may contain .tar, .parquet or .arrow files instead. A .txt, .tsv or .lst file lists one path
    per line, relative to itself, optionally followed by a tab and the class; a .csv or .jsonl has columns for them. Any
    other file is an image.

    The images of a folder are sorted by name; those of lists, shards, tables and several inputs are in the given order.
    With several inputs, each name begins with its input.

    Args:
        inputs: the files and folders.
        dataset: name of the known dataset (docs/datasets.md), "none" for any other, None to detect it.
        allow_outside: read images for which a table names a file outside of its folder; otherwise they are unreadable.
    Raises: UsageError if a path does not exist or cannot be listed, if there is no image at all, or if what a known
        dataset's layout requires is missing.
    """
    parts = []
    for group in _group(inputs):
        is_image = _kind(group[0]) == IMAGE
        scanned = _scan_files(group, inputs, dataset) if is_image else _scan(group, dataset, allow_outside)
        if len(inputs) > 1 and len(group) == 1 and scanned.layout != IMAGE:
            scanned = replace(scanned, names=[f"{group[0].as_posix()}/{name}" for name in scanned.names])
        parts.append(scanned)
    source = shorten_list([path.as_posix() for path in inputs])
    if not any(len(scanned.names) for scanned in parts):
        kinds = " ".join(sorted({*IMAGE_SUFFIXES, *TABLE_SUFFIXES, ".tar"}))
        found = dict.fromkeys(note for scanned in parts for note in scanned.notes)
        why = "; ".join([f"looked for {kinds}", *found])
        raise UsageError(f"no images in '{source}'", why, "name a folder of images, or files")
    return _merge(parts, source)


def _merge(parts: Sequence[ScannedInput], source: str) -> ImageSet:
    """Join scanned inputs; classes without images are dropped, the others numbered in sorted order.

    Names that differ only in composed or decomposed letters look the same to everyone, and are one class.
    """
    used = [np.unique(scanned.labels[scanned.labels != UNKNOWN]) for scanned in parts]
    present = {scanned.classes[i] for scanned, indices in zip(parts, used, strict=True) for i in indices.tolist()}
    class_names = tuple(sorted(set(map(compose, present))))
    position = {name: i for i, name in enumerate(class_names)}
    labels = []
    for scanned in parts:
        new_label = [position.get(compose(name), UNKNOWN) for name in scanned.classes]
        labels.append(np.array([*new_label, UNKNOWN], dtype=np.int32)[scanned.labels])  # the last entry is for -1
    found = {scanned.dataset for scanned in parts}
    dataset = found.pop() if len(found) == 1 else ""
    if any(datasets()[name].border for name in found if name):
        raise UsageError(f"'{source}' mixes ObjectNet with other images", "only ObjectNet's have a border to crop")
    notes = [note for scanned in parts for note in (_describe(scanned), *scanned.notes) if note]
    twins = sorted(name for name, count in Counter(map(compose, present)).items() if count > 1)
    notes += [f"classes written with composed and with decomposed letters: {shorten_list(twins)}"] if twins else []
    notes += [
        f"{datasets()[scanned.dataset].title}: not a single label was found; nothing will be counted as right or wrong"
        for scanned in parts
        if scanned.dataset and scanned.layout != IMAGE and (scanned.labels == UNKNOWN).all()
        if NO_LABELS not in scanned.notes
    ]
    variants = spelling_variants(class_names)
    notes += [f"classes that differ only in spelling: {shorten_list(variants)}"] if variants else []
    return ImageSet(
        encoded=join([scanned.encoded for scanned in parts]),
        labels=np.concatenate(labels),
        class_names=class_names,
        source=source,
        names=tuple(name for scanned in parts for name in scanned.names),
        dataset=dataset,
        layout="; ".join(dict.fromkeys(scanned.layout for scanned in parts)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _describe(scanned: ScannedInput) -> str:
    if scanned.dataset:
        return f"recognized {datasets()[scanned.dataset].title} ({scanned.dataset}): {scanned.layout}"
    return "" if scanned.layout in PLAIN_LAYOUTS else scanned.layout


def spelling_variants(class_names: Sequence[str]) -> list[str]:
    """Names that differ only in case, spaces and underscores: "great white shark and great_white_shark"."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        by_name[normalize(name)].append(name)
    return [" and ".join(names) for names in by_name.values() if len(names) > 1]


def _group(inputs: Sequence[Path]) -> list[list[Path]]:
    """Group consecutive shards, tables or image files; each folder, list or other input is a group by itself."""
    groups: list[tuple[str, list[Path]]] = []
    for path in inputs:
        kind = _kind(path)
        if groups and kind and groups[-1][0] == kind:
            groups[-1][1].append(path)
        else:
            groups.append((kind, [path]))
    return [paths for _, paths in groups]


def _kind(path: Path) -> str:
    """The suffix of a shard or table, IMAGE, or "" for anything else."""
    suffix = path.suffix.lower()
    if not os.path.isfile(path):  # a folder too may be named x.parquet; what no file can be called is reported later
        return ""
    if is_container(path.name):
        return suffix
    return "" if suffix in LIST_SUFFIXES else IMAGE


def _scan(group: Sequence[Path], dataset: str | None, allow_outside: bool) -> ScannedInput:
    path = group[0]
    try:
        if path.is_dir():
            return _scan_folder(path, dataset, allow_outside)
        if not path.exists():
            raise UsageError(f"'{path}' does not exist", fix="name a folder of images, image files, or a list of paths")
        suffix = path.suffix.lower()
        if suffix in LIST_SUFFIXES:
            return open_list(path, dataset)
        if is_container(path.name):
            folder = path.parent.as_posix() if len(group) == 1 else ""
            names = [path.name if folder else each.as_posix() for each in group]
            return open_containers(folder, names, dataset, allow_outside=allow_outside)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"cannot open '{path}'", reason.lower()) from error
    return _scan_files(group, group, dataset)  # for example a pipe: reported when it is read


def _scan_files(group: Sequence[Path], inputs: Sequence[Path], dataset: str | None) -> ScannedInput:
    """Single image files, whatever their suffix. Raises: UsageError for an archive."""
    for path in filter(is_compressed, map(str, group)):
        check_uncompressed(path)
    paths = tuple(path.as_posix() for path in group)
    names = paths if len(inputs) > 1 else (group[0].name,)
    unknown = np.full(len(group), UNKNOWN, dtype=np.int32)
    return resolve_dataset(ScannedInput(ImageFiles("", paths), names, unknown, (), layout=IMAGE), dataset, paths[0])


def _scan_folder(folder: Path, dataset: str | None, allow_outside: bool) -> ScannedInput:
    """The images of a folder, or, if there are none, of the shards or tables in it."""
    scanned = open_folder(folder, dataset)
    if len(scanned.names):
        return scanned
    return scan_containers(folder, dataset, allow_outside=allow_outside) or scanned
