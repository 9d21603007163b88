"""What passes gain: accuracy of the estimators of a model of hidden tokens against the passes that they take.

python tests/benchmarks/masked.py --out docs/masked.png

Scores all 360 digits under all ten classes with digits-titok: along 8 random orders, each cut into 1 to 16 passes, and
by 64 draws of the order-agnostic bound. Each number is the mean over disjoint groups of as many orders or draws.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from figure_tables import Cell, Table, show
from matplotlib.figure import Figure

from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.explain.palette import LINES
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.orders import Orders
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function
from avarc_cli.tokens import encode, read
from avarc_cli.zoo.local_files import ASSETS

STEPS, ORDERS, DRAWS = (1, 2, 4, 8, 16), 8, 64
GROUPED = 4  # orders of the second line


def scored(model: LikelihoodModel, tokens_N1L: np.ndarray, orders: Orders) -> np.ndarray:
    """log p(x | y) of each image under each class in each order, (N, classes, orders)."""
    request = ScoringRequest(
        candidates=np.arange(10),
        plan=parse_plan("exhaustive", segments=len(model.segment_ends), candidates=10, samples=1, orders=orders.count),
        score=score_function("log-likelihood"),
        log_prior=np.zeros(10),
        tokens_per_batch=1 << 14,
        keep_segments=True,
    )
    sums = []
    for start in range(0, len(tokens_N1L), 20):
        rows = np.arange(start, min(start + 20, len(tokens_N1L)))
        order_NOL = orders.of(rows, tokens_N1L.shape[-1], orders.count)
        images = score_group(model, tokens_N1L[rows], request, order_NOL)
        sums += [image.segment_log_prob[:, :, 0].sum(-1) for image in images if image.segment_log_prob is not None]
    return np.stack(sums)


def accuracy(log_p_NCO: np.ndarray, label_N: np.ndarray, count: int) -> float:
    """Of the mean over `count` orders: the mean over disjoint groups of that many."""
    starts = range(0, log_p_NCO.shape[-1] - count + 1, count)
    groups = [log_p_NCO[..., start : start + count].mean(-1).argmax(1) for start in starts]
    return float(np.mean([(group == label_N).mean() for group in groups]))


def draw(lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], path: Path) -> None:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, (passes, values)), color in zip(lines.items(), LINES, strict=False):
        axes.plot(passes, [100 * value for value in values], marker="o", color=color, label=name)
    ticks = [2**k for k in range(7)]
    axes.set(xscale="log", xlabel="passes for each class", ylabel="accuracy (%)")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="digits-titok")
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
    one, several = [], []
    for steps in STEPS:
        log_p_NCO = scored(model.likelihood.with_steps(steps), tokens, Orders(ORDERS, text=str(ORDERS)))
        one.append(accuracy(log_p_NCO, label_N, 1))
        several.append(accuracy(log_p_NCO, label_N, GROUPED))
    draws_NCO = scored(model.likelihood.with_steps(1), tokens, Orders(DRAWS, text=str(DRAWS), bound=True))
    counts = [2**k for k in range(DRAWS.bit_length())]
    bound = [accuracy(draws_NCO, label_N, count) for count in counts]
    lines = {
        "one order": (STEPS, one),
        f"mean of {GROUPED} orders": ([GROUPED * steps for steps in STEPS], several),
        "order-agnostic bound": (counts, bound),
    }
    draw(lines, arguments.out)
    passes: list[list[Cell]] = [list(cells) for cells in zip(STEPS, one, several, strict=True)]
    draws: list[list[Cell]] = [list(cells) for cells in zip(counts, bound, strict=True)]
    columns = [("passes", ""), ("one order", ".2%"), (f"mean of {GROUPED} orders", ".2%")]
    of_bound = Table([("draws of the bound", ""), ("accuracy", ".2%")], draws, "By the order-agnostic bound")
    show(Table(columns, passes, "Along an order"), of_bound, as_json=arguments.json)


if __name__ == "__main__":
    main()
