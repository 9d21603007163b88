"""avarc cache: show what a token cache holds, verify it, join several, draw its tokens, and exchange them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import Command, Group, with_option_groups
from avarc_cli.commands.cache_export import export_tokens
from avarc_cli.commands.cache_import import import_tokens
from avarc_cli.errors import UsageError, shorten_list
from avarc_cli.words import counted

if TYPE_CHECKING:
    import numpy as np

    from avarc_cli.loading import ModelSpec
    from avarc_cli.tokens.cache import TokenCache
    from avarc_cli.tokens.header import Partial

app = typer.Typer(
    cls=Group,
    help="Inspect, verify, join, import and export token caches.\n\nExample: avarc cache info val.h5",
    no_args_is_help=True,
)

app.command("import", cls=Command)(import_tokens)
app.command("export", cls=Command)(export_tokens)

CacheArg = Annotated[Path, typer.Argument(metavar="CACHE", help="A token cache (avarc encode makes them).")]
SHOWN, NUMBERS = 12, 6  # codes of an image in the table, or numbers of a continuous token


@app.command(cls=Command)
def info(cache: CacheArg, as_json: opt.JsonOpt = False) -> None:
    """Show what a cache holds and how it was made. A corrupt one is an error as well.

    Example: avarc cache info val.h5
    """
    from avarc_cli import tokens

    opened = tokens.read(cache, allow_partial=True)
    facts = _facts(opened)
    shown = {name.replace("_", " "): _text(value) for name, value in facts.items()}
    console.result(facts, console.fields(cache, shown), brief=str(len(opened)))
    tokens.verify(opened).check(cache)  # only now: what a corrupt cache should hold is of interest, too


@app.command(cls=Command)
def verify(cache: CacheArg, as_json: opt.JsonOpt = False) -> None:
    """Compare a cache with its checksums; a corrupt one is an error that names the rows.

    Example: avarc cache verify val.h5
    """
    from avarc_cli import tokens

    opened = tokens.read(cache, allow_partial=True)
    verified = tokens.verify(opened)
    verified.check(cache)
    said = f"all {verified.runs:,} checksums match" if verified.runs else "readable, but too old to have checksums"
    data = {"cache": cache, "images": len(opened), "checksums": verified.runs, "damaged": []}
    console.result(data, console.path_and(cache, f"{counted(len(opened), 'image')}, {said}"), brief=str(cache))


@app.command(cls=Command)
def merge(
    caches: Annotated[list[Path], typer.Argument(metavar="CACHE...", help="The caches to join, two or more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The cache to write.")],
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Join the shards of one encoding run, or caches of different images by the same tokenizer.

    Joined shards are byte for byte the file of a run that was not divided. Other caches follow each other in the
    order given, with the union of their class names.

    Example: avarc cache merge shard-1.h5 shard-2.h5 --out val.h5
    """
    from avarc_cli import tokens

    merged = tokens.merge(caches, out, overwrite=overwrite)
    if merged.empty:
        named = shorten_list([str(path) for path in merged.empty])
        console.note(f"{named}: no cache, since there are more shards than chunks; nothing is missing")
    of = counted(len(caches), "shard" if merged.shards else "cache")
    data = {"cache": out, "images": merged.images, "sources": caches, "unreadable": dict(merged.unreadable)}
    console.result(data, console.path_and(out, f"{counted(merged.images, 'image')} of {of}"), brief=str(out))


