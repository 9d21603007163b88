"""A finished run as one HTML page: accuracy, confusions, calibration, cost, and the hardest images."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avarc_cli import page, strict_json
from avarc_cli.errors import AvarcError
from avarc_cli.names import to_json
from avarc_cli.page import text
from avarc_cli.results import charts
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.metrics import wilson
from avarc_cli.results.read_run import SavedRun
from avarc_cli.results.validate import AGAIN, check_metrics, check_stages
from avarc_cli.scoring.plan import read_stages
from avarc_cli.words import agreeing, counted

MATRIX = 20  # classes in the confusion matrix; with more, those that are confused most
LONG = 40  # rows of a table that is shown open; longer ones are folded
STYLE = """
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem 1.1rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .85rem; }
.grid { stroke: var(--line); } .fill { fill: var(--blue); } .dot { fill: var(--vermilion); }
.area { fill: var(--blue); opacity: .18; } .step { fill: none; stroke: var(--blue); stroke-width: 2.2; }
.pair { gap: 1rem 4rem; } .pair figcaption { max-width: 24rem; font-size: .85rem; } .facts { max-width: none; }
 caption { text-align: left; padding: .3rem 0; }
.matrix td, .matrix th { text-align: center; padding: .15rem .35rem; min-width: 2rem; border: 1px solid var(--line); }
.matrix th { font-weight: 500; max-width: 9rem; } .matrix tbody th { text-align: right; }
.matrix td.hit { background: color-mix(in srgb, var(--blue) var(--share), transparent); }
.matrix td.miss { background: color-mix(in srgb, var(--vermilion) var(--share), transparent); }
summary { cursor: pointer; color: var(--blue); margin: .4rem 0; } pre { overflow-x: auto; font-size: .8rem; }
"""


@dataclass(frozen=True, kw_only=True)
class HardestImages:
    """The section about single images."""

    cards: Sequence[str]
    """One HTML element per image."""

    note: str
    """Plain text above them."""

    explained: int = 0
    """Number of cards that have maps."""

    style: str = ""
    """CSS that the cards need."""

    script: str = ""
    """JavaScript that the cards need."""


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
    labelled = _named(run)
    name = run.path.resolve().name
    sections = [_head(run, metrics, name), _tiles(metrics)]
    if labelled:
        sections += [_calibration_and_cost(run, metrics, labelled), _confusion(labelled), _per_class(labelled)]
    else:
        sections += [
            "<p>No image has a label among the candidates: there is nothing to compare the predictions with.</p>"
        ]
        sections += [_cost(run)]
    sections += [_hardest(hardest), _protocol(run)]
    return page.document(
        f"avarc report: {name}", "\n".join(sections), style=STYLE + hardest.style, script=hardest.script
    )


def _head(run: SavedRun, metrics: Mapping[str, Any], name: str) -> str:
    protocol = run.protocol
    facts = [
        f"{counted(metrics['images'], 'image')} of {text(protocol['tokens'].get('source', '?'))}",
        counted(len(protocol["candidates"]), "candidate"),
        f"model {text(protocol['model']['name'])}",
        f"plan {text(protocol['plan'])}",
        *([f"orders {text(protocol['orders'])}, {text(protocol['combine'])}"] if "combine" in protocol else []),
        *([f"log p(x | class): {text(protocol['likelihood'])}"] if "likelihood" in protocol else []),
        f"{text(protocol.get('precision', '?'))} on {text(protocol.get('device_name', '?'))}",
    ]
    return f'<h1>{text(name)}</h1><p class="muted facts">{" · ".join(facts)}</p>'


def _tiles(metrics: Mapping[str, Any]) -> str:
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
    shown = "".join(f'<div class="tile"><b>{value}</b><span>{what}</span></div>' for value, what in tiles)
    return f'<section class="tiles">{shown}</section>'


def _unit(seconds: float) -> str:
    return "images per second" if seconds < 1 else "per image"


def _calibration_and_cost(run: SavedRun, metrics: Mapping[str, Any], labelled: Sequence[dict[str, Any]]) -> str:
    binned = charts.bins([r["posterior"] for r in labelled], [r["label_rank"] == 0 for r in labelled])
    error = metrics.get("expected_calibration_error")  # over more bins than the diagram has; old runs lack it
    measured = "" if error is None else f" Expected calibration error {error:.1%}."
    return (
        '<div class="row pair"><section><h2>Calibration</h2>'
        f"<figure>{charts.reliability(binned)}<figcaption>Accuracy over the probability of the prediction; the "
        f"numbers are the images in each bar.{measured}</figcaption></figure>"
        f"</section>{_cost(run)}</div>"
    )


def _cost(run: SavedRun) -> str:
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
    title = f"<h2>Candidates left by {segment}</h2>"
    if left is None:
        why = "the plan's margins decide image by image; classify with --save-json to see how many were left"
        return f"<section>{title}<p>Not recorded: {why}.</p></section>"
    chart = charts.survivors(ends, left, candidates, total, f"{segment}s scored")
    return f"<section>{title}<figure>{chart}<figcaption>{source}: {text(plan)}.</figcaption></figure></section>"


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


def _confusion(labelled: Sequence[dict[str, Any]]) -> str:
    pairs = Counter((r["truth"], r["said"]) for r in labelled)
    wrong = Counter({pair: n for pair, n in pairs.items() if pair[0] != pair[1]})
    classes = sorted({name for pair in pairs for name in pair}, key=_natural)
    shown, note = classes, ""
    if len(classes) > MATRIX:
        involved: dict[str, None] = {}
        for pair, _ in wrong.most_common():
            involved |= dict.fromkeys(pair)
        shown = sorted(list(involved)[:MATRIX], key=_natural)
        note = f"The {len(shown)} most confused of {len(classes)} classes."
    table = _matrix(shown, pairs) if shown else ""
    rows = [[text(a), text(b), str(n)] for (a, b), n in wrong.most_common(MATRIX)]
    listed = page.table(["class", "predicted as", "images"], rows, numbers=[2], caption="The most frequent confusions")
    return (
        f'<section><h2>Confusions</h2><p class="muted">{note}</p><div class="row pair">'
        f'<div class="scroll">{table}</div>{listed if rows else "<p>There are none.</p>"}'
        "</div></section>"
    )


def _matrix(classes: Sequence[str], pairs: Mapping[tuple[str, str], int]) -> str:
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in classes)
    body = ""
    for label in classes:
        total = sum(n for (a, _), n in pairs.items() if a == label)
        cells = ""
        for predicted in classes:
            count = pairs.get((label, predicted), 0)
            fraction = count / total if total else 0
            kind = "hit" if label == predicted else "miss"
            shade = f' class="{kind}" style="--share:{15 + 60 * fraction:.0f}%"' if count else ""
            cells += f'<td{shade} title="{text(label)} predicted as {text(predicted)}: {count}">{count or ""}</td>'
        body += f'<tr><th scope="row">{text(label)}</th>{cells}</tr>\n'
    return (
        '<table class="matrix"><caption>Rows: the label. Columns: the prediction. Shades: share of the row.</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _per_class(labelled: Sequence[dict[str, Any]]) -> str:
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in labelled:
        groups.setdefault(record["truth"], []).append(record)
    rows = []
    for name, members in groups.items():
        right = sum(r["label_rank"] == 0 for r in members)
        low, high = wilson(right, len(members))
        mistaken = Counter(r["said"] for r in members if r["label_rank"] != 0).most_common(1)
        accuracy = right / len(members)
        said = f"{text(mistaken[0][0])} ({mistaken[0][1]})" if mistaken else ""
        interval = f"{low:.0%} to {high:.0%}"
        cells = [text(name), str(len(members)), f"{accuracy:.1%}", page.bar(accuracy), interval, said]
        rows.append((accuracy, name, cells))
    rows.sort(key=lambda row: (row[0], _natural(row[1])))
    columns = ["class", "images", "accuracy", "", "95 % interval", "most often predicted as"]
    table = page.table(columns, [row[2] for row in rows], numbers=[1, 2], caption="Worst first")
    if len(rows) > LONG:
        table = f"<details><summary>all {len(rows)} classes</summary>{table}</details>"
    return f"<section><h2>Accuracy by class</h2>{table}</section>"


def _hardest(hardest: HardestImages) -> str:
    note = f'<p class="muted">{text(hardest.note)}</p>' if hardest.note else ""
    return f"<section><h2>Hardest images</h2>{note}{''.join(hardest.cards)}</section>"


def _protocol(run: SavedRun) -> str:
    asked = html.escape(to_json(run.protocol, indent=1, sort_keys=True))
    return f"<section><h2>Protocol</h2><details><summary>run.json</summary><pre>{asked}</pre></details></section>"


def _named(run: SavedRun) -> list[dict[str, Any]]:
    """Records whose label is a candidate, with display names of the label ("truth") and the prediction ("said").

    A prediction that counts as correct has the label's name (several classes may be one label); where two classes share
    a name, the id is added.
    """
    count = Counter(run.protocol.get("candidate_names", ()))
    named = []
    for r in run.records:
        if r["label_rank"] is None:
            continue
        said, truth = str(r["prediction_name"]), str(r.get("label_name") or r["label_id"])
        said = f"{said} ({r['prediction_id']})" if count[said] > 1 else said
        truth = f"{truth} ({r['label_id']})" if count[truth] > 1 else truth
        named.append(r | {"truth": truth, "said": truth if r["label_rank"] == 0 else said})
    return named


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers in the order of their values, before words."""
    return (0, float(name), "") if name.isdecimal() else (1, 0.0, name.casefold())
