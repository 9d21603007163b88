"""Choosing a fixed number of images per class, always the same ones."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def first_per_class(labels: np.ndarray, names: Sequence[str], per_class: int, *, by_style: bool) -> np.ndarray:
    """The first `per_class` images of each class; unlabeled images are left out.

    Args:
        labels: (N,) class indices, -1 if unlabeled.
        names: (N,) file names; they define the order.
        by_style: for ImageNet-R, where files are named `<style>_<number>.jpg`, take one image of each style in turn,
            ordered by number within a style: the sampling of arXiv:2510.12060.
    Returns: row indices (n,), int64, increasing.
    """
    chosen = []
    for rows in _rows_by_class(labels):
        ordered = _alternate_styles(rows, names) if by_style else sorted(rows, key=names.__getitem__)
        chosen += ordered[:per_class]
    return np.sort(np.array(chosen, dtype=np.int64))


def _rows_by_class(labels: np.ndarray) -> list[list[int]]:
    order = np.argsort(labels, kind="stable")
    labelled = order[np.searchsorted(labels[order], 0) :]  # -1 sorts first
    edges = np.flatnonzero(np.diff(labels[labelled])) + 1
    return [part.tolist() for part in np.split(labelled, edges) if len(part)]


def _alternate_styles(rows: Sequence[int], names: Sequence[str]) -> list[int]:
    """The rows of one class: the first image of each style, then the second of each, and so on."""
    by_style: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
    for row in rows:
        stem = os.path.splitext(os.path.basename(names[row]))[0]
        style, _, number = stem.rpartition("_")
        by_style[style].append((int(number) if number.isdecimal() else 0, names[row], row))
    ranked = [
        (rank, style, row) for style, images in by_style.items() for rank, (_, _, row) in enumerate(sorted(images))
    ]
    return [row for _, _, row in sorted(ranked)]
