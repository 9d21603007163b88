"""Metrics of a run, from its prediction records: accuracy with its confidence interval, likelihood, cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from avarc_cli.scoring.calibration import expected_calibration_error

Z95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval
TOP = (1, 3, 5)


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson, JASA 1927), valid at 100 % and for few images too."""
    if total == 0:
        return 0.0, 1.0
    p, z2 = right / total, Z95**2
    center = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return max(0.0, min(p, center - half)), min(1.0, max(p, center + half))  # p stays inside despite rounding


def compute(records: Sequence[dict[str, Any]], *, seconds: float, candidates: int) -> dict[str, Any]:
    """metrics.json.

    Args:
        records: lines of predictions.jsonl.
        seconds: time spent scoring, over all sessions of the run.
        candidates: their number N; top-k is reported for k < N.
    """
    labelled = [r for r in records if r["label_rank"] is not None]
    count = len(labelled)
    metrics: dict[str, Any] = {
        "images": len(records),
        "labelled": count,
        "label_not_a_candidate": sum(r["label"] is not None and r["label_rank"] is None for r in records),
        "near_ties": sum(r["near_tie"] for r in records),
        "tokens_scored_per_image": _mean([r["tokens_scored"] for r in records]),
        "bits_per_token": _mean([r["bits_per_token"] for r in records]),
        "seconds_per_image": seconds / len(records) if records else None,
    }
    if not labelled:
        return metrics
    ranks = [r["label_rank"] for r in labelled]
    right = sum(rank == 0 for rank in ranks)
    low, high = wilson(right, count)
    metrics |= {
        "accuracy": right / count,
        "accuracy_95": [low, high],
        "correct": right,
        "top_k": {str(k): sum(rank < k for rank in ranks) / count for k in TOP if k == 1 or k < candidates},
        "per_class": _per_class(labelled),
        "expected_calibration_error": expected_calibration_error(
            np.array([r["posterior"] for r in labelled]), np.array(ranks) == 0
        ),
    }
    return metrics


def _per_class(labelled: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | int | str]]:
    by_class: dict[str, list[bool]] = defaultdict(list)
    names: dict[str, str] = {}
    for record in sorted(labelled, key=lambda r: r["label"]):
        by_class[record["label_id"]].append(record["label_rank"] == 0)
        names[record["label_id"]] = record["label_name"]
    return {
        label: {"name": names[label], "images": len(hits), "accuracy": sum(hits) / len(hits)}
        for label, hits in by_class.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
