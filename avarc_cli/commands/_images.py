"""The images that a command reads: opening them, and telling what was recognized and what is not used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from avarc_cli import console
from avarc_cli.errors import UsageError
from avarc_cli.words import are, counted

if TYPE_CHECKING:
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.data.labels import LabelSpace
    from avarc_cli.tokens.cache import TokenCache

UNREADABLE_SHOWN = 10
Images = TypeVar("Images", "ImageSet", "TokenCache")


@dataclass(frozen=True)
class Part:
    """The part of a set of images, or of a token cache, that --limit or --sample chooses."""

    limit: int | None
    sample: int | None
    seed: int = 0

    def check(self) -> None:
        """Raises: UsageError for both options together, and for numbers below 1."""
        if self.limit is not None and self.sample is not None:
            why = "--limit takes the first images, --sample draws some at random"
            raise UsageError("--limit and --sample cannot be used together", why, "leave out one of them")
        for option, number in (("limit", self.limit), ("sample", self.sample)):
            if number is not None and number < 1:
                raise UsageError(f"--{option} {number}", "the number of images must be at least 1")

    def of(self, images: Images) -> Images:
        """That part of these images; reports what is special about it."""
        labels = images.labels
        if self.sample is not None:
            without = int((labels < 0).sum())
            if without == len(labels):
                console.note("the images have no labels: --sample draws from all of them alike")
            elif without:
                console.note(f"--sample leaves out {counted(without, 'image')} without a label")
            return images.sample(self.sample, self.seed)
        part = images.first(self.limit)
        classes, of = (len(set(labels_N[labels_N >= 0].tolist())) for labels_N in (part.labels, labels))
        if 2 * classes < min(len(part), of):
            shown = counted(len(part), "image")
            console.warn(
                f"the first {shown} {are(len(part))} of {classes:,} of {counted(of, 'class')}; "
                f"--sample {len(part)} draws evenly"
            )
        return part


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
    dataset: str | None = None,
    *,
    allow_outside: bool = False,
) -> ImageSet:
    """The images of the classes that the data options choose; notes what was recognized.

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
    chosen = images.select(classes_of(subset) if subset is not None else None, per_class, None)
    for message in chosen.notes[len(images.notes) :]:
        console.note(message)
    return chosen


def list_unreadable(unreadable: list[tuple[str, str]]) -> None:
    """Warn of inputs that were left out, and why."""
    for name, reason in unreadable[:UNREADABLE_SHOWN]:
        console.warn(f"left out {name}: {reason}")
    if len(unreadable) > UNREADABLE_SHOWN:
        console.warn(f"left out {counted(len(unreadable) - UNREADABLE_SHOWN, 'more unreadable image')}")
