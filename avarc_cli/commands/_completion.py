"""Values that the shell completes (`avarc --install-completion`); where none fits, it completes names of files.

A function gets what is typed so far, or the command's context, and returns names; Typer picks those that begin alike.
Nothing here imports torch, and nothing fails: an error would be printed into the line that is being typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from avarc_cli.errors import AvarcError


def one_of(*values: str) -> Callable[[], list[str]]:
    """Completes one of these values."""
    return lambda: list(values)


def precisions() -> list[str]:
    """Of commands that score in one precision."""
    from avarc_cli.settings import PRECISIONS

    return list(PRECISIONS)


def comma_list(offer: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    """Completes the last item of a comma-separated list with what `offer` gives, but for the items before it."""

    def lists(typed: str) -> list[str]:
        before, comma, _ = typed.rpartition(",")
        return [f"{before}{comma}{name}" for name in offer() if name not in before.split(",")]

    return lists


def encoder_precisions() -> list[str]:
    """Of avarc encode."""
    from avarc_cli.settings import ENCODER_PRECISIONS

    return list(ENCODER_PRECISIONS)


def training_precisions() -> list[str]:
    from avarc_cli.settings import TRAINING_PRECISIONS

    return list(TRAINING_PRECISIONS)


def scoring_precisions() -> list[str]:
    """Of avarc classify, which also knows cascades."""
    from avarc_cli.settings import AUTO_PRECISION, CASCADE

    return [*precisions(), CASCADE, AUTO_PRECISION]


def plans() -> list[str]:
    """Plans that have a name; for those in files, the names of files."""
    return ["exhaustive", "paper", "auto"]


def devices() -> list[str]:
    from avarc_cli.settings import DEVICE_TYPES

    return ["auto", *DEVICE_TYPES]


def models() -> list[str]:
    """Names of models, those of the user included."""
    from avarc_cli.zoo import cards

    return _names(cards.model_cards)


def presets() -> list[str]:
    """Published settings of drawing: of the typed model, or by the name of a model."""
    from avarc_cli.sampling.presets import PAPER, published

    return [PAPER, *published()]


def tokenizers() -> list[str]:
    from avarc_cli.zoo import cards

    return _names(cards.tokenizer_cards)


def text_encoders() -> list[str]:
    from avarc_cli.zoo import cards

    return _names(cards.text_encoder_cards)


def downloads() -> list[str]:
    """All that avarc models lists."""
    from avarc_cli.zoo.networks import NETWORKS

    return [*models(), *tokenizers(), *text_encoders(), *_names(lambda: NETWORKS)]


def registered() -> list[str]:
    """Names that avarc models add gave."""
    from avarc_cli.zoo import registered

    return _names(lambda: registered.load().cards)


def datasets() -> list[str]:
    from avarc_cli.data import known

    return [*known.datasets(), "none"]


def subsets() -> list[str]:
    """Included lists of classes."""
    from avarc_cli.data.labels import subset_names

    return list(subset_names())


def bank_classes(context: typer.Context) -> list[str]:
    """Added classes of the bank that --bank names, if that is typed already."""
    from avarc_cli import bank

    path = context.params.get("bank")
    return [] if path is None else _names(lambda: bank.read(Path(path)).additions)


def known_classes(context: typer.Context) -> list[str]:
    """Of the model and the bank that are typed already: ids, and names of one word, as a shell divides others."""
    from avarc_cli import known_classes as library

    added, model = bank_classes(context), context.params.get("model")
    if model is None:
        return added
    typed = {name: context.params.get(name) for name in ("class_names", "class_order")}
    with suppress(AvarcError, OSError):
        if (space := library.known_classes(model, **typed)) is not None:
            own = dict.fromkeys([*space.ids, *space.names])
            return [*added, *(name for name in own if len(name.split()) == 1)]
    return added


def one_class(*roles: str) -> Callable[[typer.Context], list[str]]:
    """Completes one of these roles, or a known class."""

    def names(context: typer.Context) -> list[str]:
        return [*roles, *known_classes(context)]

    return names


def classes(context: typer.Context) -> list[str]:
    """Known classes, and the included lists of classes."""
    return [*known_classes(context), *subsets()]


def candidates(context: typer.Context) -> list[str]:
    return ["all", *classes(context)]


def recipes() -> list[str]:
    from avarc_cli.recipes import included

    return included()


def protocols() -> list[str]:
    from avarc_cli.evaluation.protocol import included

    return list(included())


def _names(read: Callable[[], Iterable[Any]]) -> list[str]:
    """The names of what is read; none where that fails."""
    with suppress(AvarcError, OSError):
        return [item.name for item in read()]
    return []
