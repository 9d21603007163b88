"""From the members of a tar to samples: each image with the labels of its name.

WebDataset names the files of a sample KEY.SUFFIX, where the key ends at the first dot. Names like `cat.0.png` have dots
elsewhere, too. So a label belongs to the image that is called the same up to the last dot, otherwise to the image with
the label's key. The order of the members does not matter; of several with the same name the last one counts, as in tar.
"""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from avarc_cli import strict_json
from avarc_cli.data.compressed import is_compressed
from avarc_cli.data.image_names import IMAGE_SUFFIXES
from avarc_cli.data.label_fields import CLASS_FIELDS, NAME_FIELDS, class_text, find_fields, scalar_class
from avarc_cli.data.tar import Member
from avarc_cli.errors import shorten_list

# What .cls is also called. The first group that an image has counts, and in that all must agree.
OTHER_KINDS = (
    *((name,) for name in NAME_FIELDS),
    tuple(name for name in CLASS_FIELDS if name not in ("cls", *NAME_FIELDS)),
    ("index", "y"),
)
SINGLE = ("cls", *itertools.chain(*OTHER_KINDS))  # suffixes of files with one class each
LABEL_KINDS = (*SINGLE, "json", "txt")
MAX_LABEL_SIZE = 1 << 20  # bytes of a .cls, .json or .txt; larger files are not labels
MAX_LABEL = 200  # letters of a class in a file with another suffix than .cls
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
    json_fields: str = ""
    """The fields of the first .json that states no class."""

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
            if kind == "txt" and stem.rpartition(".")[2].lower() in SINGLE:  # 000.cls.txt
                stem, _, kind = stem.rpartition(".")
                kind = kind.lower()
            self._add_label(member.name, stem, kind, text)
        elif is_compressed(base) or kind == "tar":
            self.unused.append((f".{kind} files, which must be unpacked first", member.name))
        else:
            self.unused.append((f".{kind} files" if dot else "files without a suffix", member.name))

    def _add_label(self, name: str, stem: str, kind: str, text: str) -> None:
        label: str | None
        if kind == "json":
            label, fields = _json_label(text)
            if not label:
                named = f" (its fields: {shorten_list(fields)})" if fields else ""
                self.json_fields = self.json_fields or named  # of the first: others would be a note each
                self.unused.append((f".json files that state no class{self.json_fields}", name))
            if label is None:
                self.labels.setdefault(stem, {})  # it tells what the key of the sample is
                return
        elif kind not in ("cls", "txt") and ("\n" in text or len(text) > MAX_LABEL):
            self.unused.append((f".{kind} files, which are not a class in one line", name))
            return
        else:
            label = class_text(text) or ""
        self.labels.setdefault(stem, {})[kind] = label

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
        files, at = {}, {posixpath.normpath(name): member for name, member in self.images.items()}
        for name, member in self.images.items():
            if not member.link:
                files[name] = member
                continue
            target: Member | None = member
            for _ in range(MAX_LINKS):
                if target is not None and target.link:
                    target = at.get(target.link)
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


def label_of(parts: Mapping[str, str]) -> tuple[str, str]:
    """The class in the label files of an image, "" if it is unknown; and the kind of file that says so, "" for none.

    A .cls counts more than a .json, and both more than other suffixes. What a .txt means depends on all others.

    Args:
        parts: contents by kind.
    """
    for kind in ("cls", "json"):
        if parts.get(kind):
            return parts[kind], kind
    for kinds in OTHER_KINDS:
        found = {parts[kind]: kind for kind in kinds if parts.get(kind)}
        if found:
            return next(iter(found.items())) if len(found) == 1 else ("", kinds[0])
    return "", next((kind for kind in parts if kind != "txt"), "")


def _json_label(text: str) -> tuple[str | None, list[str]]:
    """The class name, else the class number, in a sample's JSON, and the names of its fields.

    "" for a class that is said to be unknown, None where none is stated.
    """
    try:
        values = strict_json.parse(text)
    except ValueError:
        return None, []
    if not isinstance(values, dict):
        return scalar_class(values), []
    names = (values[key] for key in find_fields(values, (*NAME_FIELDS, "class")) if isinstance(values[key], str))
    found = [values[key] for key in find_fields(values, CLASS_FIELDS)]
    label = next(filter(None, names), None) or next(filter(None, map(scalar_class, found)), None)
    is_unknown = any(value is None or (isinstance(value, (int, float)) and not value >= 0) for value in found)
    return "" if label is None and is_unknown else label, list(values)
