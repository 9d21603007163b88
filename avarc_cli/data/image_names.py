"""What the names of folders and image files say about a dataset and its classes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from avarc_cli.data.known import SYNSET

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".pjpeg", ".png", ".pnm",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on
WRAPPERS = re.compile(r"(images?|data|clsloc|ilsvrc.*|imagenet.*|objectnet.*|sketch|train(ing)?|val(idation)?|img.*)")
PARTS = frozenset({"train", "training", "val", "validation", "test", "testing", "part", "shard"})
IMAGE_FOLDERS = frozenset({"image", "images", "img", "imgs"})  # inside a class folder
# n01440764_10026 originally; ILSVRC2012_val_00000001_n01751748 and n01440764_10026_n01440764 in the hub's ImageNet.
NAMED_BY_SYNSET = re.compile(rf"((?i:ILSVRC2012_val)_\d+|({SYNSET.pattern})_\d+)(?:_({SYNSET.pattern}))?\.[^.]*")


def is_image(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_wrapper(folder: str) -> bool:
    """Whether a folder's name says that it only contains a dataset or a split of it, and is no class."""
    return WRAPPERS.fullmatch(re.sub(r"[^a-z0-9]", "", folder.lower())) is not None


def is_part(folder: str) -> bool:
    """Whether a name is that of a dataset or of a part of one, and of no class."""
    return is_wrapper(folder) or not PARTS.isdisjoint(re.split(r"[\W_]+", folder.lower()))


def synset_of(name: str) -> str | None:
    """The synset in the name of an ImageNet image; None if there is none."""
    found = NAMED_BY_SYNSET.fullmatch(name.rpartition("/")[2])
    return (found[3] or found[2]) if found else None


def split_of(names: Sequence[str]) -> str:
    """The known dataset whose images have these names with a synset; "" if there is none."""
    if not names or not all(map(synset_of, names)):
        return ""
    return "imagenet-val" if names[0].lower().startswith("ilsvrc2012_val") else "imagenet-train"


def class_folder(name: str) -> str:
    """The folder that the class of an image in a tar is called after; "" for none.

    The innermost synset, as in train/n01443537/images/0.jpg. Otherwise the innermost folder, or the one around it if
    that is called "images" or the like.
    """
    folders = [folder for folder in name.split("/")[:-1] if folder != "."]
    synsets = [folder for folder in folders if SYNSET.fullmatch(folder)]
    if len(folders) > 1 and folders[-1].lower() in IMAGE_FOLDERS:
        folders.pop()
    return (synsets or folders or [""])[-1]


def classes_of_tars(names: Sequence[str]) -> list[str]:
    """The class that each tar is called after, as n01440764.tar or cat.tar beside dog.tar; "" for none.

    Tars that are numbered (shard-000.tar) or called after a dataset or a split (val.tar) are no classes.

    Args:
        names: the tars' names, with their folders.
    """
    stems = [name.rpartition("/")[2].rpartition(".")[0] for name in names]
    if any(map(SYNSET.fullmatch, stems)):
        return [stem if SYNSET.fullmatch(stem) else "" for stem in stems]
    words = {stem: re.sub(r"[\W_]*\d+$", "", stem) for stem in stems}
    different = len(set(words.values())) == len(words) > 1
    is_class = different and all(words.values()) and not any(map(is_part, words.values()))
    return stems if is_class else [""] * len(stems)
