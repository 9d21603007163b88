"""One image's result in the forms that a run writes: a line, a JSON file, an npz."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avarc_cli.data.label_mapping import LabelMapping
from avarc_cli.data.labels import UNKNOWN, LabelSpace
from avarc_cli.errors import AvarcError
from avarc_cli.names import to_json
from avarc_cli.results import places
from avarc_cli.scoring.scores import ImageScores, StageScores, near_tie
from avarc_cli.work.chunks import CORRUPT
from avarc_cli.zip_check import open_npz

BEST = 5  # classes listed with each prediction
SEGMENTS = "segments/{}.npz"  # of image {}: `segments`
RANKING = "ranking/{}.npz"  # of image {}: `ranking`


@dataclass(frozen=True)
class CandidateLabels:
    """What the candidates are called, and which of them count as correct."""

    classes: LabelSpace
    """The model's classes."""

    candidates: np.ndarray
    """Class ids of the candidates, (N,) int64."""

    targets: LabelMapping | None = None
    """How the dataset's classes map to the model's; None where each class counts as itself."""

    def entry(self, position: int) -> dict[str, Any]:
        """A candidate as it stands in records."""
        class_id = int(self.candidates[position])
        return {"class": class_id, "id": self.classes.ids[class_id], "name": self.classes.names[class_id]}

    def right(self, label: int) -> np.ndarray:
        """Which candidates count as correct for a label, (N,) bool: in ObjectNet several classes may be one object."""
        counts_as = self.candidates if self.targets is None else self.targets.counts_as[self.candidates]
        right: np.ndarray = counts_as == label
        return right

    def label(self, label: int) -> tuple[str, str]:
        """Id and name of a label: the dataset's own where its classes differ from the model's."""
        own = (self.classes.ids[label], self.classes.names[label])
        return own if self.targets is None else self.targets.display_names.get(label, own)


@dataclass(frozen=True)
class RunImage:
    """The image that a result is about."""

    index: int
    """Of the image in the run."""

    path: str
    """Name of the image below the run's source."""

    label: int
    """Its class id in the model (`LabelMapping.to_model`), or UNKNOWN."""


def line(
    image: RunImage, scores: ImageScores, labels: CandidateLabels, *, num_tokens: int, precision: str
) -> dict[str, Any]:
    """A line of predictions.jsonl. It contains no times, so that a rerun gives the same bytes."""
    winner = int(scores.order[0])
    known = image.label != UNKNOWN
    where: np.ndarray = np.nonzero(labels.right(image.label)[scores.order])[0] if known else np.empty(0)
    label_id, label_name = labels.label(image.label) if known else (None, None)
    predicted = labels.entry(winner)
    return {
        "index": image.index,
        "path": image.path,
        "prediction": predicted["class"],
        "prediction_id": predicted["id"],
        "prediction_name": predicted["name"],
        "label": image.label if known else None,
        "label_id": label_id,
        "label_name": label_name,
        "label_rank": int(where[0]) if len(where) else None,
        "posterior": float(scores.posterior[winner]),
        "score": float(scores.scores[winner]),
        "margin": float(scores.margin) if math.isfinite(scores.margin) else None,
        "near_tie": near_tie(scores.margin, num_tokens, precision),
        "bits_per_token": -float(_log_likelihood(scores, winner)) / num_tokens / math.log(2),
        "tokens_scored": scores.tokens_scored,
        **_settled(scores),
        "best": best(scores, labels, BEST),
    }


def _settled(scores: ImageScores) -> dict[str, Any]:
    """How a cascade of two precisions decided; nothing without one."""
    settled = scores.settled
    if settled is None:
        return {}
    return {
        "decided_in": settled.precision,
        "survivors_checked": settled.survivors,
        "exact_tokens": settled.tokens,
    }


def best(scores: ImageScores, labels: CandidateLabels, count: int) -> list[dict[str, Any]]:
    """The best classes, with their posterior probabilities, their scores, and what each score covers.

    Those that survived more stages come first. Only scores that cover the same can be compared.
    """
    return [
        {
            **labels.entry(position),
            "posterior": float(scores.posterior[position]),
            "score": float(scores.scores[position]),
            **_covered(scores, position),
        }
        for position in scores.order[:count].tolist()
    ]


def _covered(scores: ImageScores, position: int) -> dict[str, Any]:
    """The tokens that a candidate's score is the log-likelihood of, and the samples and orders it is the mean of."""
    last = scores.stages[scores.reached[position] - 1]
    covered = {"tokens": last.tokens, "samples": last.samples, "orders": last.orders}
    return covered | _if_so(last)


