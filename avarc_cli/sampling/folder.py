"""The folder of pictures that `avarc sample` draws: its files, and whether it may be written.

    FOLDER/CLASS/000.png    pictures of a class; CLASS is the class's id, with what file systems forbid escaped
    FOLDER/000000.png       or, in a flat folder, pictures class after class
    FOLDER/samples.json     the request. It is written last: a folder that has it is complete.

Until then the request, and which pictures are finished, are in `FOLDER.parts` (`work.chunks`).
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from avarc_cli.errors import UsageError, describe_differences, shorten_list
from avarc_cli.names import from_json, to_line
from avarc_cli.storage import beside, remove_leftovers
from avarc_cli.words import are, counted
from avarc_cli.work import chunks
from avarc_cli.work.chunks import recorded_request

RECORD = "samples.json"
FORMAT = "avarc samples, format 1"

# What would hide a folder, lead elsewhere, or give it the name of the record.
_UNSAFE = re.compile(r"^\.|/|^s(?=amples\.json$)")

# Pictures, and what killed processes left half-written.
_OWN_NAME = re.compile(r"[^/]+/\d{3,}\.png(\.[0-9a-f]{8}\.tmp)?|samples\.json\.[0-9a-f]{8}\.tmp")
_OWN_FLAT_NAME = re.compile(r"\d{6,}\.png(\.[0-9a-f]{8}\.tmp)?")  # only where a request is known to be flat


@dataclass(frozen=True)
class Layout:
    """Which pictures there are, class by class."""

    ids: tuple[str, ...]
    """Of the classes, as text."""

    count: int
    """Pictures of each class."""

    flat: bool = False
    """Whether they are files side by side, numbered through."""

    def __len__(self) -> int:
        return len(self.ids) * self.count

    @classmethod
    def recorded(cls, request: Mapping[str, Any] | None) -> Layout | None:
        """That of a request; None where it is none of these."""
        if request is None or request.get("format") != FORMAT:
            return None
        ids, count, flat = request.get("classes"), request.get("count"), request.get("flat", False)
        if not isinstance(ids, Sequence) or not all(isinstance(each, str) for each in ids) or type(count) is not int:
            return None
        return cls(tuple(ids), count, flat is True)

    def folders(self) -> Iterator[str]:
        """Names of the folders of the classes."""
        return iter(()) if self.flat else map(folder_name, self.ids)

    def place(self, item: int) -> tuple[int, int]:
        """Position of the class of a picture, and the picture's number in it."""
        return divmod(item, self.count)

    def file(self, item: int) -> Path:
        """Of a picture, below the folder."""
        if self.flat:
            return Path(f"{item:06d}.png")
        place, number = self.place(item)
        width = max(3, len(str(self.count - 1)))
        return Path(folder_name(self.ids[place])) / f"{number:0{width}d}.png"

    def remove_leftovers(self, folder: Path, items: range) -> None:
        """Delete what killed processes left half-written of these pictures. Raises: OSError."""
        if not items:
            return
        if self.flat:
            remove_leftovers(folder, partial(_is_picture_of, items))
            return
        for place in range(items[0] // self.count, items[-1] // self.count + 1):
            of_class = range(items.start - place * self.count, items.stop - place * self.count)
            remove_leftovers(folder / folder_name(self.ids[place]), partial(_is_picture_of, of_class))


def folder_name(class_id: str) -> str:
    """What the folder of a class is called: its id, where file systems allow."""
    escaped = _UNSAFE.sub(lambda found: "".join(f"\\x{ord(each):02x}" for each in found[0]), to_line(class_id))
    return beside(Path(escaped or r"\x"), "").name


class PicturePlace(ABC):
    """Where pictures are drawn to, finished or not. Until they are, the request and what is finished are in `parts`."""

    path: Path

    @property
    def parts(self) -> Path:
        """What is finished of the unfinished ones."""
        return beside(self.path, ".parts")

    @property
    @abstractmethod
    def record(self) -> Path:
        """The file with the request."""

    @abstractmethod
    def recorded(self) -> Mapping[str, Any] | None:
        """The request of complete pictures; None where there are none."""

    @abstractmethod
    def check(self) -> None:
        """Raises: UsageError when there is anything but pictures of avarc's, finished or not, or nothing."""

    @abstractmethod
    def missing(self, layout: Layout) -> Iterator[Path]:
        """Pictures that are not there, of complete ones."""

    @abstractmethod
    def prepare(self, layout: Layout, items: range) -> None:
        """Make everything ready to draw these pictures, which no other process draws. Raises: OSError."""

    @abstractmethod
    def remove(self) -> None:
        """Delete the pictures that are recorded here. Raises: OSError."""

    def unfinished(self) -> Mapping[str, Any] | None:
        """The request of unfinished ones; None where nothing was begun."""
        return recorded_request(self.parts)

    def requests(self) -> list[Mapping[str, Any]]:
        """Those of complete and of unfinished pictures, as far as there are any."""
        return [request for request in (self.recorded(), self.unfinished()) if request is not None]

    def holds(self, request: Mapping[str, Any]) -> bool:
        """Whether all that is here, if anything, belongs to this request, and nothing that was complete is gone."""
        layout = Layout.recorded(request)
        whole = layout is None or self.recorded() is None or not any(self.missing(layout))
        return whole and not any(describe_differences(there, request) for there in self.requests())

    def check_same(self, request: Mapping[str, Any]) -> None:
        """Raises: UsageError when pictures of another request are here."""
        for there, state in ((self.recorded(), ""), (self.unfinished(), "unfinished ")):
            if there is not None and (why := describe_differences(there, request)):
                fix = "name another --out, or add --overwrite"
                raise UsageError(f"'{self.path}' holds the {state}pictures of another request", why, fix)

    def check_complete(self, layout: Layout) -> None:
        """Raises: UsageError when some of the complete pictures were taken away."""
        if missing := list(self.missing(layout)):
            what = f"'{self.path}' was complete, and {counted(len(missing), 'picture')} {are(len(missing))} gone"
            raise UsageError(what, f"such as '{missing[0]}'", "add --overwrite to draw all of them again")


def check_parent(path: Path) -> None:
    """Raises: UsageError unless pictures can be drawn to a file or folder of this name."""
    if not path.parent.is_dir():
        why = f"'{path.parent}' is not a folder"
        raise UsageError(f"cannot draw into '{path}'", why, "name a folder in one that exists")


def read_record(path: Path) -> Mapping[str, Any] | None:
    """The request in a record; None where there is none."""
    try:
        request = from_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    return request if isinstance(request, dict) else None


@dataclass(frozen=True)
class PictureFolder(PicturePlace):
    """A folder of pictures, finished or not."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> PictureFolder:
        """The one of this name; "." and ".." get one."""
        return cls(path if path.name not in {"", ".."} else Path(os.path.abspath(path)))

    @property
    def record(self) -> Path:
        return self.path / RECORD

    def recorded(self) -> Mapping[str, Any] | None:
        return read_record(self.record)

    def check(self) -> None:
        path, what = self.path, f"cannot draw into '{self.path}'"
        check_parent(path)
        if path.is_symlink() or (os.path.lexists(path) and not path.is_dir()):
            raise UsageError(what, "it is not a folder", "name another --out")
        chunks.check_own(self.parts)
        known, own = set() if self.recorded() is None else {RECORD}, [_OWN_NAME]
        for request in self.requests():
            layout = Layout.recorded(request)
            if layout is None:
                raise UsageError(what, "other work of avarc's is there", "name another --out")
            known |= set(layout.folders())
            own += [_OWN_FLAT_NAME] if layout.flat else []
        foreign = [name for name in self._names() if name not in known and not any(o.fullmatch(name) for o in own)]
        if foreign:
            raise UsageError(what, f"it holds {shorten_list(sorted(foreign))}", "move that, or name another --out")

    def _names(self) -> Iterator[str]:
        """Of what is here, and in folders here; hidden files of file managers are left out."""
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                yield f"{entry.name}, a link"
            elif entry.is_dir():
                yield from (f"{entry.name}/{each.name}" for each in entry.iterdir() if not each.name.startswith("."))
            yield entry.name

    def missing(self, layout: Layout) -> Iterator[Path]:
        return (file for file in map(layout.file, range(len(layout))) if not (self.path / file).is_file())

    def prepare(self, layout: Layout, items: range) -> None:
        self.path.mkdir(exist_ok=True)
        layout.remove_leftovers(self.path, items)

    def remove(self) -> None:
        """As `PicturePlace.remove`, with folders that are empty then."""
        for request in self.requests():
            layout = Layout.recorded(request)
            if layout is None:
                continue
            for item in range(len(layout)):
                (self.path / layout.file(item)).unlink(missing_ok=True)
            layout.remove_leftovers(self.path, range(len(layout)))
            for folder in map(self.path.joinpath, layout.folders()):
                if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                    folder.rmdir()
        self.record.unlink(missing_ok=True)  # last: a kill repeats this
        chunks.delete(self.parts)


def _is_picture_of(numbers: range, name: str) -> bool:
    stem, _, suffix = name.partition(".")
    return suffix == "png" and stem.isdecimal() and int(stem) in numbers
