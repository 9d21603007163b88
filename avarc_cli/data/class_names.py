"""What a model's class ids mean: from the user's list, the checkpoint, its card, or the number of classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from avarc_cli.data.labels import LabelSpace, imagenet1k
from avarc_cli.errors import CheckpointError, UsageError

IMAGENET_CLASSES = 1000


def class_space(
    num_classes: int, space: str | None, class_names: str | Path | None, metadata: Mapping[str, str]
) -> LabelSpace:
    """The label space of a model; the first of these that there is: list, metadata, card, ImageNet, numbers.

    Args:
        space: the label space that the model's card names, if any.
        class_names: the user's text file with one class on each line, in the order of the class ids.
        metadata: the checkpoint's own; "class_names" holds a JSON list.
    Raises: UsageError for a list that cannot be read or does not fit; CheckpointError for such metadata.
    """
    if class_names is not None:
        return _named(Path(class_names).name, _read_lines(Path(class_names)), num_classes)
    if "class_names" in metadata:
        return _named("the checkpoint's classes", _read_names(metadata["class_names"]), num_classes)
    if space == "imagenet1k" or num_classes == IMAGENET_CLASSES:
        return imagenet1k()
    return _named("class numbers", tuple(str(i) for i in range(num_classes)), num_classes)


def _named(name: str, ids: tuple[str, ...], num_classes: int) -> LabelSpace:
    if len(ids) != num_classes or len(set(ids)) != len(ids):
        raise UsageError(
            f"{name}: the class names do not fit the model",
            f"{len(ids)} names, {len(set(ids))} of them different; the model has {num_classes} classes",
            "give one name a line, in the order of the class ids",
        )
    return LabelSpace(name, ids, ids)


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the class names in {path}", str(error)) from None
    return tuple(line.strip() for line in lines if line.strip())


def _read_names(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name in json.loads(text))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            "the class names in the checkpoint cannot be read", str(error), "use --class-names"
        ) from None
