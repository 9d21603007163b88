"""One pass over a run's predictions: counts for its page, and the images that the model finds hardest."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from avarc_cli.results.read_run import SavedRun


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An image's prediction as pages show it."""

    path: str
    truth: str
    """Display name of the label, "" when there is none."""

    said: str
    """Display name of the prediction; the label's where that counts as correct (several classes may be one label)."""

    right: bool | None
    """None where no label is a candidate."""

    posterior: float
    """Probability of the prediction."""

    label_posterior: float
    """Probability of the label; 0 where it was not saved, since only the best classes are; without one, `posterior`."""

    margin: float | None
    tokens_scored: int

    @property
    def result(self) -> str:
        """In one word."""
        return {None: "not counted" if self.truth else "unlabelled", True: "right", False: "wrong"}[self.right]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What a page says about all images."""

    images: int
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of images by (label, prediction), of those whose label is a candidate."""

    confidence: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    hardest: list[Outcome]
    """Least probable label first."""


def tally(run: SavedRun, keep: int) -> Tally:
    """Count a run's predictions, and keep this many images."""
    counts = Tally(images=len(run.records), hardest=[])

    def counted() -> Iterator[Outcome]:
        for outcome in outcomes(run):
            if outcome.right is not None:
                counts.pairs[outcome.truth, outcome.said] += 1
                counts.confidence.append(outcome.posterior)
                counts.right.append(outcome.right)
            yield outcome

    # Of images whose label is beyond the classes that were saved, the surest mistakes come first.
    counts.hardest.extend(heapq.nsmallest(keep, counted(), key=lambda each: (each.label_posterior, -each.posterior)))
    return counts


def outcomes(run: SavedRun) -> Iterator[Outcome]:
    """Each image of the run. Where two classes share a name, the id is added."""
    count = Counter(run.protocol.get("candidate_names", ()))

    def display(name: str, own_id: object) -> str:
        return f"{name} ({own_id})" if count[name] > 1 else name

    for r in run.records:
        right = None if r["label_rank"] is None else r["label_rank"] == 0
        truth = display(str(r["label_name"] or r["label_id"] or ""), r["label_id"])
        said = truth if right else display(str(r["prediction_name"]), r["prediction_id"])
        yield Outcome(
            path=r["path"],
            truth=truth,
            said=said,
            right=right,
            posterior=r["posterior"],
            label_posterior=_label_posterior(r),
            margin=r["margin"],
            tokens_scored=r["tokens_scored"],
        )


def _label_posterior(record: dict[str, Any]) -> float:
    rank, best = record["label_rank"] or 0, record["best"]
    return float(best[rank]["posterior"]) if rank < len(best) else 0.0
