"""Names to cards: what is published (`published`), then what the user has registered (`registered`).

Nothing is imported or downloaded by reading cards.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from avarc_cli.errors import UsageError
from avarc_cli.zoo import model_folder, published, registered
from avarc_cli.zoo.card import (
    AssetFile,
    AssetFolder,
    Card,
    HubFile,
    HubFolder,
    LocalFile,
    ModelCard,
    TextEncoderCard,
    TokenizerCard,
    Weights,
)
from avarc_cli.zoo.included import SCALES_DIGITS
from avarc_cli.zoo.published import SCALES_256, SCALES_512
from avarc_cli.zoo.text_encoders import TEXT_ENCODERS

__all__ = [
    "SCALES_256",
    "SCALES_512",
    "SCALES_DIGITS",
    "AssetFile",
    "AssetFolder",
    "Card",
    "HubFile",
    "HubFolder",
    "LocalFile",
    "ModelCard",
    "TextEncoderCard",
    "TokenizerCard",
    "Weights",
    "any_card",
    "caption_card",
    "check_captions",
    "check_condition",
    "check_tokens",
    "check_weights",
    "is_path",
    "model_card",
    "model_cards",
    "text_encoder_card",
    "text_encoder_cards",
    "tokenizer_card",
    "tokenizer_cards",
]

CAPTION_OPTIONS = '--captions FILE or --template "a photo of a {}"'

LISTED = 26
"""Letters of close names that a message has; of more only the closest is named."""

_Card = TypeVar("_Card", ModelCard, TokenizerCard, TextEncoderCard, ModelCard | TokenizerCard)


def model_cards() -> tuple[ModelCard, ...]:
    """Every known model: the included one, the published ones, the user's own."""
    user = registered.load()
    return (*(_pinned(card, user) for card in published.MODELS), *user.models)


def tokenizer_cards() -> tuple[TokenizerCard, ...]:
    """Every known tokenizer: the included one, the published ones, the user's own."""
    user = registered.load()
    return (*(_pinned(card, user) for card in published.TOKENIZERS), *user.tokenizers)


def text_encoder_cards() -> tuple[TextEncoderCard, ...]:
    """Every known text encoder."""
    user = registered.load()
    return tuple(_pinned(card, user) for card in TEXT_ENCODERS)


def text_encoder_card(name: str) -> TextEncoderCard:
    """The card of that name; UsageError with the closest names otherwise."""
    return _find("text encoder", name, text_encoder_cards(), path="a folder with one")


def model_card(name: str) -> ModelCard:
    """The card of that name; UsageError with the closest names otherwise."""
    return _find("model", name, model_cards())


def tokenizer_card(name: str) -> TokenizerCard:
    """The card of that name; UsageError with the closest names otherwise."""
    return _find("tokenizer", name, tokenizer_cards())


def caption_card(model: str) -> ModelCard | None:
    """The card of a model of captions that a --model value names; None for any other value."""
    return next((card for card in model_cards() if card.name == model and card.condition == "caption"), None)


def any_card(name: str, *, also: Sequence[str] = ()) -> Card:
    """The model or tokenizer of that name; UsageError with the closest names otherwise.

    Args:
        also: other names that would have been right.
    """
    cards: tuple[Card, ...] = (*model_cards(), *tokenizer_cards())
    return _find("model or tokenizer", name, cards, also=also)


def _pinned(card: _Card, user: registered.Registered) -> _Card:
    """The card with the revision that the user downloaded, if one was named."""
    revision = user.revisions.get(card.name)
    if revision is None or not isinstance(card.weights, (HubFile, HubFolder)):
        return card
    weights: Any = card.weights.at(revision)  # of the same kind, as the card's own kind needs
    return dataclasses.replace(card, weights=weights)


def _find(
    kind: str,
    name: str,
    cards: Sequence[_Card],
    path: str = "the path of a checkpoint file",
    also: Sequence[str] = (),
) -> _Card:
    """The card of that name. Args: path: what else the user may give."""
    for card in cards:
        if card.name == name:
            return card
    close = difflib.get_close_matches(name.lower(), [*(card.name for card in cards), *also], n=3)
    if len("".join(close)) > LISTED:  # the message should fit into a line
        del close[1:]
    listed = "avarc models lists all"
    fix = f"did you mean {' or '.join(close)}? {listed}" if close else f"{listed} names; or give {path}"
    raise UsageError(f"no {kind} is called '{name}'", fix=fix)


def is_path(name: str) -> bool:
    """Whether a --model or --tokenizer value names a file rather than a card."""
    known = {card.name for card in model_cards()} | {card.name for card in tokenizer_cards()}
    return name not in known and ("/" in name or Path(name).suffix != "" or Path(name).exists())


def check_condition(card: ModelCard, *, captions: bool | None) -> None:
    """Raises: UsageError where a model of captions is given none, or a model of classes is given some.

    Args:
        captions: whether there are some; None for a command that has no use for such models.
    """
    reads_captions = card.condition == "caption"
    if reads_captions and captions is None:
        why, fix = "it gives log p(image | caption)", "name a class-conditional model: avarc models lists them"
        raise UsageError(f"'{card.name}' has no classes", why, fix)
    check_captions(card.name, reads_captions=reads_captions, captions=bool(captions))


def check_captions(name: str, *, reads_captions: bool, captions: bool) -> None:
    """As `check_condition`, of a model of this name."""
    if reads_captions and not captions:
        why = "it gives log p(image | caption)"
        raise UsageError(f"'{name}' has no classes", why, f"name captions: {CAPTION_OPTIONS}")
    if captions and not reads_captions:
        why = "it gives log p(image | class), and its classes are fixed"
        raise UsageError(f"'{name}' reads no captions", why, f"leave out {CAPTION_OPTIONS}")


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
    """Check a --model or --tokenizer value.

    Raises: UsageError unless it is a known name, or a file or folder with weights; CheckpointError for a damaged
        model folder.
    """
    if not is_path(name):
        any_card(name)
    elif not Path(name).exists():
        raise UsageError(f"there is no file {name}", fix="check the path, or name a model that `avarc models` lists")
    elif Path(name).is_dir():
        model_folder.check(Path(name))