def _if_so(stage: StageScores) -> dict[str, Any]:
    """What is recorded of some stages only: that its scores are estimates, and a precision that is not the run's."""
    estimated: dict[str, Any] = {"estimated": True} if stage.estimated else {}
    return estimated | ({} if stage.precision is None else {"precision": stage.precision})


def detail(image: RunImage, scores: ImageScores, labels: CandidateLabels, protocol: Mapping[str, Any]) -> bytes:
    """json/{index}.json: of each stage the candidates, their scores, the survivors, and the time it took."""
    ids = labels.candidates
    stages = [
        {
            "segments": stage.segments,
            **_if_so(stage),
            "candidates": ids[stage.candidates].tolist(),
            "log_likelihood": stage.log_likelihood.tolist(),
            "score": stage.scores.tolist(),
            "survivors": ids[stage.survivors].tolist(),
            "seconds": stage.seconds,
        }
        for stage in scores.stages
    ]
    first = int(scores.order[0])
    winner = labels.entry(first)
    data = {
        "index": image.index,
        "path": image.path,
        "label": image.label if image.label != UNKNOWN else None,
        "prediction": winner["class"],
        "prediction_name": winner["name"],
        "correct": None if image.label == UNKNOWN else bool(labels.right(image.label)[first]),
        "stages": stages,
        "configuration": {name: value for name, value in protocol.items() if name != places.KEY},
    }
    return to_json(data).encode()


def likelihood(image: RunImage, scores: ImageScores, labels: CandidateLabels, *, kind: str = "") -> bytes:
    """likelihood/{index}.npz: token log-probabilities, float32 (n, L), with their n candidates and the label.

    The candidates are those of the image's last stage, if it scored all tokens, and none otherwise: all candidates of a
    plan with one stage. With O orders, `log_likelihood` is the mean over them, and `log_likelihood_orders` (O, n, L)
    has each. Both are at the tokens' own positions.

    Args:
        kind: of a model of hidden tokens, what the numbers are (`scoring.estimator.describe`): the entry `likelihood`.
    """
    each_NOL, last = scores.token_log_prob, scores.stages[-1]
    assert each_NOL is not None, "the run was not asked for token log-probabilities"
    scored = last.candidates if last.tokens == each_NOL.shape[-1] and not last.estimated else last.candidates[:0]
    each_nOL = each_NOL[scored, : last.orders]
    several: dict[str, Any] = {"log_likelihood_orders": each_nOL.swapaxes(0, 1)} if last.orders > 1 else {}
    mean_nL = each_nOL.mean(1, dtype=np.float64).astype(np.float32) if last.orders > 1 else each_nOL[:, 0]
    named: dict[str, Any] = {"likelihood": np.str_(kind)} if kind else {}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        log_likelihood=mean_nL,
        **several,
        candidates=labels.candidates[scored].astype(np.int64),
        gt_label=np.int64(image.label),
        gt_labels=labels.candidates[labels.right(image.label)].astype(np.int64),
        sequence_length=np.int64(each_NOL.shape[-1]),
        **named,
    )
    return buffer.getvalue()


def segments(scores: ImageScores) -> bytes:
    """segments/{index}.npz: what a plan is tuned on, float64.

    `sums` of log p over each segment of each order and sample (N, O, S, K); `estimates` of log p (N, E).
    """
    assert scores.segment_log_prob is not None, "the run was not asked for sums of segments"
    none = np.empty((len(scores.segment_log_prob), 0))
    buffer = io.BytesIO()
    np.savez(buffer, sums=scores.segment_log_prob, estimates=none if scores.estimates is None else scores.estimates)
    return buffer.getvalue()


def ranking(scores: ImageScores) -> bytes:
    """ranking/{index}.npz: what `explain` chooses images and classes by.

    `order` (N,) int64: positions of the candidates, best first; `posterior` (N,) float64, in this order.
    """
    buffer = io.BytesIO()
    np.savez(buffer, order=scores.order, posterior=scores.posterior[scores.order])
    return buffer.getvalue()


def read_ranking(file: Path, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Order and posterior of `ranking`. Raises: AvarcError when the file is not of this many candidates."""
    try:
        with open_npz(file) as arrays:
            order_N, posterior_N = arrays["order"], arrays["posterior"]
        if not np.array_equal(np.sort(order_N), np.arange(candidates)) or posterior_N.shape != order_N.shape:
            raise ValueError(f"it does not rank {candidates} candidates")
    except CORRUPT as error:
        raise AvarcError(f"'{file}' is corrupt", str(error), f"delete the folder '{file.parent.parent}'") from None
    return order_N, posterior_N


def _log_likelihood(scores: ImageScores, position: int) -> float:
    """log p(x | y) of a candidate of the last stage, whatever its score adds or subtracts."""
    last = scores.stages[-1]
    return float(last.log_likelihood[last.candidates.tolist().index(position)])
