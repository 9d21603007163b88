"""avarc data: inspect image datasets."""

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

    from avarc_cli.data.check import DatasetReport

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Inspect image datasets.

    Example: avarc data check val/
    """


@app.command(cls=Command)
def check(
    data: Annotated[list[Path], typer.Argument(help=f"A folder, tar shards, Parquet files, or {opt.A_LIST}.")],
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
    """Show which dataset DATA is, how many images and classes it has, and what is missing or invalid.

    Exit codes: 0 no problems; 3 the only problem is images that cannot be read; 1 any other problem.

    Example: avarc data check imagenet-r/ --decode 500
    """
    from avarc_cli.data.check import check as check_images
    from avarc_cli.data.check import parse_decode

    wanted = parse_decode(decode)
    with console.progress("decoding", wanted) as bar:
        report = check_images(data, dataset, decode=wanted, progress=bar.update)
    console.result(report, _render(report), brief="\n".join(f"{p.count}\t{p.what}" for p in report.problems))
    if report.problems:
        raise typer.Exit(EXIT_UNREADABLE if all(p.unreadable for p in report.problems) else EXIT_FAILED)


def _render(report: DatasetReport) -> RenderableType:
    fewest, most = report.per_class or (0, 0)
    images, classes = f"{report.images:,}", f"{report.classes:,}"
    facts = {
        "dataset": report.dataset or "not a known one",
        "layout": report.layout,
        "images": images + (f" of {report.expected_images:,} published" if report.expected_images else ""),
        "classes": classes + (f" of {report.expected_classes:,} published" if report.expected_classes else ""),
        "images per class": f"{fewest:,} to {most:,}" if report.per_class else "no labels",
        "decoded": f"{report.decoded:,}" if report.decoded else "none (--decode N|all)",
    }
    parts: list[RenderableType] = [console.fields(report.source, facts), *report.notes]
    if report.problems:
        rows = [(p.what, p.count, "\n".join(p.examples)) for p in report.problems]
        parts.append(console.table("Problems", ["what", "count", "for example"], rows))
    elif report.decoded or not report.images:
        parts.append("no problems found")
    else:
        parts.append("no problems found; no image was decoded (--decode N|all does)")
    return console.stack(*parts)
