"""One image's result in the forms that a run writes: a line, a JSON file, an npz."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from avarc_cli.data.label_mapping import Targets
from avarc_cli.data.labels import UNKNOWN as UNKNOWN
from avarc_cli.data.labels import LabelSpace
from avarc_cli.scoring.scores import ImageScores, near_tie

BEST = 5  # classes listed with each prediction
SEGMENTS = "segments/{}.npy"  # of image {}, float64 (N, S, K)


@dataclass(frozen=True)
class Naming:
    """What the candidates are called, and which of them count as right.

    targets: how the dataset's classes stand to the model's; None where each counts as itself.
    """

    classes: LabelSpace
    candidates: np.ndarray  # class ids (N,)
    targets: Targets | None = None

    def of(self, position: int) -> dict[str, Any]:
        class_id = int(self.candidates[position])
        return {"class": class_id, "id": self.classes.ids[class_id], "name": self.classes.names[class_id]}

    def right(self, label: int) -> np.ndarray:
        """Which candidates count as right for a label, (N,) bool: in ObjectNet several classes may be one object."""
        counts_as = self.candidates if self.targets is None else self.targets.counts_as[self.candidates]
        right: np.ndarray = counts_as == label
        return right

    def label(self, label: int) -> tuple[str, str]:
        """Id and name of a label: the dataset's own, where its classes are others than the model's."""
        own = (self.classes.ids[label], self.classes.names[label])
        return own if self.targets is None else self.targets.called.get(label, own)


@dataclass(frozen=True)
class Image:
    """Which image a result is about: its row in the run, its path, its class id (Targets.of) or UNKNOWN."""

    index: int
    path: str
    label: int


def line(image: Image, scores: ImageScores, naming: Naming, *, num_tokens: int, precision: str) -> dict[str, Any]:
    """A line of predictions.jsonl. It holds no times, so that a rerun gives the same bytes."""
    winner = int(scores.order[0])
    known = image.label != UNKNOWN
    where: np.ndarray = np.nonzero(naming.right(image.label)[scores.order])[0] if known else np.empty(0)
    label_id, label_name = naming.label(image.label) if known else (None, None)
    predicted = naming.of(winner)
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
        "best": best(scores, naming, BEST),
    }


def best(scores: ImageScores, naming: Naming, count: int) -> list[dict[str, Any]]:
    """The best classes with their posterior probabilities and scores."""
    return [
        naming.of(int(c)) | {"posterior": float(scores.posterior[c]), "score": float(scores.scores[c])}
        for c in scores.order[:count]
    ]


def detail(image: Image, scores: ImageScores, naming: Naming, protocol: Mapping[str, Any]) -> bytes:
    """json/{index}.json: stage by stage who took part, with what score, who survived, and how long it took."""
    ids = naming.candidates
    stages = [
        {
            "segments": stage.segments,
            "candidates": ids[stage.candidates].tolist(),
            "log_likelihood": stage.log_likelihood.tolist(),
            "score": stage.scores.tolist(),
            "survivors": ids[stage.survivors].tolist(),
            "seconds": stage.seconds,
        }
        for stage in scores.stages
    ]
    first = int(scores.order[0])
    winner = naming.of(first)
    data = {
        "index": image.index,
        "path": image.path,
        "label": image.label if image.label != UNKNOWN else None,
        "prediction": winner["class"],
        "prediction_name": winner["name"],
        "correct": None if image.label == UNKNOWN else bool(naming.right(image.label)[first]),
        "stages": stages,
        "configuration": dict(protocol),
    }
    return json.dumps(data).encode()


def likelihood(image: Image, scores: ImageScores, naming: Naming) -> bytes:
    """likelihood/{index}.npz: token log-probabilities, float32 (N, L), and what they are of."""
    assert scores.token_log_prob is not None, "the run was not asked for token log-probabilities"
    buffer = io.BytesIO()
    np.savez(
        buffer,
        log_likelihood=scores.token_log_prob,
        candidates=naming.candidates.astype(np.int64),
        gt_label=np.int64(image.label),
        gt_labels=naming.candidates[naming.right(image.label)].astype(np.int64),
        sequence_length=np.int64(scores.token_log_prob.shape[1]),
    )
    return buffer.getvalue()


def segments(scores: ImageScores) -> bytes:
    """segments/{index}.npy: sums of log p over each segment of each sample, float64 (N, S, K)."""
    assert scores.segment_log_prob is not None, "the run was not asked for sums of segments"
    buffer = io.BytesIO()
    np.save(buffer, scores.segment_log_prob)
    return buffer.getvalue()


def _log_likelihood(scores: ImageScores, position: int) -> float:
    """log p(x | y) behind a score: a difference to log p(x), where the score function takes one, is undone."""
    return float(scores.scores[position]) + (0.0 if math.isnan(scores.unconditional) else scores.unconditional)
