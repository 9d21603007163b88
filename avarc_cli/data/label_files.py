"""Labels in a file beside the images: metadata.jsonl or metadata.csv, as Hugging Face's imagefolder has, labels.csv."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avarc_cli.data.image_list import read_list
from avarc_cli.data.image_names import is_part
from avarc_cli.data.labels import compose
from avarc_cli.errors import UsageError, shorten_list
from avarc_cli.words import counted

STEMS, SUFFIXES = ("metadata", "labels"), (".csv", ".jsonl", ".tsv")


def is_label_file(name: str) -> bool:
    """Whether a file beside images is called like one that has their labels."""
    stem, suffix = os.path.splitext(name.lower())
    return stem in STEMS and suffix in SUFFIXES


def labels_beside(
    folder: str, files: Sequence[str], names: Sequence[str], folders: Sequence[str | None]
) -> tuple[Sequence[str | None], list[str]]:
    """The class of each image, by the label files or by its folder, and notes.

    Where the two divide the images in the same way, the folders' names are used. Otherwise the label files count: they
    name single images, while folders may have another reason.

    Args:
        folder: what all names are relative to.
        files: names of the label files.
        names: (N,) of the images.
        folders: (N,) the class folder of each image, None outside of them.
    """
    if not files:
        return folders, []
    labels = _Labels()
    for file in files:
        labels.read(folder, file)
    by_file = [labels.by_image.get(compose(name)) for name in names]
    found = sum(label is not None for label in by_file)
    where = shorten_list(labels.used)
    if not found:
        missed = f"{where} names none of the {len(names):,} images; its paths must be relative to it"
        return folders, [*labels.notes(), *([missed] if labels.used else [])]
    pairs = {(a, b) for a, b in zip(folders, by_file, strict=True) if a is not None and b is not None}
    class_folders, folder_of = sorted({a for a, _ in pairs}), {b: a for a, b in pairs}
    same = len(class_folders) == len(folder_of) == len(pairs) > 0 and not all(map(is_part, class_folders))
    if same and (len(pairs) > 1 or class_folders == list(folder_of)):
        known = zip(folders, by_file, strict=True)
        return [a if a is not None or b is None else folder_of.get(b, b) for a, b in known], labels.notes()
    instead = f", not from the folders {shorten_list(class_folders)}" if pairs else ""
    others = f"; it does not name {len(names) - found:,} others" if found < len(names) else ""
    return by_file, [f"classes of {counted(found, 'image')} from {where}{instead}{others}", *labels.notes()]


@dataclass
class _Labels:
    """What label files say."""

    by_image: dict[str, str | None] = field(default_factory=dict)
    """Class by the image's name, None where it is not clear."""
    used: list[str] = field(default_factory=list)
    """The files, with the column of the classes."""
    unused: list[str] = field(default_factory=list)
    """The other files, with the reason."""
    unclear: list[str] = field(default_factory=list)
    """Images with several classes."""

    def read(self, folder: str, file: str) -> None:
        """Add the labels of one file."""
        try:
            listed = read_list(Path(folder, file))
        except (UsageError, OSError) as error:
            self.unused.append(f"'{file}': {error.why if isinstance(error, UsageError) else error}")
            return
        if not any(listed.classes):
            self.unused.append(f"'{file}': there are no classes in its columns, {shorten_list(listed.columns)}")
            return
        self.used.append(f"'{file}'" + (f" (column '{listed.column}')" if listed.column else ""))
        for path, label in zip(listed.paths, listed.classes, strict=True):
            image = compose(posixpath.normpath(posixpath.join(posixpath.dirname(file), path)))
            if self.by_image.setdefault(image, label) != label:
                self.by_image[image] = None
                self.unclear.append(image)

    def notes(self) -> list[str]:
        """What of the files is not used."""
        notes = [f"labels that are not used: {text}" for text in self.unused]
        if self.unclear:
            notes.append(
                f"images with several classes in the label files, which get none: {shorten_list(self.unclear)}"
            )
        return notes
