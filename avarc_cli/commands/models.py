"""avarc models: the models that can be loaded, and names for your own checkpoints."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights
from avarc_cli.commands._groups import Command, Group
from avarc_cli.errors import UsageError
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.zoo.card import AssetFolder, Card, HubFolder, NetworkCard, TextEncoderCard, Weights

COLUMNS = ("name", "family", "params", "pixels", "tokens", "license", "source", "local")
ENCODER_COLUMNS = ("name", "kind", "params", "positions", "width", "license", "source", "local")
NETWORK_COLUMNS = ("name", "what it is", "for", "license", "local")


class _Models(Group):
    """Answers the likely mistake `avarc models NAME` with the right command."""

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]  # a Click Context
        if args[0] not in self.commands:
            commands = ", ".join(sorted(self.commands))
            raise UsageError(
                f"avarc models has no command '{args[0]}'",
                f"the commands are {commands}",
                f"avarc models show {args[0]}",
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Models, invoke_without_command=True)


@app.callback()
def models(context: typer.Context, as_json: opt.JsonOpt = False) -> None:
    """List models, tokenizers, text encoders and frozen networks: size, license, source, and whether they are here.

    Example: avarc models
    """
    if context.invoked_subcommand is not None:
        return
    from avarc_cli.zoo import cards
    from avarc_cli.zoo.networks import NETWORKS

    known, tokenizers, encoders = cards.model_cards(), cards.tokenizer_cards(), cards.text_encoder_cards()
    console.result(
        {
            "models": [_facts(card) for card in known],
            "tokenizers": [_facts(card) for card in tokenizers],
            "text_encoders": [_encoder_facts(card) for card in encoders],
            "networks": [_network_facts(card) for card in NETWORKS],
        },
        console.stack(
            console.table("Models", COLUMNS, [_row(card) for card in known], optional="source"),
            console.table("Tokenizers", COLUMNS, [_row(card) for card in tokenizers], optional="source"),
            console.table(
                "Text encoders", ENCODER_COLUMNS, [_encoder_row(card) for card in encoders], optional="source"
            ),
            console.table("Networks of losses and metrics", NETWORK_COLUMNS, [_network_row(card) for card in NETWORKS]),
            "avarc models show NAME: details, among them the source\n"
            "avarc download NAME: download the weights\n"
            "avarc models add NAME FILE: register your own checkpoint",
        ),
        brief=[(card.name,) for cards in (known, tokenizers, encoders, NETWORKS) for card in cards],
    )


@app.command(cls=Command)
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A model, tokenizer, text encoder, frozen network, or a model's folder.",
            autocompletion=complete.downloads,
        ),
    ],
    as_json: opt.JsonOpt = False,
) -> None:
    """Show all details of a model, tokenizer, text encoder or frozen network.

    Example: avarc models show var-d16
    """
    from avarc_cli.zoo import cards, model_folder, networks

    if Path(name).is_dir():
        model_folder.check(Path(name))
    if own := model_folder.find(name):
        console.result({**own.facts, "path": own.path}, console.fields(own.path, own.details()), brief=name)
        return

    if encoder := next((card for card in cards.text_encoder_cards() if card.name == name), None):
        console.result(_encoder_facts(encoder), console.fields(name, _encoder_details(encoder)), brief=name)
        return
    if network := networks.find(name):
        console.result(_network_facts(network), console.fields(name, _network_details(network)), brief=name)
        return
    card = cards.any_card(name)
    console.result(_facts(card), console.fields(card.name, _details(card)), brief=card.name)


@app.command(cls=Command)
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The new name: letters, digits, '.', '-' and '_'.")],
    file: Annotated[
        Path, typer.Argument(help="Checkpoint of a generator or a tokenizer, or a model's folder. It is not copied.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Name or file of the tokenizer of a generator.",
            autocompletion=complete.tokenizers,
        ),
    ] = None,
    weight_set: opt.WeightSetOpt = None,
    patch_nums: opt.PatchNumsOpt = None,
    license: Annotated[str, typer.Option("--license", help="Its license, for the list.")] = "unknown",
    yes: opt.YesOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Register your own checkpoint under a name for --model and --tokenizer.

    The file is read and checked once. A pickle is also converted to safetensors in avarc's cache, so that later loads
    are fast.

    Example: avarc models add photos photos.safetensors --tokenizer photos-vq
    """
    from avarc_cli.zoo import cards, model_folder, registered
    from avarc_cli.zoo.card import LocalFile

    if own := model_folder.find(file):
        file, tokenizer = own.generator, tokenizer or str(own.tokenizer)
    if tokenizer is not None:
        opt.check_not_given(context, {"patch_nums"}, "with --tokenizer", "a generator has the scales of its tokenizer")
    path = os.path.abspath(file)  # without following links: a config.json, or shards, may be beside the link only
    layout = opt.parse_scales(patch_nums)
    registered.check_name(name)
    for weights in (path, *([tokenizer] if tokenizer else [])):
        cards.check_weights(weights)
    from avarc_cli import loading  # imports torch: only now, after all that may be wrong

    if tokenizer is None:
        reader = loading.load_tokenizer(loading.ModelSpec(path, weight_set=weight_set), layout=layout)
        opt.note_inferred(reader)
        card: Card = reader.card(name, license=license)
    else:
        _weights.ensure(tokenizer, yes=yes)
        reads = os.path.abspath(tokenizer) if cards.is_path(tokenizer) else tokenizer
        model = loading.load_model(loading.ModelSpec(path, reads, weight_set=weight_set), unbound=True)
        opt.note_inferred(model)
        card = model.card(name, tokenizer=reads, license=license)
    assert isinstance(card.weights, LocalFile)
    _weights.convert_and_cache(card.weights.path, weight_set=weight_set)
    registered.add(card)
    console.result(_facts(card), console.fields(f"{name} is registered", _details(card)), brief=name)


