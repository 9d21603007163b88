"""Where the files of a card lie on this machine. Nothing here uses the network."""

from __future__ import annotations

from pathlib import Path

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.zoo.cards import AssetFile, HubFile, LocalFile, ModelCard, TokenizerCard, Weights

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


def require(card: ModelCard | TokenizerCard) -> Path:
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
            fix=f"{download_command(weights)}   (or name a file you have by its path)",
        )
    if isinstance(weights, AssetFile):
        raise AvarcError(
            what,
            why=f"{ASSETS / weights.filename} is missing, though avarc is shipped with it",
            fix="install avarc again",
        )
    raise UsageError(what, why=f"there is no file {weights.path}", fix="check the path")


def download_command(weights: HubFile) -> str:
    """The shell command (huggingface_hub's own) that puts the file where `locate` finds it."""
    pinned = f" --revision {weights.revision}" if weights.revision else ""
    return f"hf download {weights.repo} {weights.filename}{pinned}"
