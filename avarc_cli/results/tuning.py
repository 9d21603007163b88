"""Tuning a plan: exhaustive scores of calibration images, the margins they allow, a temperature, and what it gains.

Shapes: n images, N candidates, S samples, K segments.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from avarc_cli.results import records
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.metrics import wilson
from avarc_cli.results.run import Progress, Run, classify
from avarc_cli.scoring import calibration
from avarc_cli.scoring.conformal import ScoreTable, SimulatedResult, Tuning, lower_bound, needed, simulate
from avarc_cli.scoring.plan import Plan
from avarc_cli.scoring.scores import FloatN, posterior

LEAST_FOR_TEMPERATURE = 20  # labelled images
Int = npt.NDArray[np.int64]


def exhaustive_scores(run: Run, folder: RunFolder, progress: Progress) -> ScoreTable:
    """Score every image of the run on everything; what `folder` holds already is not scored again.

    Args:
        run: with an exhaustive plan and `save_segments`.
    Raises: as results.run.classify.
    """
    classify(run, folder, progress=progress)
    files = [folder.path / records.SEGMENTS.format(index) for index in range(len(run.cache))]
    sums_nNSK = np.stack([np.load(io.BytesIO(file.read_bytes())) for file in files])
    prior_KN = np.stack([run.request.prior(tokens) for tokens in run.model.segment_ends])
    return ScoreTable.of(sums_nNSK, prior_KN, run.model.segment_ends)


def right_candidates(run: Run) -> Int:
    """Position of each image's right candidate (n,); -1 where it has no label, or not just one candidate is right."""
    right_nN = np.stack([run.candidate_labels.right(int(label)) for label in run.labels])
    return np.where(right_nN.sum(1) == 1, right_nN.argmax(1), records.UNKNOWN)


def temperature(plan: Plan, table: ScoreTable, label_n: Int) -> float | None:
    """The posterior's temperature under the plan; None where too few images are labelled."""
    known = np.nonzero(label_n >= 0)[0]
    if len(known) < LEAST_FOR_TEMPERATURE:
        return None
    return calibration.fit_temperature(simulate(plan, table.rows(known)).by_stage_JnN, label_n[known])


def measure(plan: Plan, table: ScoreTable, label_n: Int, fitted: float | None) -> dict[str, Any]:
    """What the plan does on these images: agreement, cost, and calibration of the posterior before and after."""
    outcome = simulate(plan, table)
    exhaustive_n = table.along([(len(table.segment_ends), table.samples)])[0].argmax(1)
    same = int((outcome.winner_n == exhaustive_n).sum())
    tokens = float(outcome.tokens_n.mean())
    measured: dict[str, Any] = {
        "images": len(table),
        "agreement": same / len(table),
        "agreement_95": list(wilson(same, len(table))),
        "tokens_per_image": tokens,
        "share_of_exhaustive": tokens / table.exhaustive_tokens,
    }
    known = np.nonzero(label_n >= 0)[0]
    if len(known):
        measured["accuracy"] = float((outcome.winner_n == label_n)[known].mean())
        measured["accuracy_exhaustive"] = float((exhaustive_n == label_n)[known].mean())
        measured["before"] = _calibration(outcome, label_n, known, 1.0)
        measured["after"] = _calibration(outcome, label_n, known, fitted or 1.0)
    return measured


def guarantee(tuning: Tuning) -> dict[str, Any]:
    """The promise, its conditions and its numbers, in words too."""
    promised, bound = float(tuning.agreement), lower_bound(tuning.level_images, tuning.rank)
    least = needed(Fraction(tuning.agreement))
    return {
        "agreement": promised,
        "level_images": tuning.level_images,
        "rank": tuning.rank,
        "needed": least,
        "width_images": tuning.scale_images,
        "bound_95": bound,
        "statement": (
            f"On a new image of the same distribution the plan predicts what exhaustive scoring predicts with "
            f"probability at least {promised:.6g} (split conformal prediction: the level is the {tuning.rank}th "
            f"smallest of {tuning.level_images} images' nonconformities; this promise needs at least {least}). "
            f"For the very images used here, it is at least {bound:.4f} with 95 % confidence."
        ),
    }


def _calibration(outcome: SimulatedResult, label_n: Int, known: Int, degrees: float) -> dict[str, float]:
    by_stage = outcome.by_stage_JnN[:, known]
    winner, label = outcome.winner_n[known], label_n[known]
    confidence: FloatN = posterior(by_stage, degrees)[np.arange(len(known)), winner]
    return {
        "temperature": degrees,
        "expected_calibration_error": calibration.expected_calibration_error(confidence, winner == label),
        "negative_log_likelihood": calibration.negative_log_likelihood(by_stage, label, degrees),
    }
