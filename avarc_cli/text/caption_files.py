"""Captions from text files: .txt, .json and .csv, with messages that name the place of what is wrong."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avarc_cli import strict_json
from avarc_cli.data.labels import compose
from avarc_cli.errors import UsageError, shorten_list

COLUMNS = ("name", "caption")
MAX_LENGTH = 5_000
"""Characters of a caption. Text encoders read some hundred words; what is longer is another kind of file, and the
cleaner's time grows with the square of it."""
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Entry:
    """One caption."""

    name: str
    """Of its candidate; the caption itself where the file has no names."""
    caption: str
    place: str
    """Where it is, as "line 3"."""


def read(path: Path) -> list[Entry]:
    """The captions of a file, in order.

    Raises: UsageError for a file that cannot be read, is empty or not UTF-8, for an empty caption, and for captions
        that occur twice.
    """
    text = _decode(path)
    if not text.strip():
        raise UsageError(f"'{path}' is empty", "it is to hold captions", "write one caption a line")
    entries = list(READERS[path.suffix.lower()](path, text))
    if not entries:
        raise UsageError(f"'{path}' holds no captions", "it has a beginning, but no entries")
    for entry in entries:
        _check(path, entry)
    check_unique(path, entries)
    return entries


def check_unique(path: Path, entries: list[Entry]) -> None:
    """Raises: UsageError, naming both places, for two captions that are equal but for case and spaces.

    Text encoders do not tell these apart, so their candidates would have equal scores.
    """
    seen: dict[str, Entry] = {}
    for entry in entries:
        first = seen.setdefault(_plain(entry.caption), entry)
        if first is not entry:
            where = f"{first.place} and {entry.place}"
            why = f"it is '{entry.caption}'"
            if entry.caption != first.caption:
                why = f"'{first.caption}' and '{entry.caption}' differ in case or spaces only"
            raise UsageError(f"'{path}' has the same caption in {where}", why, "leave out one of them")
    names: dict[str, Entry] = {}
    for entry in entries:
        first = names.setdefault(_plain(entry.name), entry)
        if first.name != entry.name:
            where = f"{first.place} and {entry.place}"
            why = f"'{first.name}' and '{entry.name}'"
            raise UsageError(f"'{path}' has two names in {where} that differ in case only", why, "spell them alike")


def _plain(text: str) -> str:
    return " ".join(compose(text).split()).casefold()


def _check(path: Path, entry: Entry) -> None:
    for what, text in (("caption", entry.caption), ("name", entry.name)):
        if not text.strip():
            why = f"the {what} in {entry.place} is empty"
            raise UsageError(f"'{path}' has an empty {what}", why, "write one, or leave out the entry")
    if len(entry.caption) > MAX_LENGTH:
        why = f"the one in {entry.place} has {len(entry.caption):,} characters, the limit is {MAX_LENGTH:,}"
        raise UsageError(f"'{path}' has a caption that is too long", why, "shorten it")


def _decode(path: Path) -> str:
    """The text of a file. Raises: UsageError for anything but UTF-8, with or without a byte order mark."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise UsageError(f"cannot read '{path}'", problem.strerror or str(problem), "check its permissions") from None
    fix = f"save it as UTF-8, or convert it: iconv -f {{}} -t UTF-8 '{path}'"
    if data.startswith(UTF16):
        raise UsageError(f"'{path}' is not UTF-8", "it begins like UTF-16", fix.format("UTF-16"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        why = f"line {line} has the byte 0x{data[problem.start]:02x}, as in Latin-1 and other older encodings"
        raise UsageError(f"'{path}' is not UTF-8", why, fix.format("LATIN1")) from None
    if "\0" in text:
        raise UsageError(f"'{path}' is not text", "it has zero bytes", "save it as UTF-8")
    return text


def _read_txt(path: Path, text: str) -> Iterator[Entry]:
    """One caption a line; it is its own name."""
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        yield Entry(line.strip(), line.strip(), f"line {number}")


def _read_json(path: Path, text: str) -> Iterator[Entry]:
    """A list of captions, or an object: name -> caption, or list of captions."""
    try:
        strict_json.parse(text)  # its limits
        value = json.loads(text, object_pairs_hook=_Pairs)
    except ValueError as problem:
        raise UsageError(f"'{path}' is not JSON", str(problem), "correct it") from None
    if isinstance(value, _Pairs):
        _check_keys(path, value)
        for number, (name, captions) in enumerate(value.pairs, 1):
            place = f"entry {number} ('{name}')"
            several = captions if isinstance(captions, list) else [captions]
            if not several:
                raise UsageError(f"'{path}' has a name without a caption", f"it is {place}", "write one")
            for caption in several:
                yield _json_entry(path, name.strip(), caption, place)
    elif isinstance(value, list):
        for number, caption in enumerate(value, 1):
            yield _json_entry(path, None, caption, f"entry {number}")
    else:
        why = f"it is {_kind(value)}"
        raise UsageError(f"'{path}' holds no captions", why, "write a list of captions, or name: caption pairs")


def _json_entry(path: Path, name: str | None, caption: object, place: str) -> Entry:
    if not isinstance(caption, str):
        why = f"{place} is {_kind(caption)}"
        raise UsageError(f"'{path}' has a caption that is not text", why, "write captions in quotes")
    return Entry(caption.strip() if name is None else name, caption.strip(), place)


class _Pairs:
    """A JSON object with repeated keys, which a dict would lose."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _check_keys(path: Path, value: _Pairs) -> None:
    seen: dict[str, int] = {}
    for number, (name, _) in enumerate(value.pairs, 1):
        if (first := seen.setdefault(name.strip(), number)) != number:
            why = f"'{name}' is entry {first} and entry {number}"
            raise UsageError(f"'{path}' has a name twice", why, "write its captions as one list")


def _kind(value: object) -> str:
    kinds = {_Pairs: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else "a text")


def _read_csv(path: Path, text: str) -> Iterator[Entry]:
    """Columns name and caption, among others perhaps; rows of one name are several captions of one candidate."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip().lower() for column in next(reader)]
        if missing := [column for column in COLUMNS if column not in header]:
            why = f"it has no column {' and '.join(missing)}; its first line has {shorten_list(header)}"
            raise UsageError(f"'{path}' is no table of captions", why, "begin it with: name,caption")
        name_at, caption_at = map(header.index, COLUMNS)
        for row in reader:
            place = f"line {reader.line_num}"
            if len(row) != len(header):
                why = f"{place} has {len(row)} fields, the first line {len(header)}"
                raise UsageError(f"'{path}' is not a table", why, "put captions with commas into double quotes")
            yield Entry(row[name_at].strip(), row[caption_at].strip(), place)
    except csv.Error as problem:
        raise UsageError(f"'{path}' is not CSV", f"line {reader.line_num}: {problem}", "correct it") from None


READERS: Mapping[str, Callable[[Path, str], Iterator[Entry]]] = {
    ".txt": _read_txt,
    ".json": _read_json,
    ".csv": _read_csv,
}
"""By the suffix of the file."""
