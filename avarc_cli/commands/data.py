"""avarc data: inspect image datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import Command, Group
from avarc_cli.errors import EXIT_FAILED, EXIT_UNREADABLE
from avarc_cli.names import to_line
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.data.check import DatasetReport
    from avarc_cli.tables import Layout

app = typer.Typer(cls=Group, no_args_is_help=True)


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
    allow_outside: opt.AllowOutsideOpt = False,
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
        report = check_images(data, dataset, decode=wanted, allow_outside=allow_outside, progress=bar.update)
    console.result(report, _render(report), brief=[(p.count, p.what) for p in report.problems])
    if report.problems:
        raise typer.Exit(EXIT_UNREADABLE if all(p.unreadable for p in report.problems) else EXIT_FAILED)


def _decoded(report: DatasetReport) -> str:
    """How many images were decoded, and what was checked of the others."""
    if report.decoded == report.images:
        return f"all {report.images:,}"
    if report.decoded:
        return f"{report.decoded:,} of {report.images:,}, spread over the set (--decode all decodes every image)"
    return (
        f"none of {report.images:,}: names and labels were read, and whether files are there and not empty "
        "(--decode N decodes a sample, --decode all every image)"
    )


def _render(report: DatasetReport) -> Layout:
    fewest, most = report.per_class or (0, 0)
    images, classes = f"{report.images:,}", f"{report.classes:,}"
    facts = {
        "dataset": report.dataset or "not a known one",
        "layout": report.layout,
        "images": images + (f" of {report.expected_images:,} published" if report.expected_images else ""),
        "classes": classes + (f" of {report.expected_classes:,} published" if report.expected_classes else ""),
        "images per class": f"{fewest:,} to {most:,}" if report.per_class else "no labels",
        "decoded": _decoded(report),
    }
    parts: list[Layout | str] = [console.fields(report.source, facts), *report.notes]
    if report.problems:
        rows = [(p.what, p.count, "\n".join(to_line(name) for name in p.examples)) for p in report.problems]
        parts.append(console.table("Problems", ["what", "count", "for example"], rows))
    elif left := report.images - report.decoded:
        parts.append(f"no problems found, but {counted(left, 'image')} {'was' if left == 1 else 'were'} not decoded")
    else:
        parts.append("no problems found")
    return console.stack(*parts)
