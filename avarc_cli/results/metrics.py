"""Metrics of a run, from its prediction records: accuracy with its confidence interval, likelihood, cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from avarc_cli.scoring.calibration import CalibrationError

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


class Totals:
    """Sums over predictions, which are added one after another: nothing here grows with their number."""

    def __init__(self) -> None:
        self._count, self._not_candidates, self._near_ties = 0, 0, 0
        self._tokens, self._bits = 0, 0.0
        self._ranks: Counter[int] = Counter()
        self._by_class: dict[str, _OfClass] = {}
        self._calibration = CalibrationError()
        self._settled: Counter[str] = Counter()

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a line of predictions.jsonl."""
        self._count += 1
        self._near_ties += record["near_tie"]
        self._tokens += record["tokens_scored"]
        self._bits += record["bits_per_token"]
        if "decided_in" in record:  # of a cascade of two precisions
            exact = record["exact_tokens"]
            self._settled += Counter(cascade=1, images=exact > 0, checked=record["survivors_checked"], tokens=exact)
        rank = record["label_rank"]
        if rank is None:
            self._not_candidates += record["label"] is not None
            return
        self._ranks[rank] += 1
        self._calibration.add(record["posterior"], right=rank == 0)
        first = _OfClass(record["label"], record["label_name"])
        of_class = self._by_class.setdefault(record["label_id"], first)
        of_class.label = min(of_class.label, record["label"])  # several classes may count as one
        of_class.images += 1
        of_class.right += rank == 0

    def metrics(self, *, seconds: float, candidates: int) -> dict[str, Any]:
        """metrics.json.

        Args:
            seconds: time spent scoring, over all sessions of the run.
            candidates: their number N; top-k is reported for k < N.
        """
        count, labelled = self._count, self._ranks.total()
        metrics: dict[str, Any] = {
            "images": count,
            "labelled": labelled,
            "label_not_a_candidate": self._not_candidates,
            "near_ties": self._near_ties,
            "tokens_scored_per_image": self._tokens / count if count else None,
            "bits_per_token": self._bits / count if count else None,
            "seconds_per_image": seconds / count if count else None,
        }
        if self._settled["cascade"]:
            metrics["cascade"] = {
                "decided_in_exact": self._settled["images"],
                "survivors_checked": self._settled["checked"],
                "exact_tokens_per_image": self._settled["tokens"] / count,
            }
        if not labelled:
            return metrics
        right = self._ranks[0]
        low, high = wilson(right, labelled)
        among = {k: sum(number for rank, number in self._ranks.items() if rank < k) for k in TOP}
        return metrics | {
            "accuracy": right / labelled,
            "accuracy_95": [low, high],
            "correct": right,
            "top_k": {str(k): among[k] / labelled for k in TOP if k == 1 or k < candidates},
            "per_class": {
                label_id: {"name": of.name, "images": of.images, "accuracy": of.right / of.images}
                for label_id, of in sorted(self._by_class.items(), key=lambda item: item[1].label)
            },
            "expected_calibration_error": self._calibration.value(),
        }


@dataclass
class _OfClass:
    """The labelled images of a class."""

    label: int
    """Its id."""
    name: str
    images: int = 0
    right: int = 0


def compute(records: Iterable[Mapping[str, Any]], *, seconds: float, candidates: int) -> dict[str, Any]:
    """metrics.json of these lines of predictions.jsonl; arguments as `Totals.metrics`."""
    totals = Totals()
    for record in records:
        totals.add(record)
    return totals.metrics(seconds=seconds, candidates=candidates)
