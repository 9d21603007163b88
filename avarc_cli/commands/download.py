"""avarc download: published weights onto this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights
from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from avarc_cli.zoo.card import Card, Downloadable, HubFile
    from avarc_cli.zoo.download import Check, Downloaded


def download(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Models, tokenizers, text encoders or frozen networks: see `avarc models`.",
            autocompletion=complete.downloads,
        ),
    ],
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
    """Download published weights, with what each model reads (its tokenizer, its text encoder), and verify them.

    An interrupted download continues when run again. Mirrors (HF_ENDPOINT), tokens for gated repositories (HF_TOKEN)
    and the cache (HF_HOME) work as in huggingface_hub, which finds the same files.

    The networks that losses and metrics need are vgg16 and lpips, convnext-small, dino-vits16 and inception. They go
    into the folder of torch.hub (TORCH_HOME); AVARC_MIRROR is the URL of a folder that has them as well.

    Example: avarc download var-d16
    """
    from avarc_cli.zoo import networks

    wanted: dict[str, list[Downloadable]] = {}
    for card in (card for card in networks.NETWORKS if card.name in names):
        if revision is not None:
            why = f"it is a file of {card.weights.repo}, which has no revisions"
            raise UsageError(f"no use for --revision with '{card.name}'", why, "omit --revision")
        wanted[card.name] = [card.weights]
    frozen = set(wanted)
    of_hub, encoders = _files([name for name in names if name not in frozen], revision)
    wanted.update({name: [*several] for name, several in of_hub.items()})
    files = [file for several in wanted.values() for file in several]
    downloaded = _weights.download_files(files, folder=folder, offline=offline, checks=_checks(wanted))
    by_file = {(each.repo, each.filename, each.revision): each for each in downloaded}
    by_name = {n: [by_file[f.repo, f.filename, f.revision] for f in several] for n, several in wanted.items()}
    if folder is None:
        _pin(names, revision, by_name)
        read_as_they_are = encoders | frozen
        for each in [each for name, several in by_name.items() if name not in read_as_they_are for each in several]:
            _weights.convert_and_cache(each.path, each.sha256)
    _show(by_name)


def _checks(wanted: dict[str, list[Downloadable]]) -> dict[Downloadable, Check]:
    """Of the networks for which no checksum is published: whether the file holds the network."""
    from avarc_cli.zoo import networks

    if networks.DINO not in wanted:
        return {}
    from avarc_cli.train.discriminators import vit

    return {wanted[networks.DINO][0]: vit.check}


def _files(names: list[str], revision: str | None) -> tuple[dict[str, list[HubFile]], set[str]]:
    """The files of the named cards and of what they read, by card name; and which of these are text encoders."""
    from avarc_cli.zoo import cards, networks

    if revision is not None and not (revision.strip() and ".." not in revision):
        raise UsageError(f"'{revision}' is not a revision", "it must be a branch, a tag or a commit", "omit --revision")
    encoders = {card.name: card for card in cards.text_encoder_cards()}
    other = [*encoders, *(card.name for card in networks.NETWORKS)]
    chosen = {name: cards.any_card(name, also=other) for name in names if name not in encoders}
    models = [card for card in chosen.values() if isinstance(card, cards.ModelCard)]
    found = {name: _named(card, revision) for name, card in chosen.items()}
    for name in (card.tokenizer for card in models):
        if name not in found:
            own = [card.weights for card in cards.tokenizer_cards() if card.name == name]
            found[name] = [weights for weights in own if isinstance(weights, cards.HubFile)]
    read = {card.text_encoder: None for card in models if card.text_encoder}
    for name in dict.fromkeys([name for name in names if name in encoders] + [*read]):
        asked = revision if name in names else None
        weights = encoders[name].weights
        if isinstance(weights, cards.AssetFolder):
            _note_included(name)
            continue
        found[name] = list((weights.at(asked) if asked else weights).files)
    return {name: files for name, files in found.items() if files}, set(encoders)


def _note_included(name: str) -> None:
    console.note(f"{name} is included in avarc: there is nothing to download")


def _named(card: Card, revision: str | None) -> list[HubFile]:
    """The file to download for a card that the user named; none if it is included in avarc."""
    from avarc_cli.zoo import cards

    if isinstance(card.weights, cards.AssetFile):
        _note_included(card.name)
        return []
    if isinstance(card.weights, cards.LocalFile):
        raise UsageError(f"'{card.name}' is your own file", f"it is {card.weights.path}", "name a published model")
    return [card.weights if revision is None else card.weights.at(revision)]


def _pin(names: list[str], revision: str | None, by_name: dict[str, list[Downloaded]]) -> None:
    """Let the names refer to the downloaded commit from now on; the published revision (`main`) undoes this."""
    from avarc_cli.zoo import registered

    if revision is None:
        return
    for name in names:
        if name in by_name:
            is_published = revision == registered.published_revision(name)
            registered.pin(name, None if is_published else by_name[name][0].commit)


def _show(by_name: dict[str, list[Downloaded]]) -> None:
    from avarc_cli.zoo import networks

    rows: list[list[Any]] = []
    for name, files in by_name.items():
        for file in files:
            rows.append([name, f"{file.size / 1e6:,.1f} MB", file.commit[:12] or "-", file.sha256[:12], file.path])
        card = networks.find(name)
        if card is not None and card.weights.sha256 is None:
            console.note(f"{name}: no checksum is published; its sha256 is {files[0].sha256}")
        if card is None and files[0].revision is None:
            console.note(f"{name} is not pinned: main is commit {files[0].commit}")
    table = console.table("", ["name", "size", "commit", "sha256", "file"], rows)
    each = [(name, file) for name, files in by_name.items() for file in files]
    listed = {"files": [{"name": name, **vars(file)} for name, file in each]}
    console.result(listed, table if rows else "", [(file.path,) for _, file in each])
