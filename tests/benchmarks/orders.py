"""What averaging over generation orders gains, and what plans save of its cost, on the held-out digits.

python tests/benchmarks/orders.py --out docs/orders.png

Scores all 360 digits with digits-randar exhaustively: ten classes, 20 random orders and the raster order. From these
numbers it computes the accuracy of every rule for 1 to 20 orders, as the mean over disjoint groups of that many, and
what plans would do: stages written by hand, and margins tuned on 250 of the images and measured on the other 110.
"""

from __future__ import annotations

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from figure_tables import Cell, Table, say, show
from matplotlib.figure import Figure

from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.explain.palette import LINES
from avarc_cli.loaded import LoadedModel
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.scoring import conformal
from avarc_cli.scoring.combining import RULES, combine
from avarc_cli.scoring.conformal import ScoreTable, tried_estimates
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.orders import ONE_RASTER, Orders
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import ImageScores, score_function
from avarc_cli.tokens import encode, read
from avarc_cli.zoo.local_files import ASSETS

MAX_ORDERS = 20
COUNTS = (1, 2, 4, 8, 16, 20)
WRITTEN = ("2:5,8:3,8:2@4,8:1@20", "4:4,8:3@2,8:2@8,8:1@20", "1~:4,8:3@2,8:2@8,8:1@20")
HOLD_OUT, AGREEMENT = 110, Fraction(199, 200)


def scored(
    model: LoadedModel, tokens_N1L: np.ndarray, orders: Orders, estimates: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over segments (N, classes, orders, segments), and estimates (N, classes, E)."""
    likelihood = model.likelihood
    request = ScoringRequest(
        candidates=np.arange(10),
        plan=parse_plan(
            "exhaustive", segments=len(likelihood.segment_ends), candidates=10, samples=1, orders=orders.count
        ),
        score=score_function("log-likelihood"),
        log_prior=np.zeros(10),
        tokens_per_batch=1 << 14,
        keep_segments=True,
        keep_estimates=estimates,
    )
    results: list[ImageScores] = []
    for start in range(0, len(tokens_N1L), 20):
        rows = np.arange(start, min(start + 20, len(tokens_N1L)))
        order_NOL = orders.of(rows, tokens_N1L.shape[-1], orders.count)
        results += score_group(likelihood, tokens_N1L[rows], request, order_NOL)
    sums = np.stack([r.segment_log_prob[:, :, 0] for r in results if r.segment_log_prob is not None])
    kept = [np.empty((10, 0)) if r.estimates is None else r.estimates for r in results]
    return sums, np.stack(kept)


def accuracies(log_p_NCO: np.ndarray, label_N: np.ndarray) -> dict[str, list[float]]:
    """Of each rule, for every number of orders: the mean over disjoint groups of that many."""
    found: dict[str, list[float]] = {}
    for rule in RULES:
        found[rule] = []
        for count in COUNTS:
            groups = [log_p_NCO[..., g : g + count] for g in range(0, MAX_ORDERS - count + 1, count)]
            hits = [(combine(rule, group).argmax(1) == label_N).mean() for group in groups]
            found[rule].append(float(np.mean(hits)))
    return found


def draw(by_rule: dict[str, list[float]], raster: float, path: Path) -> None:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (rule, values), color in zip(by_rule.items(), LINES, strict=False):
        axes.plot(COUNTS, [100 * v for v in values], marker="o", color=color, label=rule)
    axes.axhline(100 * raster, color="0.5", linestyle="--", label="raster order")
    axes.set(xscale="log", xlabel="random orders", ylabel="accuracy (%)")
    axes.set_xticks(COUNTS, [str(c) for c in COUNTS])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="digits-randar")
    parser.add_argument("--tokenizer")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    model = load_model(ModelSpec(arguments.model, arguments.tokenizer, device="cpu"))
    images, tokenizer = open_images([ASSETS / "digits" / "test"]), model.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        pixels = Preprocess(tokenizer.preprocess, tokenizer.image_size)
        cache = read(encode(images, tokenizer, pixels, Path(folder) / "t.h5").path)
        tokens, label_N = cache.tokens(range(len(cache))), cache.labels.astype(np.int64)
    ends = model.likelihood.segment_ends
    raster_NCOK, _ = scored(model, tokens, ONE_RASTER)
    sums_NCOK, estimates = scored(
        model, tokens, Orders(MAX_ORDERS, text=str(MAX_ORDERS)), tried_estimates(model.likelihood)
    )
    raster = float((raster_NCOK.sum((2, 3)).argmax(1) == label_N).mean())
    by_rule = accuracies(sums_NCOK.sum(-1), label_N)
    by_segments = dict(zip(tried_estimates(model.likelihood), np.moveaxis(estimates, -1, 0), strict=True))
    table = ScoreTable.of(sums_NCOK[:, :, :, None], np.zeros(10), ends, by_segments)
    order = np.random.default_rng(0).permutation(len(table))
    everyone, tuned_on, rest = np.arange(len(table)), np.sort(order[HOLD_OUT:]), np.sort(order[:HOLD_OUT])
    tuned = conformal.tune(table.rows(tuned_on), AGREEMENT, "fp32").plan
    plans: list[list[Cell]] = []
    for name, plan, chosen in [
        *((f"`{text}`", parse(text, len(ends)), everyone) for text in WRITTEN),
        (f"tuned on {len(tuned_on)} images, those", tuned, tuned_on),
        (f"the same, the other {len(rest)}", tuned, rest),
    ]:
        part = table.rows(chosen)
        simulated = conformal.simulate(plan, part)
        share = float(simulated.tokens_n.mean()) / part.exhaustive_tokens
        same, right = simulated.winner_n == part.along([part.end])[0].argmax(1), simulated.winner_n == label_N[chosen]
        plans.append([name, share, float(same.mean()), float(right.mean())])
    say(f"tuned: {tuned}")
    show(*tables_of(by_rule, raster, plans), as_json=arguments.json, tuned=str(tuned))
    draw(by_rule, raster, arguments.out)


def tables_of(by_rule: dict[str, list[float]], raster: float, plans: list[list[Cell]]) -> tuple[Table, Table]:
    """Accuracy by number of orders, and what plans save."""
    counts: list[list[Cell]] = [["raster", raster, *[None] * (len(by_rule) - 1)]]
    counts += [list(cells) for cells in zip(COUNTS, *by_rule.values(), strict=True)]
    accuracy = Table([("orders", ""), *((f"`{rule}`", ".2%") for rule in by_rule)], counts, "Accuracy")
    columns = [("plan", ""), ("tokens", ".1%"), ("agreement with all orders", ".1%"), ("accuracy", ".2%")]
    return accuracy, Table(columns, plans, f"Tokens as a share of scoring {MAX_ORDERS} orders")


def parse(text: str, segments: int) -> Plan:
    return parse_plan(text, segments=segments, candidates=10, samples=1, orders=MAX_ORDERS, can_estimate=True)


if __name__ == "__main__":
    main()
