"""The classes under which images are most likely, found without scoring every image under every class.

Shapes: N images, K classes, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.progress import Progress, no_progress
from avarc_cli.scoring.exhaustive import log_likelihoods

IMAGES = (2, 8, 32)  # that the classes which are left are compared on, in each round
SHARE = 4  # one class in this many is left after a round
LEAST = 8  # classes that are left after a round, and as many as are asked for


def closest_classes(
    model: LikelihoodModel,
    tokens_NL: Tensor,
    class_ids_K: Sequence[int],
    count: int,
    *,
    device: torch.device,
    progress: Progress = no_progress,
) -> list[int]:
    """The classes with the largest mean log p over the images (the first 32), best first.

    All classes are scored on two images, the best quarter of them also on six more, the best quarter of these on the
    other 24: successive halving (Karnin, Koren, Somekh, ICML 2013), which takes 16 % of the pairs if there are 1,000
    classes. The images are of one class, so those that a class is compared on first say much about the others; that
    none of the best is dropped is not guaranteed.

    Args:
        count: how many; all if there are fewer.
        progress: called with (pairs of image and class scored, pairs in all).
    Raises: AvarcError if the model returns numbers that are not finite.
    """
    alive_K = np.asarray(class_ids_K)
    rounds = _rounds(len(tokens_NL), len(alive_K), count)
    total = sum((stop - start) * classes for start, stop, classes in rounds)
    sum_K, done = np.zeros(len(alive_K)), 0
    for start, stop, classes in rounds:
        best = np.argsort(-sum_K, kind="stable")[:classes]
        alive_K, sum_K = alive_K[best], sum_K[best]
        pairs = _in_pairs(progress, done, classes, total)
        scores_NK = log_likelihoods(model, tokens_NL[start:stop], alive_K.tolist(), device=device, progress=pairs)
        sum_K = sum_K + scores_NK.sum(0)
        done += scores_NK.size
    best = np.argsort(-sum_K, kind="stable")[:count]
    return [int(class_id) for class_id in alive_K[best]]


def _in_pairs(progress: Progress, done: int, classes: int, total: int) -> Progress:
    """Reports images of one round as pairs of all rounds."""

    def report(images: int, _total: int | None = None, _note: str = "", /) -> None:
        progress(done + images * classes, total)

    return report


def _rounds(images: int, classes: int, count: int) -> list[tuple[int, int, int]]:
    """(first image, end of the images, classes that are left) of each round."""
    ends = [min(images, end) for end in IMAGES]
    left = [classes]
    for _ in ends[1:]:
        left.append(min(left[-1], max(-(-left[-1] // SHARE), count, LEAST)))
    starts = [0, *ends[:-1]]
    return [round_ for round_ in zip(starts, ends, left, strict=True) if round_[1] > round_[0]]
