"""What each precision costs on the included digits model: error of the log-likelihood, predictions that change.

fp8 is computed on the CPU with the numbers that a GPU would multiply; tf32 needs a CUDA device.

usage: python tests/benchmarks/precision_error.py [IMAGES] [--json]
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from figure_tables import Cell, Table, say, show, wants_json
from torch import Tensor

from avarc_cli.classifier import load_classifier
from avarc_cli.data.datasets import open_images
from avarc_cli.layers.precision import PRECISIONS
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.tokens import read
from avarc_cli.zoo.local_files import ASSETS


def log_likelihoods(name: str, tokens: Tensor) -> tuple[Tensor, float]:
    """log p of every token under every class (N, classes, L), float64, and seconds of CPU time."""
    var = load_classifier("digits").model.likelihood
    assert isinstance(var, VARLikelihood)
    var.var.set_precision(PRECISIONS[name])
    classes = torch.arange(var.num_classes)
    started = time.process_time()
    rows = []
    for chunk in tokens.split(8):
        pairs = torch.cartesian_prod(torch.arange(len(chunk)), classes)
        state = var.begin(chunk, pairs[:, 0], pairs[:, 1])
        rows.append(var.extend(state, len(var.segment_ends), keep_cache_segments=0).view(len(chunk), len(classes), -1))
    return torch.cat(rows).double(), time.process_time() - started


def main(images: int, *, as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.h5"
        held_out = open_images([ASSETS / "digits" / "test"]).select(None, images // 10, None)
        load_classifier("digits").encode(held_out, path)
        cache = read(path)
        tokens = torch.from_numpy(cache.tokens(range(len(cache)))[:, 0])
    exact, seconds = log_likelihoods("fp32", tokens)
    best = exact.sum(-1).argmax(1)
    say(f"{len(tokens)} images, {exact.shape[-1]} tokens; fp32 {seconds:.1f} s of CPU time")
    rows: list[list[Cell]] = []
    for name in ("bf16", "fp16", "int16", "int8", "fp8"):
        found, _ = log_likelihoods(name, tokens)
        total, token = (found - exact).sum(-1), found - exact
        changed = int((found.sum(-1).argmax(1) != best).sum())
        errors = [float(error) for error in (total.abs().mean(), total.abs().max(), total.mean(), token.std())]
        rows.append([name, *errors, f"{changed} of {len(tokens)}"])
    error = "error of the log-likelihood, nats: "
    columns = [("precision", ""), (f"{error}mean", ".3f"), ("largest", ".2f"), ("bias", "+.3f")]
    columns += [("noise of a token, nats", ".1e"), ("predictions changed", "")]
    show(Table(columns, rows), as_json=as_json)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 360, as_json=as_json)
