"""From the members of a tar to samples: each image with the labels of its name.

WebDataset names the files of a sample KEY.SUFFIX, where the key ends at the first dot. Names like `cat.0.png` have dots
elsewhere, too. So a label belongs to the image that is called the same up to the last dot, otherwise to the image with
the label's key. The order of the members does not matter; of several with the same name the last one counts, as in tar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from avarc_cli.data.class_numbers import without_zeros
from avarc_cli.data.folders import IMAGE_SUFFIXES
from avarc_cli.data.tar import Member

LABEL_KINDS = ("cls", "json", "txt")
JSON_NAMES = ("synset", "wnid", "class_name", "label_name", "class")  # fields of a .json that may name the class
JSON_NUMBERS = ("label", "cls", "class_id", "class")
MAX_LABEL_SIZE = 1 << 20  # bytes of a .cls, .json or .txt; larger files are not labels
MAX_LINKS = 8  # followed from one to the next
MAIN = frozenset(
    {"", "image", "img", "input", "photo", "rgb"}
)  # what stands between key and suffix of a sample's image
BESIDE = frozenset({
    "alpha", "annotation", "depth", "edges", "instance", "label", "mask", "masks", "matte", "normal", "normals", "seg",
    "segmentation", "thumb", "thumbnail",
})  # the same of pictures that only describe it  # fmt: skip


@dataclass
class TarSamples:
    """What is collected from the members of one tar."""

    images: dict[str, Member] = field(default_factory=dict)
    """By name, in the order of the members."""
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """By name up to the last dot: kind -> text."""
    unused: list[tuple[str, str]] = field(default_factory=list)
    """Members that are not used: why, and the name."""

    def add(self, member: Member, read: Callable[[Member], str]) -> None:
        """read: the text of a member."""
        base = member.name.rpartition("/")[2]
        if base.startswith("."):
            return
        stem, dot, kind = member.name.rpartition(".") if "." in base else (member.name, "", "")
        kind = kind.lower()
        if f".{kind}" in IMAGE_SUFFIXES:
            self.images[member.name] = member
        elif kind in LABEL_KINDS and member.size <= MAX_LABEL_SIZE and not member.link:
            text = read(member)
            label = _json_label(text) if kind == "json" else without_zeros(text)
            self.labels.setdefault(stem, {})[kind] = label
            if kind == "json" and not label:
                self.unused.append((".json files that state no class", member.name))
        else:
            self.unused.append((f".{kind} files" if dot else "files without a suffix", member.name))

    def samples(self) -> Iterator[tuple[str, Member, dict[str, str]]]:
        """Name, file and labels of each image. Afterwards, `unused` is complete."""
        files = self._resolve_links()
        beside = set(self._beside(files))
        self.unused += [("pictures beside the image of their sample", name) for name in files if name in beside]
        used: set[str] = set()
        for name, file in files.items():
            if name not in beside:
                label = _stem(name) if _stem(name) in self.labels else _key(name)
                used.add(label)
                yield name, file, self.labels.get(label, {})
        for stem, parts in self.labels.items():
            for kind in parts if stem not in used else ():
                why = ".txt files" if kind == "txt" else "labels without an image"
                self.unused.append((why, f"{stem}.{kind}"))

    def _beside(self, files: dict[str, Member]) -> Iterator[str]:
        """Images that only accompany the main one of their sample, such as masks."""
        first: dict[str, str] = {}
        groups: dict[str, list[str]] = {}
        for name in files:
            if (other := first.setdefault(_key(name), name)) is not name:
                groups.setdefault(_key(name), [other]).append(name)
        for key, names in groups.items():
            names = [name for name in names if _stem(name) == key or _stem(name) not in self.labels]
            main = [name for name in names if _role(name) in MAIN] if key in self.labels else []
            kept = set(main[:1] or [name for name in names if _role(name) not in BESIDE])
            if kept:
                yield from (name for name in names if name not in kept)

    def _resolve_links(self) -> dict[str, Member]:
        """The images, with links replaced by the files that they lead to."""
        files = {}
        for name, member in self.images.items():
            if not member.link:
                files[name] = member
                continue
            target: Member | None = member
            for _ in range(MAX_LINKS):
                if target is not None and target.link:
                    target = self.images.get(target.link)
            if target is None or target.link:
                self.unused.append(("links that lead to no image in the tar", name))
            else:
                files[name] = target
        return files


def _stem(name: str) -> str:
    """The name of an image up to the last dot."""
    return name.rpartition(".")[0]


def _key(name: str) -> str:
    """The name up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _role(name: str) -> str:
    """What stands before the suffix, after the dot before: "mask" of a/000.mask.png, "" of a/000.png."""
    parts = name.rpartition("/")[2].split(".")
    return parts[-2].lower() if len(parts) > 2 else ""


def _json_label(text: str) -> str:
    """The class name, else the class number, in a sample's JSON; "" if there is none."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(values, dict):
        return ""
    names = (values[key] for key in JSON_NAMES if isinstance(values.get(key), str))
    numbers = (_number(values.get(key)) for key in JSON_NUMBERS)
    return next(names, "") or next(filter(None, numbers), "")


def _number(value: object) -> str:
    """A class number, also as a float, a string or a list of one; "" for anything else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return without_zeros(str(value)) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else ""
