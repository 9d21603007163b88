"""avarc encode: images to a token cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _dry_run, _images, _shards
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.errors import EXIT_UNREADABLE
from avarc_cli.settings import check_encoder_precision
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.tokens import EncodeResult, Shard


@with_option_groups
def encode(
    context: typer.Context,
    data: opt.DataArg,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The token cache to write (HDF5).")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a cache of another request.")] = False,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Samples of each image: the image, and N - 1 with smoothing noise.")
    ] = 1,
    latents: Annotated[bool, typer.Option("--latents", help="Keep the latents too, as float16.")] = False,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images that the tokenizer reads at once. Default: 16 of 256 pixels."),
    ] = None,
    work: groups.WorkOptions,
    dry_run: _dry_run.DryRunOpt = False,
    as_json: opt.JsonOpt = False,
    model: groups.WeightsOptions,
    patch_nums: opt.PatchNumsOpt = None,
    precision: Annotated[
        str,
        opt.model_option(
            "--precision",
            help="Of the encoder: fp32, or bf16 on a GPU, which changes some tokens.",
            autocompletion=complete.encoder_precisions,
        ),
    ] = "fp32",
    encoding: groups.ImageOptions,
) -> None:
    """Encode images into a token cache.

    Every model with the same tokenizer can read it. If it is interrupted or killed, run it again to continue; the
    file is the same byte for byte, also when several processes, on one machine or many, each do a --shard of it, or
    several --devices share it.

    Example: avarc encode val/ --model var-d16 --samples 3 --out val.h5
    """
    from avarc_cli import outputs, tokens
    from avarc_cli.data.preprocess import Preprocess

    own, on, layout = work.own_shard, work.workers, opt.parse_scales(patch_nums)
    model = work.place(context, model)
    check_encoder_precision(precision)
    views = counted(encoding.views.samples(samples), "sample" if encoding.views.count == 1 else "view")
    outputs.check_output(out, outputs.CACHE, overwrite=True)  # of a cache that exists, `tokens.encode` decides
    images = encoding.select(data)
    spec = model.of_tokenizer(context).fetch(tokenizer_only=True)
    from avarc_cli.loading import load_tokenizer  # imports torch: only now, after all that may be wrong
    from avarc_cli.tokens.encoder import default_workers

    reader = load_tokenizer(spec, layout=layout).at(precision)
    opt.note_inferred(reader)
    opt.note_sigma(context, reader)
    _images.warn_of_photos(images, reader.name)
    pixels = Preprocess.choose(encoding.preprocess, reader.preprocess, reader.image_size, encoding.views)
    decoders = default_workers(str(reader.device), on.count) if encoding.workers is None else encoding.workers
    each = f"{counted(reader.layout.num_tokens, 'token')} x {views}"
    console.note(f"{counted(len(images), 'image')} to {each}, {pixels}, by {reader.name}")
    encode_to = partial(
        tokens.encode,
        tokenizer=reader,
        preprocess=pixels,
        samples=samples,
        sigma=encoding.sigma,
        seed=encoding.seed,
        latents=latents,
        batch_size=batch_size,
    )
    if dry_run:
        _forecast(images, encode_to, out)
        return
    with console.progress("encoding", len(images)) as bar:
        done = encode_to(
            images,
            out=out,
            workers=decoders,
            shard=own,
            on=on,
            overwrite=overwrite,
            progress=bar.update,
            say=console.warn,
        )
    _show(done, own, out)
    if done.unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def _forecast(images: ImageSet, encode_to: Callable[..., EncodeResult], out: Path) -> None:
    """Print what encoding would take and write.

    Args:
        encode_to: `tokens.encode` with what the options say, but for images and out.
    """
    from avarc_cli.forecast import forecast_encoding

    forecast = forecast_encoding(images, lambda few, path: encode_to(few, out=path))
    _dry_run.show({out: forecast.token_bytes}, encoding=forecast)


def _show(done: EncodeResult, shard: Shard, out: Path) -> None:
    _images.list_unreadable(done.unreadable)
    summary = {"cache": done.path, "images": done.images, "unreadable": dict(done.unreadable), "whole": done.complete}
    console.result(summary, console.path_and(out, _said(done, shard)), brief=str(out))


def _said(done: EncodeResult, shard: Shard) -> str:
    if done.complete:
        return "was complete already" if done.already_done else counted(done.images, "image")
    return _shards.said(
        done, shard, does="encode", last="writes the cache", join="avarc cache merge", images=done.images
    )
