"""A finished run as one HTML page: accuracy, confusions, calibration, cost, and the hardest images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from avarc_cli import page, strict_json
from avarc_cli.errors import AvarcError
from avarc_cli.names import to_json
from avarc_cli.results import charts
from avarc_cli.results.confusion import confusion, natural
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.metrics import wilson
from avarc_cli.results.read_run import SavedRun
from avarc_cli.results.tally import Outcome, Tally, tally
from avarc_cli.results.validate import AGAIN, check_metrics, check_stages
from avarc_cli.scoring.plan import read_stages
from avarc_cli.words import agreeing, counted

CLASSES = 1000  # rows of the table of classes
IMAGES = 1000  # rows of the table of images
LONG = 40  # rows of a table that is shown open; longer ones are folded


@dataclass(frozen=True, kw_only=True)
class HardestImages:
    """The section about single images."""

    cards: Sequence[Markup]
    """One HTML element per image, for a page with maps.css and maps.js."""

    note: str
    """Plain text above them."""

    explained: int = 0
    """Number of cards that have maps."""


def read_metrics(run: SavedRun) -> dict[str, Any]:
    """The run's metrics.json. Raises AvarcError when it lacks what a report shows, or belongs to another run."""
    metrics = RunFolder(run.path).read_metrics()
    check_metrics(metrics, f"{run.path}/metrics.json")
    if len(run.records) != metrics["images"]:
        why = f"{counted(len(run.records), 'prediction')}, and metrics of {counted(metrics['images'], 'image')}"
        raise AvarcError(f"'{run.path}' is corrupt", why, AGAIN)
    return metrics


def render(run: SavedRun, metrics: Mapping[str, Any], hardest: HardestImages) -> str:
    """The page."""
    counts, name = tally(run, IMAGES), run.path.resolve().name
    labelled = bool(counts.right)
    error = metrics.get("expected_calibration_error")  # over more bins than the diagram has; old runs lack it
    return page.render(
        "report.html",
        title=f"avarc report: {name}",
        name=name,
        facts=_facts(run, metrics),
        tiles=_tiles(metrics),
        labelled=labelled,
        reliability=charts.reliability(charts.bins(counts.confidence, counts.right)) if labelled else "",
        calibration_error="" if error is None else f" Expected calibration error {error:.1%}.",
        survivors=_survivors(run),
        confusion=confusion(counts.pairs) if labelled else None,
        classes=_per_class(counts.pairs),
        hardest=hardest,
        images=_images(counts),
        protocol=escape(to_json(run.protocol, indent=1, sort_keys=True)),
    )


def _facts(run: SavedRun, metrics: Mapping[str, Any]) -> list[str]:
    protocol = run.protocol
    return [
        f"{counted(metrics['images'], 'image')} of {protocol['tokens'].get('source', '?')}",
        counted(len(protocol["candidates"]), "candidate"),
        f"model {protocol['model']['name']}",
        f"plan {protocol['plan']}",
        *([f"orders {protocol['orders']}, {protocol['combine']}"] if "combine" in protocol else []),
        *([f"log p(x | class): {protocol['likelihood']}"] if "likelihood" in protocol else []),
        f"{protocol.get('precision', '?')} on {protocol.get('device_name', '?')}",
    ]


