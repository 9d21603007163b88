"""How rounding errors of a low precision are distributed: the digits model on its test images, against fp32.

Run `python tests/benchmarks/cascade_noise.py [IMAGES] [PRECISION,...] [--json]`. For every pair of classes of an
image, the error is that of the difference of their log-likelihoods up to each segment.

Shapes: G images, N classes, K segments, P pairs of classes.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from figure_tables import Cell, Table, say, show, wants_json

from avarc_cli.classifier import Classifier
from avarc_cli.data.datasets import open_images
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.options import Options
from avarc_cli.scoring.engine import score_group
from avarc_cli.tokens.cache import read
from avarc_cli.zoo.local_files import ASSETS


def log_likelihoods(precision: str, images: int) -> npt.NDArray[np.float64]:
    """log p of the tokens up to each segment under every class, in nats, (G, N, K)."""
    classifier = Classifier(load_model(ModelSpec("digits", precision=precision)), Options())
    with tempfile.TemporaryDirectory() as folder:
        digits = open_images([ASSETS / "digits" / "test"]).first(images)
        cache = read(classifier.encode(digits, Path(folder) / "tokens.h5", workers=0).path)
        request = classifier.request(cache.header, keep_segments=True)
        tokens_GSL = cache.tokens(np.arange(len(cache)))
        scores = score_group(classifier.model.likelihood, tokens_GSL, request)
    sums_GNK = np.stack([s.segment_log_prob[:, 0, 0] for s in scores if s.segment_log_prob is not None])
    up_to_GNK: npt.NDArray[np.float64] = sums_GNK.cumsum(-1)
    return up_to_GNK


def main(images: int, precisions: str, *, as_json: bool) -> None:
    rows: list[list[Cell]] = []
    exact_GNK = log_likelihoods("fp32", images)
    pairs = np.array(list(itertools.combinations(range(exact_GNK.shape[1]), 2))).T
    for precision in precisions.split(","):
        error_GNK = log_likelihoods(precision, images) - exact_GNK
        error_GPK = error_GNK[:, pairs[0]] - error_GNK[:, pairs[1]]
        each_XK = error_GPK.reshape(-1, error_GPK.shape[-1])
        noise_K = np.sqrt((each_XK**2).mean(0))
        kurtosis_K = (each_XK**4).mean(0) / noise_K**4
        largest_K = np.abs(each_XK).max(0) / noise_K
        for k, numbers in enumerate(zip(noise_K, kurtosis_K, largest_K, strict=True)):
            rows.append([precision, k + 1, *map(float, numbers)])
        say(f"{precision}: {len(each_XK):,} errors")
    columns = [("precision", ""), ("after segment", ""), ("noise of a difference, nats", ".2g")]
    columns += [("kurtosis (normal: 3)", ".1f"), ("largest error, in units of the noise", ".1f")]
    show(Table(columns, rows), as_json=as_json, errors=len(each_XK))


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    arguments = dict(enumerate(sys.argv[1:]))
    main(int(arguments.get(0, "358")), arguments.get(1, "bf16,int16,int8"), as_json=as_json)
