"""avarc models: what can be loaded, whether it is here, and names for checkpoints of one's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights
from avarc_cli.commands._groups import Command
from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from avarc_cli.zoo.card import Card, Weights

COLUMNS = ("name", "family", "params", "pixels", "tokens", "licence", "from", "here")


class _Models(TyperGroup):
    """`avarc models NAME` is what one tries first: say what it is called."""

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]  # a Click Context
        if args[0] not in self.commands:
            commands = ", ".join(sorted(self.commands))
            raise UsageError(
                f"avarc models has no command '{args[0]}'", f"there are {commands}", f"avarc models show {args[0]}"
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Models, invoke_without_command=True)


@app.callback()
def models(context: typer.Context, as_json: opt.JsonOpt = False) -> None:
    """List models and tokenizers: size, licence, source, and whether they are here.

    Example: avarc models
    """
    if context.invoked_subcommand is not None:
        return
    from avarc_cli.zoo import cards

    known, tokenizers = cards.model_cards(), cards.tokenizer_cards()
    console.result(
        {"models": [_facts(card) for card in known], "tokenizers": [_facts(card) for card in tokenizers]},
        console.stack(
            console.table("Models", COLUMNS, [_row(card) for card in known]),
            console.table("Tokenizers", COLUMNS, [_row(card) for card in tokenizers]),
            "`avarc models show NAME` tells all about one, `avarc download NAME` gets it, `avarc models add NAME FILE` "
            "gives a checkpoint of your own a name.",
        ),
        brief="\n".join([card.name for card in known] + [card.name for card in tokenizers]),
    )


@app.command(cls=Command)
def show(
    name: Annotated[str, typer.Argument(help="A model or tokenizer.")],
    as_json: opt.JsonOpt = False,
) -> None:
    """Show all that is known about a model or tokenizer.

    Example: avarc models show var-d16
    """
    from avarc_cli.zoo import cards

    card = cards.any_card(name)
    console.result(_facts(card), console.fields(card.name, _details(card)), brief=card.name)


@app.command(cls=Command)
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The name to give it: letters, digits, '.', '-' and '_'.")],
    file: Annotated[Path, typer.Argument(help="A generator's or a tokenizer's checkpoint. It stays where it is.")],
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Name or file of the tokenizer that a generator reads.")
    ] = None,
    patch_nums: opt.PatchNumsOpt = None,
    license: Annotated[str, typer.Option("--license", help="Its licence, for the list.")] = "unknown",
    yes: _weights.YesOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Give a checkpoint of your own a name, which --model and --tokenizer then understand.

    The file is read and checked once; a pickle is also copied to safetensors, so that it loads at once.

    Example: avarc models add photos photos.safetensors --tokenizer photos-vq
    """
    from avarc_cli import loading
    from avarc_cli.zoo import registered

    if tokenizer is not None:
        opt.check_not_given(context, {"patch_nums"}, "with --tokenizer", "a generator has its tokenizer's scales")
    where = file.resolve()
    registered.check_name(name)
    if tokenizer is None:
        reader = loading.load_tokenizer(str(where), patch_nums=opt.parse_numbers(patch_nums, "--patch-nums"))
        card: Card = _tokenizer_card(name, where, reader, license)
    else:
        _weights.ensure(tokenizer, yes=yes)
        reads = str(Path(tokenizer).resolve()) if loading.is_path(tokenizer) else tokenizer
        card = _model_card(name, where, loading.load_model(loading.ModelSpec(str(where), reads)), reads, license)
    _weights.keep(where)
    registered.add(card)
    console.result(_facts(card), console.fields(f"{name} is registered", _details(card)), brief=name)


@app.command(cls=Command)
def remove(
    name: Annotated[str, typer.Argument(help="A name that `avarc models add` gave.")],
    as_json: opt.JsonOpt = False,
) -> None:
    """Forget a name that was given with `avarc models add`; the checkpoint itself stays.

    Example: avarc models remove photos
    """
    from avarc_cli.zoo import registered, weights_index
    from avarc_cli.zoo.card import LocalFile

    card = registered.remove(name)
    assert isinstance(card.weights, LocalFile)  # no other is registered
    weights_index.forget(card.weights.path)
    console.result({"removed": name}, f"{name} is forgotten; {card.weights.path} stays where it is", brief=name)


def _model_card(name: str, file: Path, loaded: Any, tokenizer: str, license: str) -> Card:
    from avarc_cli.zoo.card import LocalFile, ModelCard

    return ModelCard(
        name=name,
        family="var",
        builder="avarc_cli.models.var.network:VAR",
        tokenizer=tokenizer,
        image_size=loaded.tokenizer.image_size,
        patch_nums=loaded.tokenizer.patch_nums,
        num_classes=loaded.likelihood.num_classes,
        label_space=loaded.classes.name,
        params=None,
        license=license,
        source=str(file),
        weights=LocalFile(file),
        preprocess=loaded.tokenizer.preprocess,
    )


def _tokenizer_card(name: str, file: Path, loaded: Any, license: str) -> Card:
    from avarc_cli.zoo.card import LocalFile, TokenizerCard

    return TokenizerCard(
        name=name,
        family="vqvae",
        builder="avarc_cli.tokenizers.vqvae:VQVAE",
        image_size=loaded.image_size,
        patch_nums=loaded.patch_nums,
        params=None,
        license=license,
        source=str(file),
        weights=LocalFile(file),
        preprocess=loaded.preprocess,
    )


def _row(card: Card) -> tuple[object, ...]:
    from avarc_cli.zoo import local_files

    here = "yes" if local_files.locate(card.weights) else "no"
    size = (_millions(card.params), card.image_size, card.num_tokens)
    licence = card.license.split(";")[0]  # the whole of it stands in the card
    return (card.name, card.family, *size, licence, _origin(card.weights), here)


def _facts(card: Card) -> dict[str, object]:
    """The card as data, with what follows from it."""
    from avarc_cli.zoo import local_files

    return dataclasses.asdict(card) | {"num_tokens": card.num_tokens, "path": local_files.locate(card.weights)}


def _details(card: Card) -> dict[str, object]:
    """The card as people read it."""
    from avarc_cli.zoo import cards, local_files

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
        facts["file"] = card.weights.filename
        facts["revision"] = card.weights.revision or "unpinned: main, as it is when you download"
        facts["sha256"] = card.weights.sha256 or "not in the card: the hub's own is checked"
        facts["get it"] = local_files.download_command(card)
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
