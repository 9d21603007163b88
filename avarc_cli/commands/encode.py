"""avarc encode: images to a token cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.errors import EXIT_UNREADABLE


def encode(
    data: opt.DataArg,
    out: Annotated[Path, typer.Option("--out", "-o", help="The token cache to write (HDF5).")],
    model: opt.ModelOpt = "digits",
    tokenizer: opt.TokenizerOpt = None,
    preprocess: opt.PreprocessOpt = None,
    samples: Annotated[
        int, typer.Option("--samples", help="Samples an image: itself, and the rest smoothing neighbours of it.")
    ] = 1,
    sigma: opt.SigmaOpt = 0.1,
    seed: opt.SeedOpt = 0,
    subset: opt.SubsetOpt = None,
    per_class: opt.PerClassOpt = None,
    limit: opt.LimitOpt = None,
    latents: Annotated[bool, typer.Option("--latents", help="Keep the latents too, as float16.")] = False,
    patch_nums: Annotated[
        str | None, typer.Option("--patch-nums", help="Scales of a tokenizer file that does not name them: 1,2,3,4.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images that the tokenizer reads at once.")] = 16,
    workers: opt.WorkersOpt = 0,
    device: opt.DeviceOpt = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a cache of another request.")] = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Turn images into a token cache, which every model with the same tokenizer can read.

    Interrupted or killed, it goes on where it stopped when run again, and the file is the same byte for byte.

    Example: avarc encode val/ --model var-d16 --samples 3 --out val.h5
    """
    from avarc_cli import tokens
    from avarc_cli.data.preprocess import Preprocess
    from avarc_cli.loading import load_tokenizer

    images = opt.select_images(data, subset, per_class, limit)
    scales = opt.parse_numbers(patch_nums, "--patch-nums")
    reader = load_tokenizer(model, tokenizer, patch_nums=scales, device=device)
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
            workers=workers,
            overwrite=overwrite,
            progress=bar.update,
        )
    opt.list_unreadable(done.unreadable)
    said = "was there already" if done.already_done else f"{done.images:,} images"
    summary = {"cache": done.path, "images": done.images, "unreadable": dict(done.unreadable)}
    console.result(summary, f"{out}: {said}", brief=str(out))
    if done.unreadable:
        raise typer.Exit(EXIT_UNREADABLE)
