"""avarc encode: images to a token cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights
from avarc_cli.errors import EXIT_UNREADABLE

if TYPE_CHECKING:
    from avarc_cli.tokens import EncodeResult, Shard


def encode(
    data: opt.DataArg,
    out: Annotated[Path, typer.Option("--out", "-o", help="The token cache to write (HDF5).")],
    model: opt.ModelOpt = "digits",
    tokenizer: opt.TokenizerOpt = None,
    preprocess: opt.PreprocessOpt = None,
    samples: Annotated[
        int, typer.Option("--samples", help="Samples per image: the image itself, and smoothing samples of it.")
    ] = 1,
    sigma: opt.SigmaOpt = 0.1,
    seed: opt.SeedOpt = 0,
    dataset: opt.DatasetOpt = None,
    subset: opt.SubsetOpt = None,
    per_class: opt.PerClassOpt = None,
    limit: opt.LimitOpt = None,
    latents: Annotated[bool, typer.Option("--latents", help="Keep the latents too, as float16.")] = False,
    patch_nums: Annotated[
        str | None, typer.Option("--patch-nums", help="Scales of a tokenizer file that does not state them: 1,2,3,4.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", help="Images the tokenizer reads at once; default: 16 of 256 pixels."),
    ] = None,
    workers: opt.WorkersOpt = None,
    shard: Annotated[
        str,
        typer.Option("--shard", help="i/n: share i (from 1) of n; run all n with the same OUT, or join their OUTs."),
    ] = "1/1",
    engine: Annotated[
        str,
        typer.Option("--engine", help="local, or ray: a Ray cluster encodes; needs avarc[ray]."),
    ] = "local",
    precision: Annotated[
        str, typer.Option("--precision", help="Of the encoder: fp32, or bf16 on a GPU, which changes some tokens.")
    ] = "fp32",
    device: opt.DeviceOpt = "auto",
    yes: _weights.YesOpt = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a cache of another request.")] = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Encode images to a token cache, which every model with the same tokenizer can read.

    If it is interrupted or killed, run it again to continue. The file is the same byte for byte, also when several
    processes, on one machine or many, encode one --shard each.

    Example: avarc encode val/ --model var-d16 --samples 3 --out val.h5
    """
    from avarc_cli import tokens
    from avarc_cli.data.preprocess import Preprocess
    from avarc_cli.loading import load_tokenizer
    from avarc_cli.tokens.encoder import default_workers

    share = tokens.Shard.parse(shard)
    _weights.ensure(model, tokenizer, yes=yes, tokenizer_only=True)
    images = opt.select_images(data, subset, per_class, limit, dataset)
    scales = opt.parse_numbers(patch_nums, "--patch-nums")
    reader = load_tokenizer(model, tokenizer, patch_nums=scales, device=device).at(precision)
    pixels = Preprocess(preprocess or reader.preprocess, reader.image_size)
    console.note(
        f"{len(images):,} images to {reader.num_tokens} tokens x {samples} samples, {pixels}, by {reader.name}"
    )
    with console.progress("encoding", len(images)) as bar:
        done = tokens.encode(
            images,
            reader,
            pixels,
            out,
            samples=samples,
            sigma=sigma,
            seed=seed,
            latents=latents,
            batch_size=batch_size,
            workers=default_workers(str(reader.device)) if workers is None else workers,
            shard=share,
            engine=engine,
            overwrite=overwrite,
            progress=bar.update,
            say=console.warn,
        )
    opt.list_unreadable(done.unreadable)
    summary = {"cache": done.path, "images": done.images, "unreadable": dict(done.unreadable), "whole": done.complete}
    console.result(summary, f"{out}: {_said(done, share)}", brief=str(out))
    if done.unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def _said(done: EncodeResult, share: Shard) -> str:
    if done.complete:
        return "was complete already" if done.already_done else f"{done.images:,} images"
    if done.others_at_work:
        return f"shard {share} is done ({done.images:,} images); the last shard to finish writes the cache"
    chunks = f"{done.chunks} of {done.all_chunks} chunks ({done.images:,} images)"
    return f"{chunks}, shard {share} is done; run the others with the same --out, or join theirs: avarc cache merge"
