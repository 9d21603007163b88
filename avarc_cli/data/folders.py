"""Folders of images: one sub-folder per class, and the folder layouts of the known datasets."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from avarc_cli.data import imagenet_val
from avarc_cli.data.image_names import is_image, is_part, is_wrapper, split_of, synset_of
from avarc_cli.data.image_source import ImageFiles
from avarc_cli.data.known import NO_DATASET, SYNSET, dataset_from_path, datasets, get_dataset
from avarc_cli.data.label_files import is_label_file, labels_beside
from avarc_cli.data.scanned_input import ScannedInput, number_classes, resolve_dataset
from avarc_cli.errors import UsageError, shorten_list

MAX_PEEK = 2000  # entries of a folder that are read to detect its layout; more than any known dataset has classes
MIN_OBJECTS = 100  # of ObjectNet's 113 class folders, for the folder to be ObjectNet whatever it is called
MAX_DEPTH = 4  # folders between the given one and the classes, as in ILSVRC/Data/CLS-LOC/val
SUFFIXES_SHOWN = 5  # in a note
SYSTEM_NAMES = frozenset({  # made by Windows, macOS, Linux, and Synology and QNAP servers
    "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini", "__MACOSX", "lost+found", "#recycle",
    "@eaDir", "@Recycle", "@tmp",
})  # fmt: skip
FOLDERS, FLAT = "folders", "flat folder"  # layouts


def open_folder(folder: Path, requested: str | None) -> ScannedInput:
    """List the images of a folder, sorted by name.

    A class is a sub-folder that contains images, at any depth; images outside of sub-folders are unlabeled. Known
    datasets are detected up to MAX_DEPTH folders deeper, and their classes named by id.

    Args:
        requested: name of the dataset, "none" for no known one, None to detect it.
    Raises: UsageError for a folder with several splits (train and val), and as imagenet_val.read_labels and
        resolve_dataset.
    """
    root = _find_root(str(folder), requested)
    others = _OtherFiles()
    names = sorted(walk(root.path, root.prefix, frozenset(), others))
    images = ImageFiles(str(folder), names)
    start = len(root.prefix)
    known: dict[str | None, str | None] = {}  # one text for all images of a class
    folders = [known.setdefault(each, each) for each in (_class_of(name, start) for name in names)]
    may_be_validation = requested in (None, "imagenet-val") and not any(folders) and not others.label_files
    if may_be_validation and imagenet_val.is_flat([name[start:] for name in names]):
        return _flat_validation(root.path, names, images)
    detected = "" if requested == NO_DATASET else root.dataset
    class_of, notes = _classes(str(folder), names, folders, others.label_files, detected)
    layout = FOLDERS if any(folders) else FLAT
    if requested != NO_DATASET and not any(class_of) and any(map(synset_of, names)):
        class_of, layout = list(map(synset_of, names)), f"{FLAT}, classes from file names"
    if class_of is folders:
        notes += _inner_folders(names, start, set(filter(None, folders)))
    if others.suffixes:
        notes.append(f"files that are not images: {count_suffixes(others.suffixes)}")
    labels, classes = number_classes(class_of)
    layout = f"{layout} in {root.prefix}" if root.prefix else layout
    scanned = ScannedInput(images, names, labels, classes, detected, layout, tuple(notes))
    return resolve_dataset(scanned, requested, root.path)


def _classes(
    folder: str, names: Sequence[str], folders: Sequence[str | None], label_files: Sequence[str], detected: str
) -> tuple[Sequence[str | None], list[str]]:
    """The class of each image, and notes: as `labels_beside`, except that class folders of a known dataset count."""
    if not (detected and any(folders)):
        return labels_beside(folder, sorted(label_files), names, folders)
    unused = f"labels that are not used, since the class folders are known: {shorten_list(sorted(label_files))}"
    return folders, [unused] if label_files else []


@dataclass
class _OtherFiles:
    """Files in a folder that are not images."""

    suffixes: Counter[str] = field(default_factory=Counter)
    """How many there are with each suffix."""
    label_files: list[str] = field(default_factory=list)
    """Names of those that are called like files with labels; they are not among the suffixes."""

    def add(self, name: str) -> None:
        if is_label_file(os.path.basename(name)):
            self.label_files.append(name)
        else:
            self.suffixes[os.path.splitext(name)[1].lower() or "without a suffix"] += 1


def walk(
    folder: str, prefix: str, ancestors: frozenset[tuple[int, int]], others: _OtherFiles | None = None
) -> Iterator[str]:
    """Names of the images in a folder and its sub-folders. Follows links, except back to an ancestor.

    Skips hidden files and folders, and those that systems make.

    Args:
        prefix: put in front of each name.
        ancestors: (device, inode) of the folders above.
        others: gets the other files.
    """
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_skipped(entry.name):
                continue
            if entry.is_dir():
                yield from walk(entry.path, f"{prefix}{entry.name}/", ancestors | {identity}, others)
            elif is_image(entry.name) and (
                entry.is_file() or not os.path.exists(entry.path)  # a dead link is listed, and later found unreadable
            ):
                yield prefix + entry.name
            elif others is not None:
                others.add(prefix + entry.name)


def count_suffixes(suffixes: Counter[str]) -> str:
    """The most frequent suffixes, with their numbers."""
    ordered = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {suffix}" for suffix, count in ordered[:SUFFIXES_SHOWN]]
    return ", ".join([*shown, "..."] if len(ordered) > SUFFIXES_SHOWN else shown)


def is_skipped(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems make."""
    return name.startswith(".") or name in SYSTEM_NAMES


