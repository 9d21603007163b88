"""Which fields of tables, lists and JSON hold an image's path or its class, and what the values mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# In order of preference; case, spaces, `-` and `_` do not matter.
NAME_FIELDS = ("synset", "wnid", "class_name", "label_name")
CLASS_FIELDS = (  # names, then what may be a number
    *NAME_FIELDS,
    *("label", "labels", "fine_label", "class", "cls", "target", "category", "class_id", "label_id", "category_id"),
)
PATH_FIELDS = ("file_name", "file", "image", "img", "path", "file_path", "image_path", "img_path")


def find_fields(fields: Iterable[str], names: Sequence[str]) -> list[str]:
    """The fields with one of these names, in the order of the names."""
    by_name: dict[str, list[str]] = {}
    for field in fields:
        by_name.setdefault(_plain(field), []).append(field)
    return [field for name in names for field in by_name.get(_plain(name), [])]


def class_text(value: object) -> str | None:
    """The name or number of a class; None if it is unknown: nothing, NaN or a negative number."""
    if value is None or (isinstance(value, (int, float)) and not value >= 0):  # NaN is not >= 0
        return None
    text = without_zeros(str(value))
    is_negative = text.startswith("-") and text[1:].isdecimal()
    return None if not text or is_negative else text


def scalar_class(value: object) -> str | None:
    """The class number or name in a JSON value, also in a list of one; None for anything else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return class_text(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None


def without_zeros(text: str) -> str:
    """7 for 7.0, as programs write class numbers that were floats; any other text as it is."""
    text = text.strip()
    whole, dot, rest = text.partition(".")
    is_whole = dot and rest and not rest.strip("0") and whole.removeprefix("-").isdecimal()
    return whole if is_whole else text


def _plain(field: str) -> str:
    return re.sub(r"[\s_-]", "", field).lower()
