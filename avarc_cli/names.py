r"""Names of files and classes as text that every program can read, and from which the name can be had back.

Names come from file systems: they hold any bytes, and any characters, line breaks and terminal commands among them.
Files that avarc writes hold valid Unicode, and what people read is one line. What cannot be written is escaped as in
Python: a byte that is not UTF-8 as `\udcHH` (PEP 383), a character as `\xHH`, `\uHHHH` or `\UHHHHHHHH`, and a
backslash that would be taken for the beginning of such an escape as `\x5c`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from avarc_cli import strict_json

_CODE = r"(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4}))"
_ESCAPED = re.compile(rf"\\{_CODE}")
_NOT_UNICODE = re.compile(rf"[\ud800-\udfff]|\\(?={_CODE})")
_MAYBE_NOT_SHOWN = re.compile(rf"[^ -~]|\\(?={_CODE})")
_JOINERS = "\u200c\u200d"  # in words of several scripts, and in emoji; they cannot reorder or hide anything


def to_text(name: str) -> str:
    """The name as valid Unicode, for data; only what is not UTF-8 is escaped."""
    return _NOT_UNICODE.sub(lambda found: _escape(found[0]), name)


def to_line(name: str, keep: str = "") -> str:
    """The name as one line for people: line breaks, control characters and invisible marks are escaped as well.

    Args:
        keep: characters that are not escaped, such as the line breaks of a text of several lines.
    """
    return _MAYBE_NOT_SHOWN.sub(lambda found: found[0] if _is_shown(found[0], keep) else _escape(found[0]), name)


def from_text(text: str) -> str:
    """The name behind the result of `to_text` or `to_line`."""
    return _ESCAPED.sub(lambda found: chr(int(found[1] or found[2] or found[3], 16)), text)


def to_json(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """A value as JSON in ASCII, whose strings are written by `to_text`."""
    with suppress(TypeError):  # of a mapping that is no dict
        text = json.dumps(value, indent=indent, sort_keys=sort_keys)
        if "\\" not in text:  # nothing that JSON or `to_text` escapes: most values, and millions of predictions
            return text
    return json.dumps(_each_string(value, to_text), indent=indent, sort_keys=sort_keys)


def from_json(text: str | bytes) -> Any:
    """The value behind the result of `to_json`. Raises: ValueError as `strict_json.parse`."""
    value = strict_json.parse(text)
    is_plain = ("\\" if isinstance(text, str) else b"\\") not in text  # type: ignore[operator]
    return value if is_plain else _each_string(value, from_text)


def _each_string(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key) if isinstance(key, str) else key: _each_string(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each_string(item, change) for item in value]
    return value


def _is_shown(character: str, keep: str) -> bool:
    if character == "\\":
        return False  # the expression finds only those that look like an escape
    return character.isprintable() or character in keep + _JOINERS or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    code = ord(character)
    if code < 1 << 8:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
