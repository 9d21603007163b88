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
        typer.Option("--revision", help="Branch, tag or commit of the named models; remembered. Default: the card's."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Put the files into this folder, not into the Hugging Face cache.")
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Do not use the network: verify cached files, and fail if one is missing."),
    ] = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Download published weights, with the tokenizer of each model, and verify their sha256.

    An interrupted download continues when run again. Mirrors (HF_ENDPOINT), tokens for gated repositories (HF_TOKEN)
    and the cache (HF_HOME) work as in huggingface_hub, which finds the same files.

    Example: avarc download var-d16
    """
    wanted = _files(names, revision)
    downloaded = _weights.download_files(list(wanted.values()), folder=folder, offline=offline)
    by_file = {(each.repo, each.filename, each.revision): each for each in downloaded}
    by_name = {name: by_file[file.repo, file.filename, file.revision] for name, file in wanted.items()}
    if folder is None:
        _pin(names, revision, by_name)
        for each in downloaded:
            _weights.convert_and_cache(each.path, each.sha256)
    _show(by_name)


def _files(names: list[str], revision: str | None) -> dict[str, HubFile]:
    """The files of the named cards and of their tokenizers, by card name."""
    from avarc_cli.zoo import cards

    if revision is not None and not (revision.strip() and ".." not in revision):
        raise UsageError(f"'{revision}' is not a revision", "it must be a branch, a tag or a commit", "omit --revision")
    chosen = {name: cards.any_card(name) for name in names}
    tokenizers = [card.tokenizer for card in chosen.values() if isinstance(card, cards.ModelCard)]
    files = {name: _file(card, revision) for name, card in chosen.items()}
    for name in tokenizers:
        if name not in chosen:
            card = next((card for card in cards.tokenizer_cards() if card.name == name), None)
            files[name] = card.weights if card and isinstance(card.weights, cards.HubFile) else None
    return {name: file for name, file in files.items() if file is not None}


def _file(card: Card, revision: str | None) -> HubFile | None:
    """The file to download for a card that the user named; None if it is included in avarc."""
    from avarc_cli.zoo import cards

    if isinstance(card.weights, cards.AssetFile):
        console.note(f"{card.name} is included in avarc: there is nothing to download")
        return None
    if isinstance(card.weights, cards.LocalFile):
        raise UsageError(f"'{card.name}' is your own file", f"it is {card.weights.path}", "name a published model")
    if revision in (None, card.weights.revision):
        return card.weights
    return cards.HubFile(card.weights.repo, card.weights.filename, revision)


def _pin(names: list[str], revision: str | None, by_name: dict[str, Downloaded]) -> None:
    """Let the names refer to the downloaded commit from now on; the published revision (`main`) undoes this."""
    from avarc_cli.zoo import registered

    if revision is None:
        return
    for name in names:
        if name in by_name:
            is_published = revision == registered.published_revision(name)
            registered.pin(name, None if is_published else by_name[name].commit)


def _show(by_name: dict[str, Downloaded]) -> None:
    rows: list[list[Any]] = []
    for name, file in by_name.items():
        rows.append([name, f"{file.size / 1e6:,.1f} MB", file.commit[:12], file.sha256[:12], file.path])
        if file.revision is None:
            console.note(f"{name} is not pinned: main is commit {file.commit}")
    table = console.table("", ["name", "size", "commit", "sha256", "file"], rows)
    brief = [(file.path,) for file in by_name.values()]
    console.result(
        {"files": [{"name": name, **vars(file)} for name, file in by_name.items()]}, table if rows else "", brief
    )
