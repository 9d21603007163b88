"""The confusion matrix of a page: readable for ten classes and for a thousand, and small, because it is sparse."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from avarc_cli.names import to_line
from avarc_cli.words import counted

MATRIX = 20  # classes of the matrix that is there without JavaScript
PAIRS = 100  # confusions in the list
CELLS = 100_000  # counts inside of the page, from which JavaScript draws the matrix of any classes

Pairs = Counter[tuple[str, str]]


def confusion(pairs: Pairs) -> dict[str, object]:
    """What report.html shows of them.

    Args:
        pairs: number of images by (label, prediction).
    """
    wrong = Counter({pair: n for pair, n in pairs.items() if pair[0] != pair[1]})
    classes = sorted({name for pair in pairs for name in pair}, key=natural)
    totals: Counter[str] = Counter()
    for (label, _), images in pairs.items():
        totals[label] += images
    shown, note = classes, ""
    if len(classes) > MATRIX:
        shown = _most_confused(wrong) or classes[:MATRIX]
        note = f"The {len(shown)} most confused of {len(classes):,} classes." if wrong else ""
    listed = wrong.most_common(PAIRS)
    return {
        "note": note,
        "shown": shown,
        "long": any(len(name) > 4 for name in shown),
        "rows": _rows(shown, pairs, totals),
        "pairs": [(a, b, f"{n:,}", f"{n / totals[a]:.1%}") for (a, b), n in listed],
        "pairs_caption": _caption(len(listed), len(wrong)),
        "data": _sparse(classes, shown, pairs, totals) if len(classes) > MATRIX else None,
    }


def natural(name: str) -> tuple[str | int, ...]:
    """A key that sorts numbers by their values, also inside of names, and before words."""
    parts = re.split(r"(\d{1,18})", name)  # texts and numbers by turns
    return tuple(int(part) if i % 2 else part.casefold() for i, part in enumerate(parts))


def _most_confused(wrong: Pairs) -> list[str]:
    involved: dict[str, None] = {}
    for pair, _ in wrong.most_common():
        involved |= dict.fromkeys(pair)
        if len(involved) >= MATRIX:
            break
    return sorted(list(involved)[:MATRIX], key=natural)


def _caption(listed: int, all_pairs: int) -> str:
    if listed == all_pairs:
        return "The most frequent confusions"
    return f"The {listed} most frequent confusions of {counted(all_pairs, 'pair')}; all follow from predictions.jsonl"


def _rows(shown: Sequence[str], pairs: Pairs, totals: Mapping[str, int]) -> list[tuple[str, list[dict[str, object]]]]:
    rows = []
    for label in shown:
        cells = []
        for column in shown:
            images = pairs.get((label, column), 0)
            shade = f"{10 + 45 * images / max(totals.get(label, 0), 1):.0f}"  # more, and the number is hard to read
            kind = "hit" if label == column else "miss"
            cells.append({"column": column, "images": images, "kind": kind, "shade": shade})
        rows.append((label, cells))
    return rows


def _sparse(classes: Sequence[str], shown: Sequence[str], pairs: Pairs, totals: Mapping[str, int]) -> dict[str, object]:
    """For matrix.js: names, images of each class, and the counts that are not 0, the CELLS largest at most."""
    at = {name: position for position, name in enumerate(classes)}
    kept = sorted((at[label], at[said], images) for (label, said), images in pairs.most_common(CELLS))
    return {
        "names": [to_line(name) for name in classes],
        "totals": [totals[name] for name in classes],
        "cells": [number for cell in kept for number in cell],
        "confused": [at[name] for name in shown],
    }
