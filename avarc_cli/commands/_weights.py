"""Weights that a command needs and that may not be here: downloaded on the way, if the user wants that."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console

if TYPE_CHECKING:
    from pathlib import Path

    from avarc_cli.zoo.card import Card, HubFile
    from avarc_cli.zoo.download import Downloaded

YesOpt = Annotated[bool, typer.Option("--yes", "-y", help="Download missing weights without asking.")]


def ensure(model: str, tokenizer: str | None = None, *, yes: bool, tokenizer_only: bool = False) -> None:
    """See to it that the named weights are here, before a command loads them: one line, right at its beginning.

    Missing ones are downloaded with `yes`, or when the user at the terminal says so; a pickle that another tool
    downloaded gets its copy that loads at once. Values that are paths, or no known names, are left to the loader.

    Args:
        model: the value of --model: a name or a path.
        tokenizer: the value of --tokenizer, None for the one that the model's card implies.
        yes: the value of `YesOpt`.
        tokenizer_only: whether the command loads no generator.
    Raises: AvarcError naming `avarc download NAME` where they are missing and stay so.
    """
    from avarc_cli.zoo import cards, local_files

    known: dict[str, Card] = {card.name: card for card in cards.model_cards()}
    known |= {card.name: card for card in cards.tokenizer_cards()}
    card = known.get(model)
    wanted = [] if tokenizer_only and isinstance(card, cards.ModelCard) else [model]
    wanted.append(tokenizer or (card.tokenizer if isinstance(card, cards.ModelCard) else model))
    named = [known[name] for name in dict.fromkeys(wanted) if name in known]
    missing = [c for c in named if isinstance(c.weights, cards.HubFile) and local_files.locate(c.weights) is None]
    if missing and not (yes or _agreed(missing)):
        local_files.require(missing[0])  # raises, and says how to get it
    if missing:
        fetch([card.weights for card in missing if isinstance(card.weights, cards.HubFile)])
    for card in named:
        path = local_files.locate(card.weights)
        if path is not None and not isinstance(card.weights, cards.AssetFile):
            keep(path)


def fetch(wanted: Sequence[HubFile], *, folder: Path | None = None, offline: bool = False) -> list[Downloaded]:
    """Download files, each with its progress bar; the first byte comes when there is space for all.

    Args:
        wanted: with the revisions to get.
        folder: a plain folder, or None for the Hugging Face cache.
        offline: ask nobody.
    """
    from avarc_cli.zoo import download

    planned = [download.plan(file, folder=folder, offline=offline, say=console.note) for file in dict.fromkeys(wanted)]
    download.check_space(planned)
    done = []
    for one in planned:
        with console.progress(one.file.filename, None, unit="MB") as bar:

            def show(done: int, total: int | None = None, note: str = "", bar: console.ProgressBar = bar) -> None:
                bar.update(done // 10**6, None if total is None else total // 10**6, note)

            done.append(download.carry_out(one, show, console.note))
    return done


def keep(path: Path, sha256: str | None = None) -> None:
    """Make later loads of a file fast (zoo.checkpoint.keep); where that fails, say so: it loads all the same."""
    from avarc_cli.errors import AvarcError
    from avarc_cli.zoo import weights_index

    if weights_index.is_kept(path):
        return
    from avarc_cli.zoo import checkpoint  # loads torch

    console.note(f"{path.name}: preparing it once, so that it loads at once")
    try:
        checkpoint.keep(path, sha256)
    except AvarcError as problem:
        console.warn(f"{problem.what} ({problem.why})")


def _agreed(missing: Sequence[Card]) -> bool:
    """Ask, where somebody is there to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or console.mode() is not console.Mode.HUMAN:
        return False
    names = " and ".join(card.name for card in missing)
    try:
        return typer.confirm(f"The weights of {names} are not on this machine. Download them now?", err=True)
    except typer.Abort:  # Ctrl-C, or the end of the input
        return False
