"""Predictions on the console: of a few images one by one, of many by class; and the file that they may go to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avarc_cli import console
from avarc_cli.errors import UsageError
from avarc_cli.outputs import PARQUET, PREDICTIONS_CSV, PREDICTIONS_JSON, check_output, reserved
from avarc_cli.words import agreeing, counted

if TYPE_CHECKING:
    from avarc_cli.tables import Layout

FEW = 12  # up to this many images are shown one by one
VERY_FEW = 3  # up to this many with their best classes
CLASSES = 20  # shown of many images
KINDS = (PREDICTIONS_CSV, PREDICTIONS_JSON, PARQUET)  # of --results-file

Record = Mapping[str, Any]


def check_file(path: Path | None, out: Path | None, *, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Raises: UsageError as `reserved_file`, for a file of the run folder, and when a package for it is missing."""
    if path is None:
        return
    if out is not None and path.resolve().parent == out.resolve():
        why = "the files in the run folder are the run's own"
        raise UsageError(f"cannot write '{path}'", why, "name a file outside it; it gets a predictions.csv anyway")
    check_output(path, *KINDS, overwrite=overwrite, inputs=inputs)
    from avarc_cli.results.prediction_files import check_packages

    check_packages(path)


def reserved_file(path: Path | None, *, overwrite: bool, inputs: Sequence[Path]) -> AbstractContextManager[None]:
    """`outputs.reserved` for --results-file."""
    return reserved(path, *KINDS, overwrite=overwrite, inputs=inputs)


def table(records: Sequence[Record], length: int) -> Layout:
    """The predictions of a few images, those of very few with their best classes.

    Args:
        length: tokens of an image.
    """
    labelled = any(record["label"] is not None for record in records)
    if len(records) > VERY_FEW:
        columns = ["image", "class", "probability"]
        rows = [[r["path"], r["prediction_name"], f"{r['posterior']:.1%}", *_label(r, labelled)] for r in records]
    else:
        partly = len({_covered(best, length) for record in records for best in record["best"]}) > 1
        columns = ["image", "class", "probability", "score (nats)", *(["scored on"] if partly else [])]
        rows = [row for record in records for row in _best(record, length if partly else None, labelled)]
    return console.table("", [*columns, *(["label", "result"] if labelled else [])], rows)


def _best(record: Record, length: int | None, labelled: bool) -> list[list[str]]:
    """Rows of the best classes of an image; length: None where all scores cover the same."""
    rows = []
    for rank, best in enumerate(record["best"]):
        covered = [] if length is None else [_covered(best, length)]
        score = [f"{best['posterior']:.1%}", f"{best['score']:.2f}", *covered]
        label = _label(record, labelled) if rank == 0 else [""] * (2 * labelled)
        rows.append([record["path"] if rank == 0 else "", best["name"], *score, *label])
    return rows


def _covered(best: Mapping[str, Any], length: int) -> str:
    """What a score covers, "120 of 680 tokens, 3 samples"; empty where an earlier version did not record it."""
    if "tokens" not in best:
        return ""
    several = [counted(best[f"{what}s"], what) for what in ("sample", "order") if best[f"{what}s"] > 1]
    part = "all" if best["tokens"] == length else f"{best['tokens']:,} of"
    tokens = "an estimate" if best.get("estimated") else f"{part} {counted(length, 'token')}"
    return ", ".join([tokens, *several])


def _label(record: Record, labelled: bool) -> list[str]:
    if not labelled:
        return []
    if record["label"] is None:
        return ["", ""]
    result = {None: "no candidate", 0: "right"}.get(record["label_rank"], "wrong")
    return [str(record["label_name"] or record["label_id"]), result]


def by_class(records: Sequence[Record]) -> Layout:
    """How many of many images each class was predicted for, most frequent first; of labelled ones, how many rightly."""

    def layout(width: int) -> list[Any]:  # the records are read only if people see this
        images, right, names = Counter[int](), Counter[int](), dict[int, str]()
        for record in records:
            images[record["prediction"]] += 1
            right[record["prediction"]] += record["label_rank"] == 0
            names[record["prediction"]] = record["prediction_name"]
        shown = sorted(images, key=lambda class_id: (-images[class_id], class_id))[:CLASSES]
        labelled = any(right.values())
        total = images.total()
        rows = [[names[c], images[c], f"{images[c] / total:.1%}", *([right[c]] if labelled else [])] for c in shown]
        columns = ["predicted class", "images", "share", *(["right"] if labelled else [])]
        lines = console.table("", columns, rows)(width)
        if more := len(images) - len(shown):
            rest = total - sum(images[c] for c in shown)
            what = f"and {more:,} more {agreeing(more, 'class')} ({counted(rest, 'image')})"
            lines += console.text(what)(width)
        return lines

    return layout
