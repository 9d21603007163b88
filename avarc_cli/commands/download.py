"""avarc download: published weights onto this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights
from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from avarc_cli.zoo.card import Card, HubFile
    from avarc_cli.zoo.download import Downloaded


def download(
    names: Annotated[list[str], typer.Argument(help="Models or tokenizers; `avarc models` lists them.")],
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Branch, tag or commit of the named; remembered. Default: the card's."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Put the files into this plain folder, not the Hugging Face cache.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not use the network: verify local files, and fail if one is missing.")
    ] = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Download published weights and check their sha256; a model's tokenizer comes along.

    Interrupted, it goes on where it stopped when run again. Mirrors (HF_ENDPOINT), tokens for gated repositories
    (HF_TOKEN) and the cache (HF_HOME) are those of huggingface_hub, which shares the files.

    Example: avarc download var-d16
    """
    wanted = _files(names, revision)
    done = _weights.fetch(list(wanted.values()), folder=folder, offline=offline)
    by_file = {(one.repo, one.filename, one.revision): one for one in done}
    got = {name: by_file[file.repo, file.filename, file.revision] for name, file in wanted.items()}
    if folder is None:
        _remember(names, revision, got)
        for one in done:
            _weights.keep(one.path, one.sha256)
    _show(got)


def _files(names: list[str], revision: str | None) -> dict[str, HubFile]:
    """Card name to file, of what was named and of the tokenizers it reads."""
    from avarc_cli.zoo import cards

    if revision is not None and not (revision.strip() and ".." not in revision):
        raise UsageError(f"'{revision}' is no revision", "it is a branch, a tag or a commit", "leave --revision out")
    chosen = {name: cards.any_card(name) for name in names}
    also = [card.tokenizer for card in chosen.values() if isinstance(card, cards.ModelCard)]
    files = {name: _file(card, revision) for name, card in chosen.items()}
    for name in also:
        if name not in chosen:
            card = next((card for card in cards.tokenizer_cards() if card.name == name), None)
            files[name] = card.weights if card and isinstance(card.weights, cards.HubFile) else None
    return {name: file for name, file in files.items() if file is not None}


def _file(card: Card, revision: str | None) -> HubFile | None:
    """What to fetch for a card that was named; None for one that is shipped."""
    from avarc_cli.zoo import cards

    if isinstance(card.weights, cards.AssetFile):
        console.note(f"{card.name} is shipped with avarc: there is nothing to download")
        return None
    if isinstance(card.weights, cards.LocalFile):
        raise UsageError(f"'{card.name}' is a file of yours", f"it lies at {card.weights.path}", "name a published one")
    if revision in (None, card.weights.revision):
        return card.weights
    return cards.HubFile(card.weights.repo, card.weights.filename, revision)


def _remember(names: list[str], revision: str | None, got: dict[str, Downloaded]) -> None:
    """A model that was downloaded at a revision means that revision from now on; `main` undoes it."""
    from avarc_cli.zoo import registered

    if revision is None:
        return
    for name in names:
        if name in got:
            registered.pin(name, None if revision == registered.published_revision(name) else got[name].commit)


def _show(got: dict[str, Downloaded]) -> None:
    rows: list[list[Any]] = []
    for name, one in got.items():
        rows.append([name, f"{one.size / 1e6:,.1f} MB", one.commit[:12], one.sha256[:12], one.path])
        if one.revision is None:
            console.note(f"{name} is not pinned: main is commit {one.commit}")
    table = console.table("", ["name", "size", "commit", "sha256", "file"], rows)
    brief = "\n".join(str(one.path) for one in got.values())
    console.result({"files": [{"name": name, **vars(one)} for name, one in got.items()]}, table if rows else "", brief)
