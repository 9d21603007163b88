"""Deletion test of the maps: hiding the cells that speak most for the prediction must hurt it more than any others.

python tests/benchmarks/deletion.py --out docs/explain-deletion.png

Every tenth held-out digit of the included model; the map of the prediction against its strongest rival, paper weights.
A cell is hidden by filling its 2 x 2 pixels with the image's mean; then the image is encoded and scored again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from figure_tables import Cell, Table, show
from matplotlib.figure import Figure

from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.explain.maps import Weighting, combine
from avarc_cli.explain.palette import LINES
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.scoring.exhaustive import token_log_probs
from avarc_cli.zoo.local_files import ASSETS

HIDDEN = (0, 2, 4, 8, 12, 16, 24)
ORDERS = {"most for the prediction": -1, "random": 0, "least, or against it": 1}


class Digits:
    """The included model, and every `step`th of its test images."""

    def __init__(self, step: int) -> None:
        self.model = load_model(ModelSpec("digits", device="cpu"))
        images = open_images([ASSETS / "digits" / "test"])
        preprocess = Preprocess(self.model.tokenizer.preprocess, self.model.tokenizer.image_size)
        self.pixels = np.stack([images.load(i, preprocess) for i in range(0, len(images), step)])

    def log_prob(self, pixels_NHW3: np.ndarray) -> np.ndarray:
        """log p of every token under the ten classes, (N, 10, L)."""
        x = torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            tokens = self.model.tokenizer.quantize(self.model.tokenizer.encode(x))
        return token_log_probs(self.model.likelihood, tokens, range(10), 8192)

    def hide(self, pixels_HW3: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """The image with these cells of the finest scale filled with its mean."""
        hidden, side = pixels_HW3.copy(), self.model.tokenizer.layout.sides[-1]
        pixels = len(hidden) // side
        for row, column in zip(*divmod(cells, side), strict=True):
            block = np.s_[row * pixels : (row + 1) * pixels, column * pixels : (column + 1) * pixels]
            hidden[block] = pixels_HW3.mean().round()
        return hidden


def deletion(digits: Digits, hidden: tuple[int, ...] = HIDDEN, seed: int = 0) -> dict[str, np.ndarray]:
    """By order: (len(hidden), 2), mean lead of the prediction over its rival in nats, and share still predicted."""
    log_prob = digits.log_prob(digits.pixels)
    ranked, n = log_prob.sum(-1).argsort(axis=1), np.arange(len(log_prob))
    best, rival = ranked[:, -1], ranked[:, -2]
    contrast_NL = log_prob[n, best].astype(np.float64) - log_prob[n, rival]
    rng, curves = np.random.default_rng(seed), {}
    for name, sign in ORDERS.items():
        order = [
            np.argsort(sign * combine(m, digits.model.tokenizer.layout, Weighting()).ravel(), kind="stable")
            if sign
            else rng.permutation(digits.model.tokenizer.layout.sides[-1] ** 2)
            for m in contrast_NL
        ]
        points = []
        for count in hidden:
            images = np.stack([digits.hide(p, o[:count]) for p, o in zip(digits.pixels, order, strict=True)])
            scores = digits.log_prob(images).sum(-1)
            points.append((np.mean(scores[n, best] - scores[n, rival]), np.mean(scores.argmax(1) == best)))
        curves[name] = np.array(points)
    return curves


def draw(curves: dict[str, np.ndarray], images: int, out: Path) -> None:
    figure = Figure(figsize=(8.4, 3.2), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    for (name, curve), color in zip(curves.items(), (LINES[1], "#777777", LINES[0]), strict=True):
        left.plot(HIDDEN, curve[:, 0], color=color, marker="o", markersize=4, label=name)
        right.plot(HIDDEN, 100 * curve[:, 1], color=color, marker="o", markersize=4)
    left.axhline(0, color="#c4cad1", linewidth=1)
    left.set_ylabel("lead over the rival, nats")
    right.set_ylabel("still predicted, %")
    left.legend(frameon=False, fontsize=8, title="cells hidden", title_fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("cells hidden, of 64")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{images} held-out digits", fontsize=10)
    figure.savefig(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/explain-deletion.png"))
    parser.add_argument("--step", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    digits = Digits(asked.step)
    curves = deletion(digits)
    draw(curves, len(digits.pixels), asked.out)
    columns, rows = [("cells hidden of 64", "")], [list[Cell]([count]) for count in HIDDEN]
    for name, curve in curves.items():
        columns += [(f"{name}: lead, nats", ".1f"), ("still predicted", ".0%")]
        for cells, (lead, share) in zip(rows, curve, strict=True):
            cells += [float(lead), float(share)]
    show(Table(columns, rows), as_json=asked.json, images=len(digits.pixels))