@app.command(cls=Command)
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Models, tokenizers, text encoders or frozen networks. Default: all here.",
            autocompletion=complete.downloads,
        ),
    ] = None,
    as_json: opt.JsonOpt = False,
) -> None:
    """Compare weights completely with their sha256; a damaged file is an error that names it.

    The safetensors copies that avarc makes of pickles are compared as well; a damaged one is made again.

    Example: avarc models verify var-d16
    """
    from avarc_cli.errors import CheckpointError
    from avarc_cli.zoo import cards, networks
    from avarc_cli.zoo import verify as verifying

    encoders = {card.name: card for card in cards.text_encoder_cards()}
    frozen = [c for c in networks.NETWORKS if (c.name in names if names else networks.downloaded(c.name))]
    others = [name for name in names or () if name not in encoders and networks.find(name) is None]
    own = [cards.any_card(name) for name in others] if names else _downloaded_or_registered()
    read = [card for card in encoders.values() if (card.name in names if names else _is_downloaded(card))]
    start = partial(console.progress, unit="MB")
    results = [each for card in own for each in verifying.verify(card, start)]
    results += [each for encoder in read for each in verifying.verify_encoder(encoder, start)]
    results += [verifying.verify_network(card, start) for card in frozen]
    rows = [(each.name, each.status, each.sha256[:12], each.file) for each in results]
    table = console.table("", ("name", "status", "sha256", "file"), rows) if rows else "there are no weights to compare"
    console.result({"files": results}, table, brief=[(each.file,) for each in results])
    damaged = [each for each in results if each.is_damaged]
    if damaged:
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        why = f"its sha256, {damaged[0].sha256}, is not the one that was recorded" if damaged[0].sha256 else ""
        raise CheckpointError(f"{damaged[0].file} is {damaged[0].status}{more}", why, damaged[0].fix)


def _downloaded_or_registered() -> list[Card]:
    """The cards of files that are not part of avarc and are here, or should be."""
    from avarc_cli.zoo import cards, local_files

    known: list[Card] = [*cards.model_cards(), *cards.tokenizer_cards()]
    own = [card for card in known if isinstance(card.weights, cards.LocalFile)]
    return own + [c for c in known if isinstance(c.weights, cards.HubFile) and local_files.locate(c.weights)]


@app.command(cls=Command)
def remove(
    name: Annotated[str, typer.Argument(help="A name from `avarc models add`.", autocompletion=complete.registered)],
    as_json: opt.JsonOpt = False,
) -> None:
    """Remove a name that was registered with `avarc models add`; the checkpoint itself is kept.

    Example: avarc models remove photos
    """
    from avarc_cli.zoo import registered, weights_index
    from avarc_cli.zoo.card import LocalFile

    card = registered.remove(name)
    assert isinstance(card.weights, LocalFile)  # no other is registered
    others = [each.weights for each in registered.load().cards]
    if not any(isinstance(other, LocalFile) and other.path == card.weights.path for other in others):
        weights_index.forget(card.weights.path)
    kept = console.path_and(card.weights.path, "is kept")
    console.result({"removed": name}, console.stack(f"{name} is removed", kept), brief=name)


def _is_here(card: TextEncoderCard) -> bool:
    from avarc_cli.zoo import local_files

    return local_files.locate_folder(card.weights) is not None


