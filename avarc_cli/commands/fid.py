"""avarc fid: how good generated images are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _images, _inception
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.errors import EXIT_UNREADABLE
from avarc_cli.settings import check_device, check_exists, check_file
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.metrics.fid import Scores
    from avarc_cli.metrics.pixels import Decoding, Pixels
    from avarc_cli.metrics.protocol import Reference


@with_option_groups
def fid(
    context: typer.Context,
    samples: Annotated[
        Path,
        typer.Argument(help="Generated images: a folder, or FILE.npz with arr_0, uint8 (images, side, side, 3)."),
    ],
    *,
    reference: Annotated[
        Path,
        typer.Option(
            "--reference",
            "-r",
            help="FILE.npz with statistics (mu, sigma, mu_s, sigma_s), images (arr_0) or both; or real images, as DATA "
            "of avarc encode, whose centers are cropped.",
        ),
    ],
    inception: _inception.InceptionOpt = None,
    allow_few: _inception.AllowFewOpt = False,
    shuffle: Annotated[
        bool,
        typer.Option("--shuffle", help="Inception Score of parts drawn at random: for a file that is sorted by class."),
    ] = False,
    features: Annotated[
        Path | None, typer.Option("--features", help="Folder to keep features in: after a kill, run it again.")
    ] = None,
    save_statistics: Annotated[
        Path | None, typer.Option("--save-statistics", help="FILE.npz for the statistics of the reference.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --save-statistics.")] = False,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images that the Inception network reads at once.")
    ] = 32,
    workers: opt.WorkersOpt = None,
    dataset: opt.DatasetOpt = None,
    allow_outside: opt.AllowOutsideOpt = False,
    device: opt.DeviceOpt = "auto",
    work: groups.WorkersOptions,
    as_json: opt.JsonOpt = False,
) -> None:
    """Compute FID, sFID, Inception Score, precision and recall of generated images.

    By the protocol of published numbers: ADM's evaluator, 50,000 images, VIRTUAL_imagenet256_labeled.npz. With
    --features it can be killed, and run again to continue; and several --devices can share it.

    Example: avarc fid samples.npz --reference VIRTUAL_imagenet256_labeled.npz
    """
    from avarc_cli import outputs
    from avarc_cli.metrics import protocol
    from avarc_cli.metrics.pixels import Decoding

    check_device(device)
    check_exists(samples, "SAMPLES")
    check_exists(reference, "--reference")
    check_file(inception, "--inception")
    on = work.check(context)
    protocol.check_features_folder(features)
    protocol.check_workers(on, features)
    decoding = Decoding.beside(on, workers)
    weights = protocol.require_weights(inception)
    with outputs.reserved(save_statistics, outputs.NPZ, overwrite=overwrite, inputs=[samples, reference]):
        generated = _samples(samples, decoding, allow_outside=allow_outside)
        real = _reference(reference, generated, dataset, decoding, allow_outside=allow_outside)
        for count, source in ((len(generated), generated.source), (real.images, real.source)):
            if warning := protocol.check_count(count, source, allow_few=allow_few):
                console.warn(warning)
        for each in (generated, real.pixels):
            _check(each)
        from avarc_cli.metrics import fid as library  # imports torch: only now, after all that may be wrong

        network = _inception.load(weights, on.first_device(device))
        bar = partial(console.progress, unit="image")
        scores = library.evaluate(
            generated,
            real,
            network,
            shuffle=shuffle,
            keep=features,
            batch_size=batch_size,
            workers=on,
            bar=bar,
            say=console.warn,
        )
        if save_statistics is not None:
            library.write_statistics(save_statistics, scores)
    _images.list_unreadable(list(scores.unreadable))
    _show(generated, real, scores, network.sha256, shuffle=shuffle)
    if scores.unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def _samples(path: Path, decoding: Decoding, *, allow_outside: bool) -> Pixels:
    from avarc_cli.metrics import arrays, pixels, protocol

    if protocol.is_archive(path):
        return arrays.open_images(path)
    images = _images.open_noted([path], "none", allow_outside=allow_outside)
    if said := pixels.jpeg_note(images):
        console.warn(said)
    with console.progress("looking at the images", len(images)) as bar:
        return pixels.of_samples(images, decoding, bar.update)


def _reference(
    path: Path, samples: Pixels, dataset: str | None, decoding: Decoding, *, allow_outside: bool
) -> Reference:
    from avarc_cli.metrics import protocol

    if protocol.is_archive(path):
        return protocol.reference_of_archive(path, samples)
    images = _images.open_noted([path], dataset, allow_outside=allow_outside)
    return protocol.reference_of_images(images, samples.side, decoding)


def _check(images: Pixels | None) -> None:
    """Look for damage in an archive of images."""
    from avarc_cli.metrics.arrays import ArrayImages

    if isinstance(images, ArrayImages):
        with console.progress(f"checking {images.path.name}", len(images)) as bar:
            images.check(bar.update)


def _show(samples: Pixels, reference: Reference, scores: Scores, weights: str, *, shuffle: bool) -> None:
    from avarc_cli.metrics.scores import PART

    if scores.is_sorted:
        console.warn(
            "the images come sorted by class, so that each part of the Inception Score holds few classes, which lowers "
            "it; --shuffle draws the parts at random"
        )
    behind, compared = (_images_of(each) for each in (scores.reference_images, scores.compared_images))
    stored = "stored statistics" if reference.pooled is not None else "statistics"
    order = "drawn at random" if shuffle else "in their order"
    shown = {
        "FID": f"{scores.fid:.2f}",
        "sFID": _number(scores.sfid),
        "Inception Score": f"{scores.inception_score:.2f}",
        "precision": _number(scores.precision),
        "recall": _number(scores.recall),
        "samples": f"{counted(scores.images, 'image')} of {samples.side} x {samples.side} pixels",
        "FID, sFID against": f"{stored} of {behind}",
        "precision, recall against": compared if scores.compared_images else "nothing: the reference has no images",
        "Inception Score over": f"parts of {PART:,} images {order}, without the bias of the outputs",
    }
    data = {"samples": samples.source, "reference": reference.source, **scores.to_dict()}
    data |= {"side": samples.side, "stored_statistics": reference.pooled is not None, "shuffled": shuffle}
    data |= {"part": PART, "inception_sha256": weights}
    title = f"{samples.source} against {reference.source}"
    console.result(data, console.fields(title, shown), brief=f"{scores.fid:.4f}")


def _images_of(count: int | None) -> str:
    return "an unknown number of images" if count is None else counted(count, "image")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