def _class_of(name: str, start: int) -> str | None:
    """The folder in `name` that begins at `start`; None if the image itself begins there."""
    stop = name.find("/", start)
    return None if stop < 0 else name[start:stop]


def _inner_folders(names: Sequence[str], start: int, classes: set[str]) -> list[str]:
    """A note if the class folders may be those inside the ones that are taken for them.

    Args:
        names: of the images; their class folders begin at `start`.
    """
    if len(classes) != 1 and not all(map(is_part, classes)):
        return []
    inside = sorted({"/".join(name[start:].split("/")[1:-1]) for name in names if name.count("/", start) > 1})
    if len(inside) < 2:
        return []
    outer = shorten_list(sorted(classes))
    return [f"classes are the folders {outer}; if they are those inside ({shorten_list(inside)}), name one of {outer}"]


def _flat_validation(folder: str, names: Sequence[str], images: ImageFiles) -> ScannedInput:
    """ImageNet's validation images in one folder, with labels from a file if there is one."""
    synsets, label_file = imagenet_val.read_labels(folder, names)
    labels, classes = number_classes(synsets)
    layout = "flat folder of validation images, " + (f"labels from {label_file}" if label_file else "without labels")
    notes = () if label_file else (imagenet_val.NO_LABELS,)
    return ScannedInput(images, names, labels, classes, "imagenet-val", layout, notes)


@dataclass(frozen=True)
class _Folder:
    """A folder that may contain classes."""

    path: str
    prefix: str  # its path below the folder that the user gave, with a slash at the end unless empty

    @cached_property
    def _entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.path) as entries:
            return [entry for entry in itertools.islice(entries, MAX_PEEK) if not is_skipped(entry.name)]

    @cached_property
    def folders(self) -> list[str]:
        return sorted(entry.name for entry in self._entries if entry.is_dir())

    @cached_property
    def files(self) -> list[str]:
        return sorted(entry.name for entry in self._entries if is_image(entry.name))

    @cached_property
    def has_labels(self) -> bool:
        return any(is_label_file(entry.name) for entry in self._entries)

    def inside(self, name: str) -> _Folder:
        """The folder with this name in this one."""
        return _Folder(os.path.join(self.path, name), f"{self.prefix}{name}/")

    @cached_property
    def dataset(self) -> str:
        """The known dataset whose classes are in this folder, judging by folder and file names; "" for none."""
        if not self.folders:
            return "imagenet-val" if imagenet_val.is_flat(self.files) else split_of(self.files)
        named = dataset_from_path(self.path)
        if named == "imagenet-v2" and all(name.isdecimal() for name in self.folders):
            return named
        objects = len(set(datasets()["objectnet"].ids).intersection(self.folders))
        if objects >= (1 if named == "objectnet" else MIN_OBJECTS):
            return "objectnet"
        synsets = [name for name in self.folders if SYNSET.fullmatch(name)]
        return self._dataset_of_synsets(named, synsets) if synsets and 2 * len(synsets) >= len(self.folders) else ""

    def _dataset_of_synsets(self, named: str, synsets: list[str]) -> str:
        """The dataset with these class folders.

        Args:
            named: the dataset that the path is named after, or "".
        """
        if named and named != "objectnet":
            return named
        first = next(walk(os.path.join(self.path, synsets[0]), "", frozenset()), "")
        if imagenet_val.FILE_NAME.match(first):
            return "imagenet-val"
        if re.match(rf"{SYNSET.pattern}_\d+\.JPEG", first):
            return "imagenet-train"
        same = (name for name in ("imagenet-a", "imagenet-r") if list(datasets()[name].ids) == synsets)
        return next(same, "")


def _find_root(folder: str, requested: str | None) -> _Folder:
    """The folder that contains the classes of a known dataset.

    If none is recognized, the given folder, or the only one in it if its name says that it is no class.

    Raises: UsageError if there are several such folders, and not exactly one of the requested dataset.
    """
    given = _Folder(folder, "")
    if requested is not None and requested != NO_DATASET:
        get_dataset(requested)  # raises if there is no such dataset
    found = [] if requested == NO_DATASET else list(_known_folders(given, MAX_DEPTH))
    fitting = [root for root in found if root.dataset == requested] or found
    if len(fitting) > 1:
        listed = ", ".join(f"{root.prefix.rstrip('/')} ({root.dataset})" for root in fitting)
        raise UsageError(f"'{folder}' contains several image sets", listed, f"name one of them: {fitting[-1].path}")
    return fitting[0] if fitting else _unwrap(given, MAX_DEPTH)


def _unwrap(folder: _Folder, depth: int) -> _Folder:
    is_empty = not folder.files and not folder.has_labels
    if depth and is_empty and len(folder.folders) == 1 and is_wrapper(folder.folders[0]):
        inner = folder.inside(folder.folders[0])
        return _unwrap(inner, depth - 1) if inner.folders else folder
    return folder


def _known_folders(folder: _Folder, depth: int) -> Iterator[_Folder]:
    """Folders of known datasets: this one, or those inside it whose names say that they only wrap a dataset."""
    if folder.dataset:
        yield folder
    elif depth and not folder.files:
        for name in folder.folders:
            if is_wrapper(name):
                yield from _known_folders(folder.inside(name), depth - 1)
