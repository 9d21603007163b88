"""Which columns of a table hold the images and their classes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from avarc_cli import strict_json
from avarc_cli.data.label_fields import CLASS_FIELDS, find_fields
from avarc_cli.errors import UsageError

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")  # in order of preference
COLUMNS_SHOWN = 8  # in an error
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # how a folder is called for null


@dataclass(frozen=True)
class Columns:
    """The columns of a file that are used."""

    image: str  # name of the column of images
    is_struct: bool  # whether its values are {bytes, path} instead of bytes
    label: str  # name of the column of classes, or ""
    in_folders: bool  # whether that column is in the names of folders
    class_names: tuple[str, ...]  # names of the class numbers, if the metadata has them
    unused: tuple[str, ...] = ()  # other columns that may be classes


def find_columns(schema: Any, path: str) -> Columns:
    """Find the columns by the hub's metadata if there is some, else by type and name. Raises: UsageError."""
    import pyarrow as pa

    features = _features(schema)
    fields = {column.name: column.type for column in schema}
    images = [name for name, kind in fields.items() if _may_hold_images(kind)]
    if not images:
        has = ", ".join(f"{name} ({kind})" for name, kind in list(fields.items())[:COLUMNS_SHOWN])
        raise UsageError(f"'{path}' has no column of images", f"its columns are {has}", "name an image dataset")
    marked = [name for name in images if features.get(name, {}).get("_type") == "Image"]
    named = find_fields(marked or images, IMAGE_COLUMNS)
    if not named and len(marked or images) > 1:
        why, fix = f"they may be in {', '.join(marked or images)}", "call the column of the images 'image'"
        raise UsageError(f"which column of '{path}' has the images?", why, fix)
    image = (named or marked or images)[0]
    in_folders = [name for name in folder_columns(path) if name not in fields]
    simple = [*(name for name, kind in fields.items() if _may_hold_classes(kind)), *in_folders]
    classes = [name for name in simple if features.get(name, {}).get("_type") == "ClassLabel"]
    label = next(iter([*find_fields(classes, CLASS_FIELDS), *classes, *find_fields(simple, CLASS_FIELDS)]), "")
    named_like_labels = find_fields([*fields, *in_folders], CLASS_FIELDS)
    like_labels = dict.fromkeys([*classes, *named_like_labels, *(() if label else simple)])
    return Columns(
        image=image,
        is_struct=pa.types.is_struct(fields[image]),
        label=label,
        in_folders=label in in_folders,
        class_names=tuple(map(str, features.get(label, {}).get("names") or ())),
        unused=tuple(name for name in like_labels if name != label),
    )


def folder_columns(path: str) -> dict[str, str | None]:
    """The columns that are stored in the names of a file's folders (`label=7/part-0.parquet`), with their values.

    This is how Hive, Spark, pandas and pyarrow partition a table. Special characters are percent-encoded.
    """
    pairs = (folder.partition("=") for folder in os.path.dirname(path).split("/"))
    return {
        unquote(name): None if value == NO_VALUE else unquote(value) for name, equals, value in pairs if name and equals
    }


def _may_hold_classes(kind: Any) -> bool:
    """Whether values of this Arrow type may be class names or numbers."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        any(
            check(kind)
            for check in (
                pa.types.is_integer,
                pa.types.is_boolean,
                pa.types.is_floating,
                pa.types.is_string,
                pa.types.is_large_string,
            )
        )
        or str(kind) == "string_view"
    )  # younger than the oldest pyarrow that is supported


def _may_hold_images(kind: Any) -> bool:
    """Whether values of this Arrow type may be encoded images: bytes, or structs of {bytes, path}."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or str(kind) == "binary_view")


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face `datasets` wrote about the columns; empty if it wrote nothing."""
    try:
        features = strict_json.parse((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    known = features.items() if isinstance(features, dict) else ()
    return {name: feature for name, feature in known if isinstance(feature, dict)}
