"""The images that a command reads: opening them, and telling what was recognized and what is not used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avarc_cli import console
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.data.labels import LabelSpace

UNREADABLE_SHOWN = 10


def warn_of_photos(images: ImageSet, name: str) -> None:
    """Warn, once, if a model that comes with avarc, and knows digits only, is to read color photos."""
    from avarc_cli.data.photos import find_photo
    from avarc_cli.zoo import cards

    known: list[cards.Card] = [*cards.model_cards(), *cards.tokenizer_cards()]
    is_included = any(card.name == name and isinstance(card.weights, cards.AssetFile) for card in known)
    if is_included and (photo := find_photo(images)):
        console.warn(f"{photo} is a color photo, but {name} knows handwritten digits only; avarc models lists others")


def open_noted(data: list[Path], dataset: str | None = None, *, allow_outside: bool = False) -> ImageSet:
    """All images of DATA; notes what was recognized, and what is not used."""
    from avarc_cli.data.datasets import open_images

    images = open_images(data, dataset, allow_outside=allow_outside)
    note_images(images)
    return images


def note_images(images: ImageSet) -> None:
    """Report how images were recognized, and what of their files is not used."""
    for message in images.notes:
        console.note(message)


def note_numbers(class_names: Sequence[str], space: LabelSpace) -> None:
    """Say what numbers that a dataset's classes are called after stand for, if the model does not name its classes."""
    from avarc_cli.data.class_names import explain_numbers

    if explained := explain_numbers(class_names, space):
        console.note(explained)


def select(
    data: list[Path],
    subset: str | None,
    per_class: int | None,
    limit: int | None,
    dataset: str | None = None,
    *,
    allow_outside: bool = False,
) -> ImageSet:
    """The images that the data options choose; notes what was recognized.

    ObjectNet's objects without an ImageNet class are left out unless a subset names them.
    """
    from avarc_cli.data.labels import subset as classes_of

    images = open_noted(data, dataset, allow_outside=allow_outside)
    if subset is None and (left_out := images.classes_outside_imagenet()):
        covered = [name for name in images.class_names if name not in left_out]
        kept = images.select(covered, None, None)
        out = f"{counted(len(images) - len(kept), 'image')} of {counted(len(left_out), 'object')}"
        console.note(f"left out {out} without an ImageNet class (to keep them, name them with --subset FILE)")
        images = kept
    chosen = images.select(classes_of(subset) if subset is not None else None, per_class, limit)
    for message in chosen.notes[len(images.notes) :]:
        console.note(message)
    return chosen


def list_unreadable(unreadable: list[tuple[str, str]]) -> None:
    """Warn of inputs that were left out, and why."""
    for name, reason in unreadable[:UNREADABLE_SHOWN]:
        console.warn(f"left out {name}: {reason}")
    if len(unreadable) > UNREADABLE_SHOWN:
        console.warn(f"left out {counted(len(unreadable) - UNREADABLE_SHOWN, 'more unreadable image')}")
