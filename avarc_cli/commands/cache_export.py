"""avarc cache export: a token cache to the files of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.words import counted


def export_tokens(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A token cache.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="FILE.jsonl, FILE.npy or FILE.npz; or a new folder, with --format.")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="llamagen (imagenet256_codes/0.npy and imagenet256_labels/0.npy in OUT), randar (OUT/CLASS/0.npy), "
            "jsonl (1d-tokenizer's lines, one a view), npy (labels in FILE_labels.npy) or npz (tokens, labels). "
            "Default: what the suffix of OUT says.",
            autocompletion=complete.one_of("llamagen", "randar", "jsonl", "npy", "npz"),
        ),
    ] = None,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Write the tokens and labels of a cache in the format of another program; cache import reads them all.

    Ten crops are written in torchvision's order, as those programs do, except to npy and npz. Latents, names and noise
    have no place in these formats. Continuous tokens are written to npy and npz only, as float32.

    Example: avarc cache export val.h5 --format llamagen --out val-codes
    """
    from avarc_cli.tokens.interchange import exporting

    chosen = exporting.choose_format(out, format)
    exporting.check_output(out, chosen, cache, overwrite=overwrite)
    with console.progress("exporting", None) as bar:
        done = exporting.export_codes(cache, out, chosen, overwrite=overwrite, progress=bar.update)
    views = f", {counted(done.views, 'view')} of each" if done.views > 1 else ""
    said = f"{counted(done.images, 'image')}{views}; labels are {done.numbering}"
    data = {"out": out, "format": chosen, "images": done.images, "views": done.views, "labels": done.numbering}
    console.result(data, console.path_and(out, said), brief=str(out))