def _tiles(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    tiles = []
    if metrics.get("labelled"):
        low, high = metrics["accuracy_95"]
        tiles.append((f"{metrics['accuracy']:.2%}", f"accuracy, 95 % interval {low:.1%} to {high:.1%}"))
        what = f"{agreeing(metrics['labelled'], 'image')} correct"
        tiles.append((f"{metrics['correct']:,} of {metrics['labelled']:,}", what))
        tiles += [(f"{v:.2%}", f"top-{k}") for k, v in metrics["top_k"].items() if k != "1"]
    if metrics.get("label_not_a_candidate"):
        count = metrics["label_not_a_candidate"]
        what = f"{agreeing(count, 'image')} not counted: of a class that is not a candidate"
        tiles.append((f"{count:,}", what))
    tiles.append((f"{metrics['bits_per_token'] or 0:.3f}", "bits per token under the predicted class"))
    tiles.append((f"{metrics['tokens_scored_per_image'] or 0:,.0f}", "tokens scored per image"))
    seconds = metrics.get("seconds_per_image")
    if seconds:
        tiles.append((f"{1 / seconds:.1f}" if seconds < 1 else f"{seconds:.1f} s", _unit(seconds)))
    tiles.append((f"{metrics['near_ties']:,}", f"{agreeing(metrics['near_ties'], 'near-tie')}, within rounding"))
    return tiles


def _unit(seconds: float) -> str:
    return "images per second" if seconds < 1 else "per image"


def _survivors(run: SavedRun) -> dict[str, object]:
    """Candidates left after each segment: from the images' own files where they were saved, else from the plan."""
    plan, candidates = run.protocol["plan"], len(run.protocol["candidates"])
    stages = read_stages(plan, candidates)
    ends = [stage.segments for stage in stages]
    scales = len(run.layout.grids) if run.layout else 0
    segment, total = ("scale", scales) if scales > 1 else ("segment", max(ends))
    left = _mean_survivors(run, len(stages))
    source = "Mean over the images of the run"
    if left is None and all(math.isinf(stage.margin) for stage in stages):
        left, source = [float(min(stage.keep, candidates)) for stage in stages], "As the plan says, for every image"
    chart = None if left is None else charts.survivors(ends, left, candidates, total, f"{segment}s scored")
    return {"unit": segment, "source": source, "plan": plan, "chart": chart}


def _mean_survivors(run: SavedRun, stages: int) -> list[float] | None:
    """Candidates that survive each stage, on average over the images; None when that was not saved."""
    sums = [0.0] * stages
    for record in run.records:
        file = run.path / "json" / f"{record['index']}.json"
        if not file.is_file():
            return None
        try:
            recorded = check_stages(strict_json.parse(file.read_text()), len(run.candidates))
            counts = [len(stage["survivors"]) for stage in recorded]
            if run.in_two_precisions and len(counts) == stages + 1:  # the last stage once more, in the exact one
                del counts[-2]
            if len(counts) > stages:
                raise ValueError(f"it has {len(counts)} stages, the plan {stages}")
        except (OSError, ValueError) as error:
            raise AvarcError(f"'{file}' is corrupt", str(error), AGAIN) from None
        counts += [1] * (stages - len(counts))  # decided early, so not scored further
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
    return [s / len(run.records) for s in sums] if run.records else None


def _per_class(pairs: Counter[tuple[str, str]]) -> dict[str, object]:
    said: dict[str, Counter[str]] = {}
    for (label, predicted), images in pairs.items():
        said.setdefault(label, Counter())[predicted] += images
    shares = {name: counts[name] / counts.total() for name, counts in said.items()}
    worst = sorted(said, key=lambda name: (shares[name], natural(name)))
    caption = "Worst first"
    if len(worst) > CLASSES:
        caption = f"The {CLASSES:,} worst of {len(worst):,}; predictions.jsonl has all images"
    return {
        "rows": [_class(name, shares[name], said[name]) for name in worst[:CLASSES]],
        "caption": caption,
        "folded": f"all {len(worst):,} classes" if LONG < len(worst) <= CLASSES else "",
    }


def _class(name: str, accuracy: float, said: Counter[str]) -> dict[str, object]:
    low, high = wilson(said[name], said.total())
    wrong = next(((other, images) for other, images in said.most_common(2) if other != name), None)
    return {
        "name": name,
        "images": f"{said.total():,}",
        "accuracy": f"{accuracy:.1%}",
        "percent": f"{100 * accuracy:.1f}",
        "interval": f"{low:.0%} to {high:.0%}",
        "mistaken": f"{wrong[0]} ({wrong[1]})" if wrong else "",
    }


def _images(counts: Tally) -> dict[str, object]:
    shown = len(counts.hardest)
    what = f"The {shown:,} hardest of {counts.images:,}" if shown < counts.images else f"All {shown:,}"
    rest = "; predictions.jsonl has all of them" if shown < counts.images else ""
    return {
        "note": f"{what}: those with the least probable label, or prediction without one, come first{rest}.",
        "caption": "Predictions; the margin is to the second class, in the units of the score",
        "folded": f"{shown:,} images" if shown > LONG else "",
        "columns": ("image", "label", "prediction", "result", "probability", "of the label", "margin", "tokens"),
        "rows": [{"cells": _cells(each), "data": _data(each)} for each in counts.hardest],
    }


def _cells(each: Outcome) -> tuple[str, ...]:
    margin = "" if each.margin is None else f"{each.margin:.2f}"
    label = "" if each.right is None else f"{each.label_posterior:.1%}"
    return (
        each.path,
        each.truth,
        each.said,
        each.result,
        f"{each.posterior:.1%}",
        label,
        margin,
        f"{each.tokens_scored:,}",
    )


def _data(each: Outcome) -> dict[str, object]:
    """What the table is filtered by."""
    return {
        "data-label": page.text(each.truth),
        "data-said": page.text(each.said),
        "data-result": page.text(each.result),
        "data-margin": None if each.margin is None else f"{each.margin:.6g}",
        "data-tokens": each.tokens_scored,
    }
