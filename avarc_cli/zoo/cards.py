"""Names to cards: what is published (`published`), then what the user has registered (`registered`).

Nothing is imported or downloaded by reading cards.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from avarc_cli.errors import UsageError
from avarc_cli.zoo import published, registered
from avarc_cli.zoo.card import AssetFile, Card, HubFile, LocalFile, ModelCard, TokenizerCard, Weights
from avarc_cli.zoo.published import SCALES_256, SCALES_512, SCALES_DIGITS

__all__ = [
    "SCALES_256",
    "SCALES_512",
    "SCALES_DIGITS",
    "AssetFile",
    "Card",
    "HubFile",
    "LocalFile",
    "ModelCard",
    "TokenizerCard",
    "Weights",
    "any_card",
    "check_condition",
    "check_tokens",
    "check_weights",
    "is_path",
    "model_card",
    "model_cards",
    "tokenizer_card",
    "tokenizer_cards",
]

_Card = TypeVar("_Card", ModelCard, TokenizerCard, ModelCard | TokenizerCard)


def model_cards() -> tuple[ModelCard, ...]:
    """Every known model: the embedded one, the published ones, the user's own."""
    user = registered.load()
    return (*(_pinned(card, user) for card in published.MODELS), *user.models)


def tokenizer_cards() -> tuple[TokenizerCard, ...]:
    """Every known tokenizer: the embedded one, the published ones, the user's own."""
    user = registered.load()
    return (*(_pinned(card, user) for card in published.TOKENIZERS), *user.tokenizers)


def model_card(name: str) -> ModelCard:
    """The card of that name; UsageError with the closest names otherwise."""
    return _find("model", name, model_cards())


def tokenizer_card(name: str) -> TokenizerCard:
    """The card of that name; UsageError with the closest names otherwise."""
    return _find("tokenizer", name, tokenizer_cards())


def any_card(name: str) -> Card:
    """The model or tokenizer of that name; UsageError with the closest names otherwise."""
    cards: tuple[Card, ...] = (*model_cards(), *tokenizer_cards())
    return _find("model or tokenizer", name, cards)


def _pinned(card: _Card, user: registered.Registered) -> _Card:
    """The card with the revision that the user downloaded, if one was named."""
    revision = user.revisions.get(card.name)
    if revision is None or not isinstance(card.weights, HubFile):
        return card
    return dataclasses.replace(card, weights=HubFile(card.weights.repo, card.weights.filename, revision))


def _find(kind: str, name: str, cards: Sequence[_Card]) -> _Card:
    for card in cards:
        if card.name == name:
            return card
    names = [card.name for card in cards]
    close = difflib.get_close_matches(name.lower(), names, n=3)
    raise UsageError(
        f"no {kind} is called '{name}'" + (f"; did you mean {' or '.join(close)}?" if close else ""),
        why=f"known are {', '.join(names)}",
        fix="name one of these, or the path of a checkpoint file",
    )


def is_path(name: str) -> bool:
    """Whether a --model or --tokenizer value names a file rather than a card."""
    known = {card.name for card in model_cards()} | {card.name for card in tokenizer_cards()}
    return name not in known and ("/" in name or Path(name).suffix != "" or Path(name).exists())


def check_condition(card: ModelCard) -> None:
    """Raises: UsageError unless the model has classes."""
    if card.condition != "class":
        why = f"it gives log p(image | {card.condition}), and captions are not supported"
        raise UsageError(
            f"'{card.name}' has no classes", why, "name a class-conditional model: avarc models lists them"
        )


def check_tokens(model: Card | None, tokenizer: Card | None) -> None:
    """Raises: UsageError where one has continuous tokens, and the other codes or tokens of other channels.

    Args:
        model, tokenizer: the cards that the user named, as far as they are a generator's and a tokenizer's.
    """
    if isinstance(model, ModelCard) and isinstance(tokenizer, TokenizerCard) and model.channels != tokenizer.channels:
        reads, gives = (f"tokens of {n} channels" if n else "codes" for n in (model.channels, tokenizer.channels))
        why = f"it reads {reads}, {tokenizer.name} gives {gives}"
        raise UsageError(f"{model.name} cannot read the tokens of {tokenizer.name}", why, "leave out --tokenizer")


def check_weights(name: str) -> None:
    """Raises: UsageError unless this --model or --tokenizer value is a known name or an existing file."""
    if not is_path(name):
        any_card(name)
    elif not Path(name).exists():
        raise UsageError(f"there is no file {name}", fix="check the path, or name a model that `avarc models` lists")
