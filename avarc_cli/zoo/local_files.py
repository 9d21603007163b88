"""Where the files of a card lie on this machine. Nothing here uses the network."""

from __future__ import annotations

from pathlib import Path

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.zoo.card import AssetFile, Card, HubFile, LocalFile, Weights

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def locate(weights: Weights) -> Path | None:
    """The file on this disk, or None: shipped files, the Hugging Face cache, or the user's own path."""
    if isinstance(weights, AssetFile):
        path = ASSETS / weights.filename
    elif isinstance(weights, LocalFile):
        path = weights.path
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(weights.repo, weights.filename, revision=weights.revision)
        if not isinstance(cached, str):  # None, or a marker that the file is known not to exist
            return None
        path = Path(cached)
    return path if path.is_file() else None


def require(card: Card) -> Path:
    """The card's weights; an AvarcError that tells how to get them where they are not here."""
    path = locate(card.weights)
    if path is not None:
        return path
    what = f"the weights of '{card.name}' are not on this machine"
    weights = card.weights
    if isinstance(weights, HubFile):
        raise AvarcError(
            what,
            why=f"the Hugging Face cache does not hold {weights.filename} of {weights.repo}",
            fix=f"{download_command(card)}   (or name a file you have by its path)",
        )
    if isinstance(weights, AssetFile):
        raise AvarcError(
            what,
            why=f"{ASSETS / weights.filename} is missing, though avarc is shipped with it",
            fix="install avarc again",
        )
    raise UsageError(
        what, why=f"there is no file {weights.path}", fix=f"put it back, or: avarc models remove {card.name}"
    )


def download_command(card: Card) -> str:
    """The shell command that puts the card's file where `locate` finds it."""
    return f"avarc download {card.name}"
