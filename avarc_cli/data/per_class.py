"""Which images of a set are taken when not all are: so many of each class, the same ones every time."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def first_of_each(labels: np.ndarray, names: Sequence[str], per_class: int, *, by_style: bool) -> np.ndarray:
    """Rows (n,) int64, increasing, of the first so many images of each class; unlabelled ones are none's.

    First is by name. by_style: in ImageNet-R, where names are `<style>_<number>.jpg`, one of each style in turn, by
    number within a style: the sampling of arXiv:2510.12060.
    """
    kept = []
    for rows in _by_class(labels):
        ordered = _styles_in_turn(rows, names) if by_style else sorted(rows, key=names.__getitem__)
        kept += ordered[:per_class]
    return np.sort(np.array(kept, dtype=np.int64))


def _by_class(labels: np.ndarray) -> list[list[int]]:
    order = np.argsort(labels, kind="stable")
    known = order[np.searchsorted(labels[order], 0) :]  # -1 sorts first
    edges = np.flatnonzero(np.diff(labels[known])) + 1
    return [part.tolist() for part in np.split(known, edges) if len(part)]


def _styles_in_turn(rows: Sequence[int], names: Sequence[str]) -> list[int]:
    by_style: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
    for row in rows:
        stem = os.path.splitext(os.path.basename(names[row]))[0]
        style, _, number = stem.rpartition("_")
        by_style[style].append((int(number) if number.isdecimal() else 0, names[row], row))
    in_turn = [
        (turn, style, row) for style, images in by_style.items() for turn, (_, _, row) in enumerate(sorted(images))
    ]
    return [row for _, _, row in sorted(in_turn)]
