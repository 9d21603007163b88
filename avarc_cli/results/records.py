"""One image's result in the forms that a run writes: a line, a JSON file, an npz."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from avarc_cli.data.labels import LabelSpace
from avarc_cli.scoring.scores import ImageScores, near_tie

UNKNOWN = -1
BEST = 5  # classes listed with each prediction


@dataclass(frozen=True)
class Naming:
    """What the candidates are called."""

    classes: LabelSpace
    candidates: np.ndarray  # class ids (N,)

    def of(self, position: int) -> dict[str, Any]:
        class_id = int(self.candidates[position])
        return {"class": class_id, "id": self.classes.ids[class_id], "name": self.classes.names[class_id]}


@dataclass(frozen=True)
class Image:
    """Which image a result is about: its row in the run, its path, its class id or UNKNOWN."""

    index: int
    path: str
    label: int


def line(image: Image, scores: ImageScores, naming: Naming, *, num_tokens: int, precision: str) -> dict[str, Any]:
    """A line of predictions.jsonl. It holds no times, so that a rerun gives the same bytes."""
    winner = int(scores.order[0])
    known = image.label != UNKNOWN
    where: np.ndarray = np.nonzero(naming.candidates[scores.order] == image.label)[0]
    predicted = naming.of(winner)
    return {
        "index": image.index,
        "path": image.path,
        "prediction": predicted["class"],
        "prediction_id": predicted["id"],
        "prediction_name": predicted["name"],
        "label": image.label if known else None,
        "label_id": naming.classes.ids[image.label] if known else None,
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
            "candidates": ids[stage.candidates].tolist(),
            "log_likelihood": stage.log_likelihood.tolist(),
            "score": stage.scores.tolist(),
            "survivors": ids[stage.survivors].tolist(),
            "seconds": stage.seconds,
        }
        for stage in scores.stages
    ]
    winner = naming.of(int(scores.order[0]))
    data = {
        "index": image.index,
        "path": image.path,
        "label": image.label if image.label != UNKNOWN else None,
        "prediction": winner["class"],
        "prediction_name": winner["name"],
        "correct": None if image.label == UNKNOWN else winner["class"] == image.label,
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
        sequence_length=np.int64(scores.token_log_prob.shape[1]),
    )
    return buffer.getvalue()


def _log_likelihood(scores: ImageScores, position: int) -> float:
    """log p(x | y) behind a score: a difference to log p(x), where the score function takes one, is undone."""
    return float(scores.scores[position]) + (0.0 if math.isnan(scores.unconditional) else scores.unconditional)