@app.command(cls=Command)
@with_option_groups
def head(
    context: typer.Context,
    cache: CacheArg,
    *,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many images to show.")] = 5,
    start: Annotated[int, typer.Option("--start", min=0, help="The first row to show, from 0.")] = 0,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Also decode the tokens into a picture (PNG): one row an image, all samples."),
    ] = None,
    caption: Annotated[
        str | None, typer.Option("--caption", help='What a TA-TiTok decodes the tokens with; "" for no caption.')
    ] = None,
    text_encoder: opt.TextEncoderOpt = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a picture that exists.")] = False,
    as_json: opt.JsonOpt = False,
    model: groups.WeightsOptions,
) -> None:
    """Show the first images of a cache, or those from a row on: names, labels and tokens, as text or as pictures.

    Example: avarc cache head val.h5 --rows 3 --picture rows.png --model var-d16
    """
    from avarc_cli import outputs
    from avarc_cli.text.captions import check_encoder
    from avarc_cli.tokens import read_verified

    if picture is None or caption is None:
        why = "it is for decoding tokens with a caption: --picture FILE --caption TEXT"
        opt.check_not_given(context, {"text_encoder"} | ({"caption"} if picture is None else set()), "here", why)
    if text_encoder is not None:
        check_encoder(text_encoder)
    opened = read_verified(cache, allow_partial=True)
    if start >= len(opened):
        raise UsageError(f"there is no row {start}", f"'{cache}' holds {counted(len(opened), 'image')}, from 0")
    wanted = range(start, min(start + rows, len(opened)))
    tokens_NSL = opened.tokens(wanted)
    listed = [_row(opened, row, tokens_SL) for row, tokens_SL in zip(wanted, tokens_NSL, strict=True)]
    if picture is not None:
        with outputs.reserved(picture, outputs.PNG, overwrite=overwrite):
            spec = model.of_tokenizer(context).fetch(tokenizer_only=True)
            _draw(opened, wanted, tokens_NSL, picture, spec, caption, text_encoder)
    cells = [
        (each["row"], each["name"], each["label"], _begin(tokens_SL[0]))
        for each, tokens_SL in zip(listed, tokens_NSL, strict=True)
    ]
    table = console.table(cache, ("row", "image", "label", "tokens"), cells)
    console.result({"cache": cache, "rows": listed, "picture": picture}, table, brief=[(c[1],) for c in cells])


def _facts(cache: TokenCache) -> dict[str, Any]:
    header, partial = cache.header, cache.partial
    return {
        "images": len(cache),
        "unreadable": len(cache.unreadable),
        "part": partial and _part(partial, header.images),
        "dataset": header.dataset or None,
        "source": header.source,
        "classes": len(header.class_names),
        "labelled": int((cache.labels >= 0).sum()),
        "tokenizer": header.tokenizer,
        "tokenizer_file": header.tokenizer_file,
        "tokenizer_sha256": header.tokenizer_sha256,
        "layout": str(header.layout),
        "scales": tuple(rows for rows, _ in header.layout.grids),
        "tokens_an_image": header.layout.num_tokens,
        "vocabulary": header.vocab_size or None,
        **({"channels": header.channels} if header.channels else {}),
        "preprocess": header.preprocess,
        "precision": header.precision,
        "samples": header.samples,
        "views": header.views if header.samples > 1 else None,
        "sigma": header.sigma,
        "seed": header.seed,
        "latents": header.latents,
        "bytes": cache.path.stat().st_size,
        "format": cache.format,
        "inferred": header.inferred,
    }


def _part(partial: Partial, images: int) -> str:
    """Which part of a cache of this many images a file is."""
    return f"{len(partial.chunks)} of {counted(partial.count(images), 'chunk')} of {partial.chunk_size}"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {how}" for name, how in value.items()) or "-"
    if isinstance(value, bool) or value is None:
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _row(cache: TokenCache, row: int, tokens_SL: np.ndarray) -> dict[str, Any]:
    label = int(cache.labels[row])
    named = cache.header.class_names[label] if label >= 0 else None
    return {"row": row, "name": cache.paths[row], "label": named, "tokens": tokens_SL.tolist()}


def _begin(tokens_L: np.ndarray) -> str:
    """The first codes, or the first numbers of the first continuous token."""
    shown = [str(n) for n in tokens_L[:SHOWN]] if tokens_L.ndim == 1 else [f"{x:.2f}" for x in tokens_L[0, :NUMBERS]]
    return " ".join(shown) + (" ..." if tokens_L.size > len(shown) else "")


def _draw(
    cache: TokenCache,
    rows: range,
    tokens_NSL: np.ndarray,
    out: Path,
    spec: ModelSpec,
    caption: str | None,
    text_encoder: str | None,
) -> None:
    from avarc_cli.loading import load_tokenizer, with_caption
    from avarc_cli.results.picture import grid
    from avarc_cli.tokens.reconstruct import reconstruct

    reader = load_tokenizer(spec, layout=cache.header.layout)
    cache.check(reader)
    if caption is not None:
        reader = with_caption(reader, caption, text_encoder, progress=opt.captions_bar)
    grid(reconstruct(reader, tokens_NSL), [cache.paths[row] for row in rows], out)
    console.note(f"{out}: {counted(len(rows), 'image')} as the tokens show them")
