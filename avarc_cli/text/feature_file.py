"""Features of captions on disk: safetensors with `sequence`, `length` and more (docs/formats.md).

The header and all values are checked without torch. Shapes: R captions, T positions, D channels, E of a whole caption.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from avarc_cli import strict_json
from avarc_cli.errors import UsageError, first_line
from avarc_cli.storage import replacing
from avarc_cli.text.caption_files import Entry, check_unique
from avarc_cli.words import counted
from avarc_cli.zoo.weights_index import sha256_of_file

if TYPE_CHECKING:
    from torch import Tensor

    from avarc_cli.text.features import CaptionFeatures

SUFFIX = ".safetensors"
EMPTY = "empty_"
"""Begins the names of the same tensors of the empty caption."""
SHAPES = {"sequence": 3, "length": 1, "pooled": 2, "guidance": 3}
"""Dimensions of each tensor; all are float32 but the length, int64. The last two are optional."""
REQUIRED = ("sequence", "length")
AGAIN = "make it with: avarc captions encode FILE --encoder NAME --out FEATURES.safetensors"


@dataclass(frozen=True)
class Header:
    """What a file says beside the features."""

    names: tuple[str, ...]
    """(R,) the candidate that each caption is of."""
    texts: tuple[str, ...]
    """(R,) the captions, or else the names."""
    encoder: str
    """Name of the text encoder; "" where the file does not say."""
    sha256: str
    """Of the file, in hex."""


def read_header(path: Path) -> Header:
    """Check a file of features, and read what it says beside them.

    Raises: UsageError for one that is damaged, lacks something, has values of a wrong shape or type or that are not
        finite, or has a caption twice.
    """
    metadata, names, texts = _checked(path)
    check_unique(path, [Entry(n, c, f"row {i}") for i, (n, c) in enumerate(zip(names, texts, strict=True))])
    return Header(names, texts, metadata.get("encoder", ""), sha256_of_file(path))


def load(path: Path) -> tuple[CaptionFeatures, Mapping[str, str]]:
    """The features of a file, and its metadata. Raises: UsageError as `read_header`."""
    from safetensors.torch import load_file

    metadata, _, texts = _checked(path)
    tensors, encoder, empty = load_file(path), metadata.get("encoder", ""), None
    if f"{EMPTY}sequence" in tensors:
        of_empty = {name: tensors.get(f"{EMPTY}{name}") for name in SHAPES}
        empty = _features(("",), of_empty, encoder)
    return _features(texts, tensors, encoder, empty), metadata


def _checked(path: Path) -> tuple[Mapping[str, str], tuple[str, ...], tuple[str, ...]]:
    """Metadata, names and captions of a file whose tensors are as they should be. Raises: UsageError."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            count = _check_tensors(path, file)
    except (OSError, SafetensorError) as problem:
        raise UsageError(f"'{path}' is no file of features", first_line(problem), AGAIN) from None
    names = _listed(path, metadata, "names", count)
    if names is None:
        raise _wrong(path, "its metadata has no 'names'", 'add them: {"names": "[\\"tench\\", ...]"}')
    return metadata, names, _listed(path, metadata, "captions", count) or names


def _features(
    texts: tuple[str, ...], tensors: Mapping[str, Any], encoder: str, empty: CaptionFeatures | None = None
) -> CaptionFeatures:
    from avarc_cli.text.features import CaptionFeatures

    return CaptionFeatures(
        captions=texts,
        sequence_RTD=tensors["sequence"],
        length_R=tensors["length"],
        pooled_RE=tensors.get("pooled"),
        guidance_RTD=tensors.get("guidance"),
        encoder=encoder,
        empty=empty,
    )


