"""avarc reconstruct: how good a tokenizer is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _images, _inception
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.errors import EXIT_UNREADABLE
from avarc_cli.settings import check_file
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.metrics.codes import Usage
    from avarc_cli.metrics.reconstruction import Reconstruction
    from avarc_cli.tokenizer import Tokenizer
    from avarc_cli.work.workers import Workers


@with_option_groups
def reconstruct(
    context: typer.Context,
    data: opt.DataArg,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the reconstructions: 000000.png and so on.")
    ] = None,
    inception: _inception.InceptionOpt = None,
    allow_few: _inception.AllowFewOpt = False,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Folder to keep features and measurements in: after a kill, run it again."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images that are encoded and decoded at once.")
    ] = 16,
    preprocess: opt.PreprocessOpt = None,
    dataset: opt.DatasetOpt = None,
    limit: opt.LimitOpt = None,
    sample: opt.SampleOpt = None,
    seed: opt.SeedOpt = 0,
    workers: opt.WorkersOpt = None,
    allow_outside: opt.AllowOutsideOpt = False,
    work: groups.WorkersOptions,
    as_json: opt.JsonOpt = False,
    model: groups.WeightsOptions,
) -> None:
    """Encode and decode images, and measure: rFID, PSNR, SSIM, and how a tokenizer's codes are used.

    rFID is the distance of the reconstructions from the same images, and needs the Inception network and 50,000 images.
    With --features, or --out, it can be killed, and run again to continue; and several --devices can share it.

    Example: avarc reconstruct val/ --model var-d16
    """
    from avarc_cli.data.preprocess import Preprocess, check_option
    from avarc_cli.metrics import pixels
    from avarc_cli.work import chunks

    on = work.workers
    model = work.place(context, model)
    check_option(preprocess)
    check_file(inception, "--inception")
    part = _images.Part(limit, sample, seed)
    part.check()
    keep = _folder_of_finished(features, out, on)
    images = part.of(_images.open_noted(data, dataset, allow_outside=allow_outside))
    weights = _weights(inception, len(images), images.source, allow_few=allow_few)
    spec = model.of_tokenizer(context).fetch(tokenizer_only=True)
    from avarc_cli.loading import load_tokenizer  # imports torch: only now, after all that may be wrong
    from avarc_cli.metrics import reconstruction

    tokenizer = load_tokenizer(spec)
    opt.note_inferred(tokenizer)
    network = None if weights is None else _inception.load(weights, model.device)
    how = Preprocess.choose(preprocess, tokenizer.preprocess, tokenizer.image_size)
    console.note(f"{counted(len(images), 'image')}, {how}, by {tokenizer.name}")
    with console.progress("reconstructing", len(images)) as bar:
        found = reconstruction.reconstruct(
            pixels.SetImages(images, how, pixels.Decoding.beside(on, workers)),
            tokenizer,
            network,
            out,
            keep=keep,
            batch_size=batch_size,
            workers=on,
            progress=bar.update,
            say=console.warn,
        )
    _images.list_unreadable(list(found.unreadable))
    notes = {"preprocess": str(how), "tokenizer": tokenizer.name, "source": images.source, "out": out}
    _show(found, tokenizer, notes)
    if keep is not None and features is None:
        chunks.delete(keep)
    if found.unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def _folder_of_finished(features: Path | None, out: Path | None, workers: Workers) -> Path | None:
    """Where what is finished is kept: --features, or until all is done a folder beside --out. None without either.

    Raises: UsageError where that, or --out, cannot be used.
    """
    from avarc_cli.metrics import protocol
    from avarc_cli.storage import beside

    protocol.check_features_folder(features)
    keep = features or (None if out is None else beside(out, ".parts"))
    protocol.check_workers(workers, keep)
    if out is not None:
        protocol.check_pictures_folder(out, keep)
    return keep


def _weights(inception: Path | None, count: int, source: str, *, allow_few: bool) -> Path | None:
    """The Inception network's file if rFID can be computed; says why where it cannot."""
    from avarc_cli.metrics import protocol

    found = protocol.find_weights(inception)
    if found is None:
        console.note("no rFID: the Inception network is not on this machine (avarc download inception)")
        return None
    if inception is None and not allow_few and count < protocol.ENOUGH:
        console.note(f"no rFID: {counted(count, 'image')}, and it takes {protocol.ENOUGH:,} (--allow-few)")
        return None
    if warning := protocol.check_count(count, source, allow_few=allow_few):
        console.warn(warning)
    return found


def _show(found: Reconstruction, tokenizer: Tokenizer, notes: dict[str, Any]) -> None:
    shown = {
        "rFID": "–" if found.rfid is None else f"{found.rfid:.2f}",
        "PSNR": f"{found.psnr:.2f} dB",
        "SSIM": "–" if found.ssim is None else f"{found.ssim:.3f}",
        "images": f"{found.images:,}, as uint8 pixels, {notes['preprocess']}",
    }
    parts = [console.fields(f"{tokenizer.name} on {notes['source']}", shown)]
    if found.usage:
        columns = ["tokens of", "tokens", "codes used", "share", "entropy, bits", "perplexity"]
        rows = [_usage_row(each, tokenizer.vocab_size) for each in found.usage]
        parts.append(console.table(f"use of the {counted(tokenizer.vocab_size, 'code')}", columns, rows))
    if notes["out"] is not None:
        parts.append(console.path_and(notes["out"], counted(found.images, "reconstruction")))
    data = {**notes, "vocab_size": tokenizer.vocab_size, "range": 255, **found.to_dict()}
    console.result(data, console.stack(*parts), brief=f"{found.psnr:.4f}")


def _usage_row(usage: Usage, codes: int) -> list[object]:
    share, entropy, perplexity = f"{usage.used / codes:.1%}", f"{usage.entropy:.2f}", f"{usage.perplexity:.1f}"
    return [usage.where, usage.tokens, usage.used, share, entropy, perplexity]