def _is_downloaded(card: TextEncoderCard) -> bool:
    from avarc_cli.zoo import cards

    return isinstance(card.weights, cards.HubFolder) and _is_here(card)


def _encoder_row(card: TextEncoderCard) -> tuple[object, ...]:
    is_local = "yes" if _is_here(card) else "no"
    size = (_millions(card.params), card.positions, card.width)
    return (card.name, card.kind, *size, card.license, _origin(card.weights), is_local)


def _encoder_facts(card: TextEncoderCard) -> dict[str, object]:
    from avarc_cli.zoo import local_files

    return dataclasses.asdict(card) | {"path": local_files.locate_folder(card.weights)}


def _encoder_details(card: TextEncoderCard) -> dict[str, object]:
    """The card as text for people."""
    from avarc_cli.zoo import cards, local_files

    facts = _encoder_facts(card) | {"params": _millions(card.params), "weights": _origin(card.weights)}
    facts |= {
        "positions": f"{card.positions}; longer captions are cut",
        "width": f"{card.width} channels",
        "path": facts["path"] or "not on this machine",
        "files": ", ".join(card.weights.filenames),
    }
    if isinstance(card.weights, cards.HubFolder):
        facts["revision"] = card.weights.revision or "unpinned: main at the time of the download"
        facts["download with"] = local_files.download_command(card)
    return {key: value for key, value in facts.items() if key != "name"}


def _network_row(card: NetworkCard) -> tuple[object, ...]:
    from avarc_cli.zoo import networks

    return (card.name, card.title, card.use, card.license, "yes" if networks.downloaded(card.name) else "no")


def _network_facts(card: NetworkCard) -> dict[str, object]:
    from avarc_cli.zoo import networks

    return dataclasses.asdict(card) | {"path": networks.downloaded(card.name)}


def _network_details(card: NetworkCard) -> dict[str, object]:
    """The card as text for people."""
    from avarc_cli.zoo import local_files, networks

    return {
        "what it is": card.title,
        "for": f"{card.use}; {card.option} takes another file",
        "license": card.license,
        "source": card.source,
        "url": card.weights.url,
        "sha256": card.weights.sha256 or "none is published",
        "path": networks.downloaded(card.name) or "not on this machine",
        "download with": local_files.download_command(card),
    }


def _row(card: Card) -> tuple[object, ...]:
    from avarc_cli.zoo import local_files

    is_local = "yes" if local_files.locate(card.weights) else "no"
    size = (_millions(card.params), card.image_size, card.layout.num_tokens)
    license = card.license.split(";")[0]  # `avarc models show` has the rest
    return (card.name, card.family, *size, license, _origin(card.weights), is_local)


def _facts(card: Card) -> dict[str, object]:
    """The card as data, with derived values."""
    from avarc_cli.zoo import local_files

    facts = dataclasses.asdict(card) | {"layout": card.layout.to_dict(), "num_tokens": card.layout.num_tokens}
    return facts | {"path": local_files.locate(card.weights)}


def _details(card: Card) -> dict[str, object]:
    """The card as text for people."""
    from avarc_cli.zoo import cards, local_files

    facts = _facts(card)
    facts |= {
        "params": _millions(card.params),
        "layout": f"{card.layout} ({counted(card.layout.num_tokens, 'token')})",
        "image_size": f"{card.image_size} pixels",
        "weights": _origin(card.weights),
        "path": facts["path"] or "not on this machine",
    }
    if isinstance(card.weights, cards.HubFile):
        facts["file"] = card.weights.filename
        facts["revision"] = card.weights.revision or "unpinned: main at the time of the download"
        facts["sha256"] = card.weights.sha256 or "not in the card: the hub's is used to verify"
        facts["download with"] = local_files.download_command(card)
    hidden = {"name", "num_tokens"} | ({"channels"} if not card.channels else set())
    return {key.replace("_", " "): value for key, value in facts.items() if key not in hidden}


def _origin(weights: Weights | HubFolder | AssetFolder) -> str | Path:
    from avarc_cli.zoo import cards

    if isinstance(weights, (cards.HubFile, cards.HubFolder)):
        return f"{weights.repo} ({weights.revision[:8] if weights.revision else 'unpinned'})"
    return "included in avarc" if isinstance(weights, (cards.AssetFile, cards.AssetFolder)) else weights.path


def _millions(params: int | None) -> str:
    if params is None:
        return "?"
    return f"{params / 1e9:.1f} B" if params >= 1e9 else f"{params / 1e6:.3g} M"
