"""avarc data: what a folder of images is, and what is missing in it or broken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import Command
from avarc_cli.errors import EXIT_FAILED, EXIT_UNREADABLE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from avarc_cli.data.check import Report

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Look at data sets of images.

    Example: avarc data check val/
    """


@app.command(cls=Command)
def check(
    data: Annotated[list[Path], typer.Argument(help="A folder, tar shards, Parquet files, or a list of paths.")],
    dataset: opt.DatasetOpt = None,
    decode: Annotated[
        str,
        typer.Option(
            "--decode",
            help="Images to decode, spread over the set: a number, or all. Sets of up to 100 are always decoded.",
        ),
    ] = "0",
    as_json: opt.JsonOpt = False,
) -> None:
    """Say which dataset DATA is, how many images and classes it has, and what is missing or broken.

    Exit codes: 0 nothing to complain of; 3 some images cannot be read, and nothing else; 1 something else.

    Example: avarc data check imagenet-r/ --decode 500
    """
    from avarc_cli.data.check import check as check_images
    from avarc_cli.data.check import parse_decode

    wanted = parse_decode(decode)
    with console.progress("decoding", wanted) as bar:
        report = check_images(data, dataset, decode=wanted, progress=bar.update)
    console.result(report, _shown(report), brief="\n".join(f"{p.count}\t{p.what}" for p in report.problems))
    if report.problems:
        raise typer.Exit(EXIT_UNREADABLE if all(p.unreadable for p in report.problems) else EXIT_FAILED)


def _shown(report: Report) -> RenderableType:
    fewest, most = report.per_class or (0, 0)
    images, classes = f"{report.images:,}", f"{report.classes:,}"
    facts = {
        "dataset": report.dataset or "none of the known ones",
        "layout": report.layout,
        "images": images + (f" of {report.expected_images:,} published" if report.expected_images else ""),
        "classes": classes + (f" of {report.expected_classes:,} published" if report.expected_classes else ""),
        "images a class": f"{fewest:,} to {most:,}" if report.per_class else "no labels",
        "decoded": f"{report.decoded:,}" if report.decoded else "none (--decode N|all)",
    }
    parts: list[RenderableType] = [console.fields(report.source, facts), *report.notes]
    if report.problems:
        rows = [(p.what, p.count, "\n".join(p.examples)) for p in report.problems]
        parts.append(console.table("Problems", ["what", "count", "for example"], rows))
    elif report.decoded or not report.images:
        parts.append("nothing missing, nothing broken")
    else:
        parts.append("nothing missing; whether an image is broken inside, --decode N|all tells")
    return console.stack(*parts)
