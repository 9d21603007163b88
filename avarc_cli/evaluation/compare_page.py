"""A comparison of runs as one HTML page, with the images on which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avarc_cli import page
from avarc_cli.evaluation.compare import AgainstFirst, Comparison, ImageDifference, OneRun
from avarc_cli.evaluation.formatting import interval, points, points_interval, probability, seconds, share
from avarc_cli.explain.pixels import source_pixels
from avarc_cli.page import text
from avarc_cli.results.made_here import was_made_here
from avarc_cli.results.read_run import SavedRun
from avarc_cli.words import counted

SIDE = 150  # CSS pixels of an image
LONG = 40  # rows of a table that is shown open; longer ones are folded
STYLE = """
caption { text-align: left; padding: .3rem 0; }
.differences { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: 1rem; }
.differences .card { margin: 0; } .differences h3 { font-size: .9rem; font-weight: 500; }
.differences .row { flex-wrap: nowrap; } .differences img { border: 1px solid var(--line); max-width: none; }
.differences .missing { border: 1px dashed var(--line); color: var(--muted); flex: none; font-size: .85rem;
  display: grid; place-items: center; text-align: center; }
.differences .scroll { min-width: 0; } .right { color: var(--good); } .wrong { color: var(--vermilion); }
@media (max-width: 32rem) { .differences .row { flex-wrap: wrap; }
  .differences th, .differences td { padding: .22rem .3rem; } }
"""


def render(comparison: Comparison, saved: Sequence[SavedRun], *, allow_outside: bool = False) -> str:
    """The page.

    Args:
        saved: the runs that were compared.
        allow_outside: read the images that a run.json names wherever they are. Otherwise those of a run that this user
            did not make must be in its folder.
    """
    names = short_names([run.path for run in saved])
    within = [None if allow_outside or was_made_here(run.path / "run.json") else run.path for run in saved]
    sections = [
        f'<h1>Comparison of {counted(len(saved), "run")}</h1><p class="muted">on {counted(comparison.images, "image")} '
        f"that all of them classified</p>",
        "".join(f"<p>{text(note[:1].upper() + note[1:])}.</p>" for note in comparison.notes),
        f"<section><h2>Runs</h2>{_runs(comparison, names)}</section>",
        f"<section><h2>Against {text(names[0])}</h2>{_against(comparison, names)}</section>",
        _per_class(comparison, names),
        _differences(comparison, saved, within, names),
    ]
    return page.document("avarc compare: " + ", ".join(names), "\n".join(sections), style=STYLE)


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _runs(comparison: Comparison, names: Sequence[str]) -> str:
    columns = ["run", "model", "plan", "candidates", "accuracy", "95 % interval", "tokens per image", "time per image"]
    rows = [_run_row(run, name) for run, name in zip(comparison.runs, names, strict=True)]
    caption = f"Accuracy on {counted(comparison.counted, 'image')} with a label among the candidates of every run"
    return page.table(columns, rows, numbers=[3, 4, 6, 7], caption=caption)


def _run_row(run: OneRun, name: str) -> list[str]:
    return [
        text(name),
        text(run.model),
        text(run.plan),
        f"{run.candidates:,}",
        share(run.accuracy),
        interval(run.accuracy_95),
        f"{run.tokens_per_image:,.0f}",
        seconds(run.seconds_per_image),
    ]


def _against(comparison: Comparison, names: Sequence[str]) -> str:
    columns = ["run", "agreement", "different", "near-ties", "difference", "95 % interval", "only first right"]
    columns += ["only this right", "p (McNemar)", "test"]
    rows = [_against_row(each, name) for each, name in zip(comparison.against_first, names[1:], strict=True)]
    caption = f"Differences in accuracy, in percentage points; bootstrap of the images, seed {comparison.seed}"
    return page.table(columns, rows, numbers=[1, 2, 3, 4, 6, 7, 8], caption=caption)


def _against_row(each: AgainstFirst, name: str) -> list[str]:
    test, pairs = each.mcnemar, each.pairs
    return [
        text(name),
        share(each.agreement),
        f"{each.different:,}",
        f"{each.near_ties:,}",
        points(each.difference),
        points_interval(each.difference_95),
        "" if pairs is None else f"{pairs.only_first:,}",
        "" if pairs is None else f"{pairs.only_second:,}",
        "" if test is None else probability(test.p),
        "" if test is None else test.test,
    ]


def _per_class(comparison: Comparison, names: Sequence[str]) -> str:
    rows = [
        [text(c.name), f"{c.images:,}", *(f"{a:.1%}" for a in c.accuracy), points(c.change)]
        for c in comparison.per_class
    ]
    if not rows:
        return ""
    columns = ["class", "images", *names, "largest change"]
    caption = "Accuracy by class; the largest changes from the first run come first"
    table = page.table(columns, rows, numbers=range(1, len(columns)), caption=caption)
    if len(rows) > LONG:
        table = f"<details><summary>all {len(rows)} classes</summary>{table}</details>"
    return f"<section><h2>Classes</h2>{table}</section>"


def _differences(
    comparison: Comparison, saved: Sequence[SavedRun], within: Sequence[Path | None], names: Sequence[str]
) -> str:
    shown = len(comparison.differences)
    what = f"{counted(shown, 'image')} of {comparison.differing:,}" if shown < comparison.differing else "All of them"
    about = f"{what}; first those that some run gets right and another wrong, then those of which the runs are surest."
    if not comparison.differing:
        about = "None: the runs predict the same class for every image."
    if any(within) and shown:
        about += " You did not make all of these runs here: images outside of their folders are not shown;"
        about += " --allow-outside reads them."
    cards = "\n".join(_card(each, _picture(each, saved, within), names) for each in comparison.differences)
    return (
        f'<section><h2>Images on which they differ</h2><p class="muted">{about}</p>'
        f'<div class="differences">{cards}</div></section>'
    )


def _picture(each: ImageDifference, saved: Sequence[SavedRun], within: Sequence[Path | None]) -> str:
    for run, folder in zip(saved, within, strict=True):
        tokens = run.protocol["tokens"]
        found: np.ndarray | None = source_pixels(
            tokens["source"], each.path, tokens["preprocess"], tokens.get("dataset", ""), folder
        )
        if found is not None:
            return page.picture(found, each.path, side=SIDE)
    return f'<p class="missing" style="width:{SIDE}px;height:{SIDE}px">The image was not found.</p>'


def _card(each: ImageDifference, picture: str, names: Sequence[str]) -> str:
    mark = {True: '<span class="right">right</span>', False: '<span class="wrong">wrong</span>', None: ""}
    columns = zip(names, each.predictions, each.posteriors, each.right, strict=True)
    rows = [[text(name), text(said), f"{p:.1%}", mark[right]] for name, said, p, right in columns]
    caption = f"label: {each.label}" if each.label is not None else "without a label"
    table = page.table(["run", "prediction", "probability", ""], rows, numbers=[2], caption=caption)
    return f'<article class="card"><h3>{text(each.path)}</h3><div class="row">{picture}{table}</div></article>'
