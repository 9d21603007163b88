"""avarc models: what can be loaded, and whether it is here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands._options import JsonOpt

if TYPE_CHECKING:
    from avarc_cli.zoo.cards import ModelCard, TokenizerCard, Weights

COLUMNS = ("name", "family", "params", "pixels", "tokens", "licence", "from", "here")


def models(
    name: Annotated[str | None, typer.Argument(help="Show only this model or tokenizer, with all details.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """List models and tokenizers: size, licence, source, and whether they are here.

    Example: avarc models var-d16
    """
    from avarc_cli.zoo import cards

    if name is not None:
        card = cards.any_card(name)
        console.result(_facts(card), console.fields(card.name, _details(card)), brief=card.name)
        return
    known, tokenizers = cards.model_cards(), cards.tokenizer_cards()
    console.result(
        {"models": [_facts(card) for card in known], "tokenizers": [_facts(card) for card in tokenizers]},
        console.stack(
            console.table("Models", COLUMNS, [_row(card) for card in known]),
            console.table("Tokenizers", COLUMNS, [_row(card) for card in tokenizers]),
            "`avarc models NAME` shows one, and how to get it. A checkpoint file of your own is named by its path.",
        ),
        brief="\n".join([card.name for card in known] + [card.name for card in tokenizers]),
    )


def _row(card: ModelCard | TokenizerCard) -> tuple[object, ...]:
    from avarc_cli.zoo import files

    here = "yes" if files.locate(card.weights) else "no"
    size = (_millions(card.params), card.image_size, card.num_tokens)
    licence = card.license.split(";")[0]  # the whole of it stands in the card
    return (card.name, card.family, *size, licence, _origin(card.weights), here)


def _facts(card: ModelCard | TokenizerCard) -> dict[str, object]:
    """The card as data, with what follows from it."""
    from avarc_cli.zoo import files

    return dataclasses.asdict(card) | {"num_tokens": card.num_tokens, "path": files.locate(card.weights)}


def _details(card: ModelCard | TokenizerCard) -> dict[str, object]:
    """The card as people read it."""
    from avarc_cli.zoo import cards, files

    facts = _facts(card)
    scales = ", ".join(map(str, card.patch_nums))
    facts |= {
        "params": _millions(card.params),
        "patch_nums": f"{scales} (tokens per side of each scale; {card.num_tokens} in all)",
        "image_size": f"{card.image_size} pixels",
        "weights": _origin(card.weights),
        "path": facts["path"] or "not on this machine",
    }
    if isinstance(card.weights, cards.HubFile):
        facts["revision"] = card.weights.revision or "unpinned"
        facts["get it"] = files.download_command(card.weights)
    return {key.replace("_", " "): value for key, value in facts.items() if key not in {"name", "num_tokens"}}


def _origin(weights: Weights) -> str:
    from avarc_cli.zoo import cards

    if isinstance(weights, cards.HubFile):
        return f"{weights.repo} ({weights.revision[:8] if weights.revision else 'unpinned'})"
    return "shipped with avarc" if isinstance(weights, cards.AssetFile) else str(weights.path)


def _millions(params: int | None) -> str:
    if params is None:
        return "?"
    return f"{params / 1e9:.1f} B" if params >= 1e9 else f"{params / 1e6:.3g} M"
