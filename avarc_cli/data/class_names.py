"""What a model's class ids mean: from the user's list, the checkpoint, its card, or the number of classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from avarc_cli.data.labels import LabelSpace, imagenet1k
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.names import from_json
from avarc_cli.words import counted

IMAGENET_CLASSES = 1000
NUMBER, TEXT = "number", "text"  # orders of folders that are called after numbers
ORDER_SHOWN = 5  # folders in a note


def class_space(
    num_classes: int,
    space: str | None,
    class_names: str | Path | None,
    metadata: Mapping[str, str],
    order: str | None = None,
) -> LabelSpace:
    """The label space of a model; the first of these that there is: list, metadata, card, ImageNet, numbers.

    Args:
        space: the label space that the model's card names, if any.
        class_names: the user's text file with one class on each line, in the order of the class ids; or the folder
            whose sub-folders were the classes in training, which trainers number in sorted order.
        metadata: the checkpoint's own; "class_names" holds a JSON list.
        order: for a model whose classes nothing names, the order in which its training numbered folders that are
            called 0, 1, 2, ...: by "number", or as "text" (0, 1, 10, 11, 2, ...), as torchvision's DatasetFolder does
            and with it VAR's own trainer. None for the default, "number".
    Raises: UsageError for a list that cannot be read or does not fit, and for an order that is unknown or has no use;
        CheckpointError for such metadata.
    """
    named = named_space(space, class_names, metadata, order, num_classes=num_classes)
    if named is not None:
        return named
    if order is None and num_classes == IMAGENET_CLASSES:
        return imagenet1k()
    numbers = [str(i) for i in range(num_classes)]
    if order == TEXT:
        return _numbered("class numbers sorted as text", sorted(numbers), TEXT)
    return _numbered("class numbers", numbers, NUMBER)


def read_class_names(path: Path) -> tuple[str, ...]:
    """The lines of a text file, or the names of a folder's sub-folders, sorted. Raises: UsageError."""
    return _sub_folders(path) if path.is_dir() else _read_lines(path)


def explain_numbers(class_names: Sequence[str], space: LabelSpace) -> str:
    """How the numbers that folders are called after were understood, and what else they may mean; "" without numbers.

    Args:
        class_names: the classes of a dataset.
        space: the model's classes.
    """
    numbers = [int(name) for name in class_names if name.isdecimal()]
    if numbers and space == imagenet1k():
        return "the labels are numbers, not synsets or names; with --dataset imagenet-val they are ImageNet's indices"
    if not numbers or not space.numbered:
        return ""
    count = sum(label.isdecimal() for label in space.ids)  # without those that a bank added
    by_text = sorted(map(str, range(count)))
    orders_differ = by_text != list(map(str, range(count)))
    shown = f"0, 1, {', '.join(by_text[2:ORDER_SHOWN])}, ..." if orders_differ else ""
    if space.numbered == TEXT:
        said = f"class folders are taken for its classes in the order of their names as text ({shown or by_text[-1]})"
        other = ""
    else:
        said = "the numbers that class folders are called after are taken for its class ids"
        other = f"if training sorted folders as text ({shown}), add --class-order {TEXT}" if orders_differ else ""
    outside = f"it has classes 0 to {count - 1}, not {max(numbers)}" if max(numbers) >= count else ""
    folder = "--class-names TRAINING_FOLDER takes its sub-folders in sorted order" if other or outside else ""
    return "; ".join(filter(None, ("the model does not name its classes", said, outside, other, folder)))


def named_space(
    space: str | None,
    class_names: str | Path | None,
    metadata: Mapping[str, str],
    order: str | None = None,
    *,
    num_classes: int | None = None,
) -> LabelSpace | None:
    """The label space that the user, the checkpoint or its card names; None if none does.

    Args:
        num_classes: None where it is not known yet.
    Raises: as `class_space`.
    """
    check_order(order)
    named = None
    if class_names is not None:
        named = _named(Path(class_names).name, read_class_names(Path(class_names)), num_classes)
    elif "class_names" in metadata:
        named = _named("the checkpoint's classes", _read_names(metadata["class_names"]), num_classes)
    elif space == "imagenet1k":
        named = imagenet1k()
    if named is not None and order is not None:
        raise UsageError("no use for --class-order", f"the classes have names ({named.name})", "leave it out")
    return named


def check_order(order: str | None) -> None:
    """Raises: UsageError unless this is an order of folders that are called after numbers, or None."""
    if order not in (None, NUMBER, TEXT):
        raise UsageError(f"no class order '{order}'", f"there are {NUMBER} and {TEXT}")


def _numbered(name: str, ids: Sequence[str], order: str) -> LabelSpace:
    return LabelSpace(name, tuple(ids), tuple(ids), numbered=order)


def _named(name: str, ids: tuple[str, ...], num_classes: int | None) -> LabelSpace:
    if num_classes not in (None, len(ids)) or len(set(ids)) != len(ids):
        of_model = "" if num_classes is None else f"; the model has {counted(num_classes, 'class')}"
        raise UsageError(
            f"{name}: the class names do not fit the model",
            f"{counted(len(ids), 'name')}, {len(set(ids)):,} of them different{of_model}",
            "give one name a line, in the order of the class ids",
        )
    return LabelSpace(name, ids, ids)


def _sub_folders(path: Path) -> tuple[str, ...]:
    try:
        with os.scandir(path) as entries:
            return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))
    except OSError as error:
        raise UsageError(f"cannot read the class folders in {path}", str(error)) from None


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the class names in {path}", str(error)) from None
    return tuple(line.strip() for line in lines if line.strip())


def _read_names(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name in from_json(text))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            "the class names in the checkpoint cannot be read", str(error), "use --class-names"
        ) from None
