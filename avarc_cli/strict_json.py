"""JSON from files that may be damaged, or made to do harm: Python's parser accepts what later code would trip over."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 64  # of lists and objects in each other; the deepest of our own files have 6
MAX_INTEGER = 2**64  # seeds are below it; larger numbers fit into no array, and into no float beyond 1e308


def parse(text: str | bytes) -> Any:
    """The value of a JSON document.

    Raises: ValueError for anything but JSON, for nesting deeper than MAX_DEPTH, and for larger whole numbers than
        MAX_INTEGER. NaN and infinities pass: code that needs finite numbers checks for them.
    """
    try:
        value = json.loads(text, parse_int=_parse_integer)
    except RecursionError:
        raise _too_deep() from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for each in level for inner in _inner(each)]
        if not level:
            return value
    raise _too_deep()


def parse_object(text: str | bytes) -> dict[str, Any]:
    """As `parse`, of a document that is an object. Raises: ValueError for any other."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _inner(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inner if isinstance(each, (dict, list))]


def _parse_integer(digits: str) -> int:
    if len(digits) <= len(str(MAX_INTEGER)) and abs(number := int(digits)) < MAX_INTEGER:
        return number
    raise ValueError(f"a number of {len(digits)} digits is too large")


def _too_deep() -> ValueError:
    return ValueError(f"its lists and objects are nested more than {MAX_DEPTH} deep")
