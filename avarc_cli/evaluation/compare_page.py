"""A comparison of runs as one HTML page, with the images on which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avarc_cli import page
from avarc_cli.evaluation.compare import AgainstFirst, Comparison, ImageDifference, OneRun
from avarc_cli.evaluation.formatting import interval, points, points_interval, probability, seconds, share
from avarc_cli.explain.pixels import source_pixels
from avarc_cli.results.made_here import was_made_here
from avarc_cli.results.read_run import SavedRun
from avarc_cli.words import counted

LONG = 40  # rows of a table that is shown open; longer ones are folded


def render(comparison: Comparison, saved: Sequence[SavedRun], *, allow_outside: bool = False) -> str:
    """The page.

    Args:
        saved: the runs that were compared.
        allow_outside: read the images that a run.json names wherever they are. Otherwise those of a run that this user
            did not make must be in its folder.
    """
    names = short_names([run.path for run in saved])
    within = [None if allow_outside or was_made_here(run.path / "run.json") else run.path for run in saved]
    return page.render(
        "compare.html",
        title="avarc compare: " + ", ".join(names),
        runs=counted(len(saved), "run"),
        images=counted(comparison.images, "image"),
        notes=[note[:1].upper() + note[1:] for note in comparison.notes],
        sections=[_runs(comparison, names), _against(comparison, names), *_per_class(comparison, names)],
        about=_about(comparison, within),
        choices=[("label", "Label"), ("said", f"Prediction of {names[0]}"), ("result", "Right in")],
        cards=[_card(each, _picture(each, saved, within), names) for each in comparison.differences],
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A table with its heading."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    numbers: Sequence[int]
    """Positions of right-aligned columns."""

    folded: str = ""
    """What the table hides behind, if it is long."""


def _runs(comparison: Comparison, names: Sequence[str]) -> _Section:
    columns = ["run", "model", "plan", "candidates", "accuracy", "95 % interval", "tokens per image", "time per image"]
    rows = [_run_row(run, name) for run, name in zip(comparison.runs, names, strict=True)]
    caption = f"Accuracy on {counted(comparison.counted, 'image')} with a label among the candidates of every run"
    return _Section(title="Runs", columns=columns, rows=rows, numbers=[3, 4, 6, 7], caption=caption)


def _run_row(run: OneRun, name: str) -> list[str]:
    return [
        name,
        run.model,
        run.plan,
        f"{run.candidates:,}",
        share(run.accuracy),
        interval(run.accuracy_95),
        f"{run.tokens_per_image:,.0f}",
        seconds(run.seconds_per_image),
    ]


def _against(comparison: Comparison, names: Sequence[str]) -> _Section:
    columns = ["run", "agreement", "different", "near-ties", "difference", "95 % interval", "only first right"]
    columns += ["only this right", "p (McNemar)", "test"]
    rows = [_against_row(each, name) for each, name in zip(comparison.against_first, names[1:], strict=True)]
    caption = f"Differences in accuracy, in percentage points; bootstrap of the images, seed {comparison.seed}"
    title, numbers = f"Against {names[0]}", [1, 2, 3, 4, 6, 7, 8]
    return _Section(title=title, columns=columns, rows=rows, numbers=numbers, caption=caption)


def _against_row(each: AgainstFirst, name: str) -> list[str]:
    test, pairs = each.mcnemar, each.pairs
    return [
        name,
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


def _per_class(comparison: Comparison, names: Sequence[str]) -> list[_Section]:
    """One section, or none without labels."""
    rows = [
        [c.name, f"{c.images:,}", *(f"{a:.1%}" for a in c.accuracy), points(c.change)] for c in comparison.per_class
    ]
    if not rows:
        return []
    columns = ["class", "images", *names, "largest change"]
    return [
        _Section(
            title="Classes",
            columns=columns,
            rows=rows,
            numbers=range(1, len(columns)),
            caption="Accuracy by class; the largest changes from the first run come first",
            folded=f"all {len(rows)} classes" if len(rows) > LONG else "",
        )
    ]


def _about(comparison: Comparison, within: Sequence[Path | None]) -> str:
    """What stands above the images."""
    shown = len(comparison.differences)
    if not comparison.differing:
        return "None: the runs predict the same class for every image."
    what = f"{counted(shown, 'image')} of {comparison.differing:,}" if shown < comparison.differing else "All of them"
    about = f"{what}; first those that some run gets right and another wrong, then those of which the runs are surest."
    if any(within) and shown:
        about += " You did not make all of these runs here: images outside of their folders are not shown;"
        about += " --allow-outside reads them."
    return about


def _picture(each: ImageDifference, saved: Sequence[SavedRun], within: Sequence[Path | None]) -> page.Picture | None:
    for run, folder in zip(saved, within, strict=True):
        tokens = run.protocol["tokens"]
        found: np.ndarray | None = source_pixels(
            tokens["source"], each.path, tokens["preprocess"], tokens.get("dataset", ""), folder
        )
        if found is not None:
            return page.picture(found)
    return None


def _card(each: ImageDifference, picture: page.Picture | None, names: Sequence[str]) -> dict[str, object]:
    mark = {True: "right", False: "wrong", None: ""}
    columns = zip(names, each.predictions, each.posteriors, each.right, strict=True)
    right_in = ", ".join(name for name, right in zip(names, each.right, strict=True) if right)
    known = any(right is not None for right in each.right)
    return {
        "path": each.path,
        "picture": picture,
        "caption": f"label: {each.label}" if each.label is not None else "without a label",
        "rows": [(name, said, f"{p:.1%}", mark[right]) for name, said, p, right in columns],
        "data": {
            "data-label": page.text(each.label or ""),
            "data-said": page.text(each.predictions[0]),
            "data-result": page.text(right_in or ("none" if known else "unlabelled")),
        },
    }
