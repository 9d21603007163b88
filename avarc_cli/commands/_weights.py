"""Makes sure that the weights a command needs are on this machine, and downloads missing ones if the user agrees."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from avarc_cli import console

if TYPE_CHECKING:
    from pathlib import Path

    from avarc_cli.zoo.card import Card, Downloadable, TextEncoderCard
    from avarc_cli.zoo.download import Check, Downloaded


def ensure(
    model: str,
    tokenizer: str | None = None,
    weight_set: str | None = None,
    tokenizer_weight_set: str | None = None,
    *,
    yes: bool,
    tokenizer_only: bool = False,
    captions: bool | None = None,
    text_encoder: str | None = None,
) -> None:
    """Make sure that the named weights are available; commands call this first.

    Missing weights are downloaded with `yes`, or if the user agrees at the terminal. Pickles are converted to
    safetensors once. Values that are paths or unknown names are left to the loader.

    Args:
        model: the value of --model: a name or a path.
        tokenizer: the value of --tokenizer; None for the one that the model's card implies.
        weight_set, tokenizer_weight_set: the values of these options.
        yes: download without asking.
        tokenizer_only: whether the command loads no generator.
        captions: whether there are captions to score; None for a command that scores none.
        text_encoder: the name of the one that is to encode them; None where none is needed, or the user has a folder.
    Raises: AvarcError with the command `avarc download NAME` if weights are missing and not downloaded; UsageError for
        a generator without classes, unless there are captions.
    """
    from avarc_cli.zoo import cards, local_files

    known: dict[str, Card] = {card.name: card for card in cards.model_cards()}
    known |= {card.name: card for card in cards.tokenizer_cards()}
    card = known.get(model)
    wanted = [] if tokenizer_only and isinstance(card, cards.ModelCard) else [model]
    cards.check_tokens(card, known.get(tokenizer or ""))
    wanted.append(tokenizer or (card.tokenizer if isinstance(card, cards.ModelCard) else model))
    named = [known[name] for name in dict.fromkeys(wanted) if name in known]
    for generator in (card for card in named if isinstance(card, cards.ModelCard)):
        cards.check_condition(generator, captions=captions)
    encoders = [card for card in cards.text_encoder_cards() if card.name == text_encoder]
    absent = [each for each in encoders if local_files.locate_folder(each.weights) is None]
    missing = [c for c in named if isinstance(c.weights, cards.HubFile) and local_files.locate(c.weights) is None]
    if (missing or absent) and not (yes or _ask([*missing, *absent])):
        if missing:
            local_files.require(missing[0])  # raises the error that says how to download it
        local_files.require_folder(absent[0])
    files: list[Downloadable] = [card.weights for card in missing if isinstance(card.weights, cards.HubFile)]
    files += [file for each in absent if isinstance(each.weights, cards.HubFolder) for file in each.weights.files]
    if files:
        download_files(files)
    for card in named:
        path = local_files.locate(card.weights)
        if path is not None and not isinstance(card.weights, cards.AssetFile):
            own = weight_set if card.name == model else None
            asked = own if isinstance(card, cards.ModelCard) else tokenizer_weight_set or own
            convert_and_cache(path, weight_set=asked or local_files.weight_set(card))


def ensure_encoder(name: str, *, yes: bool) -> None:
    """As `ensure`, of a text encoder; a folder of the user's is there already."""
    from avarc_cli.zoo import cards, local_files

    card = next((card for card in cards.text_encoder_cards() if card.name == name), None)
    if card is None or isinstance(card.weights, cards.AssetFolder):
        return
    if local_files.locate_folder(card.weights) is not None:
        return
    if not (yes or _ask([card])):
        local_files.require_folder(card)  # raises the error that says how to download it
    download_files(card.weights.files)


def download_files(
    wanted: Sequence[Downloadable],
    *,
    folder: Path | None = None,
    offline: bool = False,
    checks: Mapping[Downloadable, Check] | None = None,
) -> list[Downloaded]:
    """Download files, each with a progress bar, after checking that there is space for all of them.

    Args:
        wanted: with the revisions to download.
        folder: a plain folder, or None for the cache.
        offline: do not use the network; verify cached files.
        checks: of files that cannot be verified otherwise.
    """
    from avarc_cli.zoo import download

    plans = [
        download.make_plan(file, folder=folder, offline=offline, notify=console.note) for file in dict.fromkeys(wanted)
    ]
    download.check_space(plans)
    downloaded = []
    for plan in plans:
        with console.progress(plan.file.filename, None, unit="MB") as bar:

            def show(done: int, total: int | None = None, note: str = "", bar: console.ProgressBar = bar) -> None:
                bar.update(done // 10**6, None if total is None else total // 10**6, note)

            downloaded.append(download.execute(plan, show, console.note, (checks or {}).get(plan.file)))
    return downloaded


def convert_and_cache(path: Path, sha256: str | None = None, *, weight_set: str | None = None) -> None:
    """Make later loads of a file fast (checkpoint.convert_and_cache). A failure is only a warning: it still loads."""
    from avarc_cli.errors import AvarcError, UsageError
    from avarc_cli.zoo import sharded, weights_index

    try:
        if all(weights_index.is_indexed(file, weight_set) for file in sharded.files(path)):
            return
        from avarc_cli.zoo import checkpoint  # imports torch

        console.note(f"{path.name}: preparing it once, so that later loads are fast")
        checkpoint.convert_and_cache(path, sha256, weight_set=weight_set)
    except UsageError:
        raise
    except AvarcError as problem:
        console.warn(f"{problem.what} ({problem.why})")


def _ask(missing: Sequence[Card | TextEncoderCard]) -> bool:
    """Ask the user whether to download; False if there is no terminal to ask at."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or console.mode() is not console.Mode.HUMAN:
        return False
    names = " and ".join(card.name for card in missing)
    try:
        return typer.confirm(f"The weights of {names} are not on this machine. Download them now?", err=True)
    except typer.Abort:  # Ctrl-C, or the end of the input
        return False