def write(path: Path, features: CaptionFeatures, names: tuple[str, ...], more: Mapping[str, str]) -> None:
    """Write features in one step.

    Args:
        names: (R,) the candidate that each caption is of. more: further metadata.
    Raises: OSError.
    """
    from safetensors.torch import save_file

    parts = {"": features} | ({} if features.empty is None else {EMPTY: features.empty})
    tensors: dict[str, Tensor] = {}
    for start, part in parts.items():
        optional = {"pooled": part.pooled_RE, "guidance": part.guidance_RTD}
        values = {"sequence": part.sequence_RTD, "length": part.length_R}
        values |= {name: value for name, value in optional.items() if value is not None}
        tensors |= {f"{start}{name}": value.cpu().contiguous() for name, value in values.items()}
    metadata = {"names": json.dumps(names), "captions": json.dumps(features.captions)} | dict(more)
    metadata |= {"encoder": features.encoder} if features.encoder else {}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def _check_tensors(path: Path, file: Any) -> int:
    """Check names, shapes, types and values of all tensors. Returns: R. Raises: UsageError."""
    present = set(file.keys())
    if missing := [name for name in REQUIRED if name not in present]:
        raise _wrong(path, f"it has no tensor '{missing[0]}'; it has {', '.join(sorted(present)) or 'none'}")
    shapes = {n: tuple(file.get_slice(n).get_shape()) for n in present if n.removeprefix(EMPTY) in SHAPES}
    for name, shape in sorted(shapes.items()):
        plain = name.removeprefix(EMPTY)
        dtype, wanted = file.get_slice(name).get_dtype(), "I64" if plain == "length" else "F32"
        if dtype != wanted:
            raise _wrong(path, f"'{name}' is {dtype}, it must be {wanted}")
        if len(shape) != SHAPES[plain] or 0 in shape:
            raise _wrong(path, f"'{name}' has the shape {shape}, it must have {counted(SHAPES[plain], 'dimension')}")
    _check_alike(path, shapes)
    for name, shape in shapes.items():
        _check_values(path, name, file, shapes[name.replace("length", "sequence")][1] if "length" in name else shape[0])
    return int(shapes["sequence"][0])


def _check_alike(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises: UsageError where tensors do not belong together."""
    of_captions = {name for name in shapes if not name.startswith(EMPTY)}
    of_empty = {name.removeprefix(EMPTY) for name in shapes if name.startswith(EMPTY)}
    if of_empty and of_empty != of_captions:
        lacking = sorted(of_captions ^ of_empty)[0]
        raise _wrong(path, f"'{lacking}' is there of the captions or of the empty caption only")
    for name, shape in shapes.items():
        plain = name.removeprefix(EMPTY)
        rows = 1 if name != plain else shapes["sequence"][0]
        if shape[0] != rows:
            raise _wrong(path, f"'{name}' has {counted(shape[0], 'row')}, it must have {rows:,}")
        if plain != "length" and shape[-1] != shapes[plain][-1]:
            raise _wrong(path, f"'{name}' has {shape[-1]} channels, '{plain}' has {shapes[plain][-1]}")


def _check_values(path: Path, name: str, file: Any, positions: int) -> None:
    """Raises: UsageError for values that are not finite, and for lengths outside 1 to `positions`."""
    if name.endswith("length"):
        lengths = file.get_tensor(name)
        wrong = np.flatnonzero((lengths < 1) | (lengths > positions))
        if len(wrong):
            raise _wrong(path, f"row {wrong[0]} has the {name} {lengths[wrong[0]]}, there are {positions} positions")
        return
    values = file.get_slice(name)
    for row in range(values.get_shape()[0]):
        if not np.isfinite(values[row : row + 1]).all():
            raise _wrong(path, f"'{name}' has values in row {row} that are not finite (NaN or infinite)")


def _listed(path: Path, metadata: Mapping[str, str], key: str, count: int) -> tuple[str, ...] | None:
    """A JSON list of texts in the metadata; None if there is none. Raises: UsageError."""
    if key not in metadata:
        return None
    try:
        values = strict_json.parse(metadata[key])
    except ValueError as problem:
        raise _wrong(path, f"'{key}' in its metadata is no JSON: {problem}") from None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _wrong(path, f"'{key}' in its metadata is no list of texts")
    if len(values) != count:
        raise _wrong(path, f"its metadata has {counted(len(values), key.removesuffix('s'))}, 'sequence' {count:,} rows")
    if blank := [i for i, value in enumerate(values) if not value.strip()]:
        raise _wrong(path, f"entry {blank[0]} of '{key}' in its metadata is empty")
    return tuple(values)


def _wrong(path: Path, why: str, fix: str = AGAIN) -> UsageError:
    return UsageError(f"cannot use the features in '{path}'", why, fix)
