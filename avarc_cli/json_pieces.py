"""JSON documents as text in pieces, so that a list of a million items need not be in memory."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from avarc_cli.names import to_json


def pieces(data: object) -> Iterator[str]:
    """The text of a value (`jsonable`), without a line end.

    In a mapping, a value that is an iterator becomes a list with one line for each item, made as the text is read.
    """
    if not isinstance(data, Mapping) or not any(isinstance(value, Iterator) for value in data.values()):
        yield to_json(jsonable(data), indent=2)
        return
    before = "{"
    for name, value in data.items():
        yield f"{before}\n  {to_json(name)}: "
        before = ","
        if isinstance(value, Iterator):
            yield from _list(value)
        else:
            yield to_json(jsonable(value), indent=2).replace("\n", "\n  ")  # no text in JSON holds a line break
    yield "\n}"


def _list(items: Iterator[object]) -> Iterator[str]:
    before = "["
    for item in items:
        yield f"{before}\n    {to_json(jsonable(item))}"
        before = ","
    yield "[]" if before == "[" else "\n  ]"


def jsonable(value: Any) -> Any:
    """A value of what JSON knows: mappings, sequences, dataclasses, paths, arrays and numbers (nan becomes null).

    Raises: TypeError for anything else.
    """
    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and their scalars; numpy and torch are not imported
        return jsonable(value.tolist())
    raise TypeError(f"a result holds a {type(value).__name__}, which JSON cannot")
