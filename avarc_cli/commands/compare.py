"""avarc compare: finished runs over the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.evaluation.formatting import interval, points, points_interval, probability, seconds, share
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.evaluation.compare import Comparison

CLASSES_SHOWN = 5


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run folders, made by avarc classify --out.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a page (.html) with images on which the runs differ.")
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=0, max=500, help="How many of the images on which they differ to list.")
    ] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the bootstrap.")] = 0,
    allow_outside: opt.AllowOutsideOpt = False,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Compare finished runs over the same images with the first of them.

    Accuracy with a paired interval and McNemar's test, agreement, cost, and the classes and images that differ.

    Example: avarc compare runs/exhaustive runs/tuned --out compared.html
    """
    from avarc_cli import outputs
    from avarc_cli.evaluation import compare as comparing

    with outputs.reserved(out, outputs.HTML, overwrite=overwrite):
        saved = comparing.open_runs(runs)
        found = comparing.compare(saved, images=images, seed=seed)
        if out is not None:
            from avarc_cli.evaluation.compare_page import render
            from avarc_cli.storage import write_bytes

            write_bytes(out, render(found, saved, allow_outside=allow_outside).encode())
    for note in found.notes:
        console.note(note)
    console.result(vars(found) | {"out": out}, _human(found, runs, out), brief=_brief(found))


def _brief(found: Comparison) -> list[tuple[object, ...]]:
    return [
        (each.run, "" if each.difference is None else f"{each.difference:.6f}", f"{each.agreement:.6f}")
        for each in found.against_first
    ]


def _human(found: Comparison, paths: list[Path], out: Path | None) -> Any:
    names = [f"{number}  {path}" for number, path in enumerate(paths, start=1)]
    parts = [_runs(found, names), _against(found)]
    if any(c.change for c in found.per_class):
        parts.append(_classes(found, len(paths)))
    if found.differences:
        parts.append(_images(found, len(paths)))
    if out is not None:
        parts.append(console.path_and(out, "images on which the runs differ"))
    return console.stack(*parts)


def _runs(found: Comparison, names: list[str]) -> Any:
    rows = [
        [
            name,
            share(run.accuracy),
            interval(run.accuracy_95),
            f"{run.tokens_per_image:,.0f}",
            seconds(run.seconds_per_image),
        ]
        for name, run in zip(names, found.runs, strict=True)
    ]
    title = f"{counted(found.images, 'image')} in common, {found.counted:,} with a label for accuracy"
    return console.table(title, ["run", "accuracy", "95 % interval", "tokens/image", "time/image"], rows)


def _against(found: Comparison) -> Any:
    rows = []
    for number, each in enumerate(found.against_first, start=2):
        pairs, test = each.pairs, each.mcnemar
        rows.append(
            [
                str(number),
                share(each.agreement),
                points(each.difference),
                points_interval(each.difference_95),
                f"{pairs.only_first:,} / {pairs.only_second:,}" if pairs else "",
                probability(test.p) if test else "",
            ]
        )
    columns = ["run", "agreement", "difference", "95 % interval", "only 1 / only it", "p"]
    tests = " and ".join(dict.fromkeys(each.mcnemar.test for each in found.against_first if each.mcnemar))
    title = "Against run 1" + (f": accuracy in points; p of McNemar's test ({tests})" if tests else "")
    return console.table(title, columns, rows)


def _classes(found: Comparison, runs: int) -> Any:
    rows = [
        [c.name, c.images, *(f"{a:.1%}" for a in c.accuracy), points(c.change)]
        for c in found.per_class[:CLASSES_SHOWN]
        if c.change
    ]
    columns = ["class", "images", *(f"run {number}" for number in range(1, runs + 1)), "change"]
    return console.table("Classes that change most", columns, rows)


def _images(found: Comparison, runs: int) -> Any:
    rows = [[each.path, each.label or "", *each.predictions] for each in found.differences]
    title = f"Images on which they differ, {len(rows):,} of {found.differing:,}"
    return console.table(title, ["image", "label", *(f"run {number}" for number in range(1, runs + 1))], rows)
