"""Finds the weights files of cards on this machine, without using the network."""

from __future__ import annotations

from pathlib import Path

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.zoo import paths
from avarc_cli.zoo.card import (
    AssetFile,
    AssetFolder,
    Card,
    HubFile,
    HubFolder,
    LocalFile,
    NetworkCard,
    TextEncoderCard,
    WebFile,
    Weights,
)

SHA256_LENGTH = 64  # hex digits; the name of a blob that is a large file
ASSETS = Path(__file__).resolve().parent.parent / "assets"


def locate(weights: Weights | WebFile) -> Path | None:
    """The path of a file that is included in avarc, was downloaded, or is the user's own; None if missing."""
    if isinstance(weights, AssetFile):
        path = ASSETS / weights.filename
    elif isinstance(weights, LocalFile):
        path = weights.path
    elif isinstance(weights, WebFile):
        path = paths.torch_folder() / weights.filename
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(weights.repo, weights.filename, revision=weights.revision)
        if not isinstance(cached, str):  # None, or a marker that the repository has no such file
            return None
        path = Path(cached)
    return path if path.is_file() else None


def require(card: Card) -> Path:
    """The path of a card's weights. Raises: AvarcError that says how to get them if they are missing."""
    path = locate(card.weights)
    if path is not None:
        return path
    what = f"the weights of '{card.name}' are not on this machine"
    weights = card.weights
    if isinstance(weights, HubFile):
        raise AvarcError(
            what,
            why=f"the Hugging Face cache does not contain {weights.filename} of {weights.repo}",
            fix=f"{download_command(card)}   (or use the path of a file that you have)",
        )
    if isinstance(weights, AssetFile):
        raise AvarcError(
            what,
            why=f"{ASSETS / weights.filename} is missing, which is part of avarc",
            fix="install avarc again",
        )
    raise UsageError(
        what, why=f"there is no file {weights.path}", fix=f"put it back, or: avarc models remove {card.name}"
    )


def locate_folder(folder: HubFolder | AssetFolder) -> Path | None:
    """The folder, shipped or in the Hugging Face cache, that contains all of these files; None if one is missing."""
    if isinstance(folder, AssetFolder):
        return ASSETS / folder.folder
    found = [locate(file) for file in folder.files]
    return found[0].parent if found[0] is not None and all(found) else None


def require_folder(card: TextEncoderCard) -> Path:
    """The folder of a text encoder. Raises: AvarcError that says how to get it if it is missing."""
    found = locate_folder(card.weights)
    if found is None:
        assert isinstance(card.weights, HubFolder)
        what = f"the text encoder '{card.name}' is not on this machine"
        why = f"the Hugging Face cache does not contain all of {card.weights.repo} that it needs"
        raise AvarcError(what, why, f"{download_command(card)}   (or use the path of a folder that you have)")
    return found


def require_network(card: NetworkCard) -> Path:
    """The file of a frozen network. Raises: AvarcError that says how to get it if it is missing."""
    found = locate(card.weights)
    if found is None:
        why = f"{paths.torch_folder()} does not contain {card.weights.filename}"
        fix = f"{download_command(card)}   (or name a file that you have: {card.option})"
        raise AvarcError(f"the network '{card.name}' is not on this machine", why, fix)
    return found


def blob_sha256(cached: Path) -> str | None:
    """The sha256 that a file in the Hugging Face cache must have: the name of a blob. None if its name is not one."""
    name = cached.resolve().name
    return name if len(name) == SHA256_LENGTH else None


def weight_set(card: Card | None) -> str | None:
    """Which of several sets of weights in its file a card means."""
    return card.weights.weight_set if card is not None and isinstance(card.weights, LocalFile) else None


def download_command(card: Card | TextEncoderCard | NetworkCard) -> str:
    """The shell command that downloads the card's file to where `locate` finds it."""
    return f"avarc download {card.name}"
