"""Tune a plan: score calibration images exhaustively, then choose margins, a temperature, and measure what they gain.

Shapes: n images, N candidates, O orders, S samples, K segments, J stages.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avarc_cli.data.labels import UNKNOWN
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.progress import Notify, Progress, no_message, no_progress
from avarc_cli.results import records
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.metrics import wilson
from avarc_cli.results.tuned import TunedPlan
from avarc_cli.scoring import calibration, conformal
from avarc_cli.scoring.conformal import ScoreTable, SimulatedResult, Tuning
from avarc_cli.scoring.first_cut import FirstCut
from avarc_cli.scoring.plan import Plan
from avarc_cli.scoring.scores import FloatN, IntN, posterior
from avarc_cli.settings import check_one_precision
from avarc_cli.storage import beside
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.work.chunks import CORRUPT
from avarc_cli.work.workers import HERE, Workers
from avarc_cli.zip_check import open_npz

LEAST_FOR_TEMPERATURE = 20  # labelled images
if TYPE_CHECKING:
    from avarc_cli.cache_classifier import CacheClassifier
    from avarc_cli.results.run import Run

CALIBRATING, EVALUATING = "calibrating", "evaluating"  # run folders beside the plan, until it is written


def tune(
    classifier: CacheClassifier,
    cache: TokenCache,
    *,
    agreement: float = 0.995,
    samples: int = 1,
    hold_out: int = 0,
    evaluate: TokenCache | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    workers: Workers = HERE,
    on_start: Callable[[Run], None] = lambda run: None,
    progress: Progress = no_progress,
    say: Notify = no_message,
) -> TunedPlan:
    """Find the margins behind the leader at which candidates may be dropped without changing predictions.

    Source: docs/plans.md and `scoring.conformal`.

    Args:
        classifier: model, candidates, priors and batch size; its plan and its score do not matter.
        cache: calibration images: like those to be classified, and not among those the model was trained on.
        agreement: guaranteed probability that a new image gets the prediction of exhaustive scoring, in (0, 1).
        samples: average the scores over this many samples of each image.
        hold_out: leave out this many images, chosen at random, and measure the plan on them.
        evaluate: other images to measure the plan on; excludes `hold_out`.
        seed: of the random choices.
        out: file to write the plan to (FILE.json), replacing it. Scores are kept beside it until the plan is written,
            so that an interrupted call can be repeated. None writes nothing.
        workers: who scores the images.
        on_start: called with each run before it is scored.
        progress: called with (images scored, images in all), and before with a note of what is drawn for a first cut.
        say: called with a message when a batch had to be made smaller.
    Returns: the plan. `hold_out` and `evaluate` set its `held_out`.
    Raises: UsageError when there are too few images for the guarantee, only one candidate, or too few samples; as
        `CacheClassifier.run` and `results.run.classify`.
    """
    check_request(len(cache), agreement=agreement, hold_out=hold_out, evaluate=evaluate is not None)
    check_one_precision(classifier.model.precision, "tuning; the plan holds for a cascade too")
    import torch

    from avarc_cli.scoring.drawn import fit_first_cut

    classifier = classifier.exhaustive(samples)
    device = torch.device(classifier.model.device)

    def drawing(drawn: int, of: int | None = None, _: str = "", /) -> None:
        progress(0, None, f"{drawn:,} of {of:,} images drawn for a first cut")

    model, chosen = classifier.model.likelihood, classifier.candidates
    first_cut = fit_first_cut(model, chosen, seed=seed, device=device, progress=drawing)
    scorer = _Scorer(classifier, workers, on_start, progress, say, first_cut)
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return _tune(scorer, cache, evaluate, agreement, hold_out, seed, Path(folder) / "plan.json")
    plan = _tune(scorer, cache, evaluate, agreement, hold_out, seed, Path(out))
    plan.write(Path(out))
    for purpose in (CALIBRATING, EVALUATING):
        RunFolder(_run_folder(Path(out), purpose)).remove()
    return plan


def is_unfinished(out: Path) -> bool:
    """Whether an interrupted call of `tune` left scores beside `out`, which the same call continues."""
    return any(RunFolder(_run_folder(out, purpose)).exists for purpose in (CALIBRATING, EVALUATING))


def check_request(images: int, *, agreement: float, hold_out: int, evaluate: bool) -> None:
    """Raises UsageError where `tune` would, as far as the numbers alone show."""
    if hold_out and evaluate:
        raise UsageError("--hold-out and --evaluate exclude each other", "both choose the images to measure on")
    if not 0 < agreement < 1:
        raise UsageError(f"cannot guarantee an agreement of {agreement}", "it is a number between 0 and 1")
    conformal.rank_of_level(_exact(agreement), images - hold_out)


@dataclass(frozen=True)
class _Scores:
    """Exhaustive scores of images, and their labels."""

    table: ScoreTable
    """With those of the first cut, if there is one."""
    label_n: IntN  # position of each image's right candidate; -1 where it has no label, or more than one is right

    def rows(self, rows: IntN) -> _Scores:
        return _Scores(self.table.rows(rows), self.label_n[rows])


@dataclass
class _Scorer:
    """Scores caches exhaustively, and reports the progress over all of them."""

    classifier: CacheClassifier
    workers: Workers
    on_start: Callable[[Run], None]
    progress: Progress
    say: Notify
    first_cut: FirstCut | None
    total: int = 0  # images of all caches
    done: int = 0  # images of the caches before the present one

    def score(self, cache: TokenCache, folder: RunFolder) -> _Scores:
        """Score every image on everything; images that `folder` holds already are not scored again."""
        request = self.classifier.request(
            cache.header, keep_segments=True, tokens_per_batch=folder.recorded("tokens_per_batch")
        )
        run = self.classifier.run(cache, request)
        self.on_start(run)
        from avarc_cli.results.run import classify  # imports torch

        def report(done: int, numbers: Mapping[str, float]) -> None:
            self.progress(self.done + done, self.total)

        classify(run, folder, workers=self.workers, progress=report, say=self.say)
        self.done += len(cache)
        table = _read_table(run, folder)
        if self.first_cut is not None:
            table = table.with_first_cut(_first_cut_scores(run, self.first_cut), request.prior(table.segment_ends[-1]))
        return _Scores(table, _right_candidates(run))


def _tune(
    scorer: _Scorer,
    cache: TokenCache,
    evaluate: TokenCache | None,
    agreement: float,
    hold_out: int,
    seed: int,
    out: Path,
) -> TunedPlan:
    classifier, samples = scorer.classifier, scorer.classifier.plan().samples
    scorer.total = len(cache) + (len(evaluate) if evaluate else 0)
    scores = scorer.score(cache, RunFolder(_run_folder(out, CALIBRATING)))
    order = np.random.default_rng(seed).permutation(len(scores.table))
    kept = np.sort(order[hold_out:])
    chosen = scores.rows(kept)
    tuning = conformal.tune(chosen.table, _exact(agreement), classifier.model.precision, seed=seed)
    temperature = _temperature(tuning.plan, chosen)
    others = None
    if hold_out:
        others = scores.rows(np.sort(order[:hold_out]))
    elif evaluate:
        others = scorer.score(evaluate, RunFolder(_run_folder(out, EVALUATING)))
    header = cache.header
    about = {"source": header.source, "images_sha256": header.images_sha256, "seed": seed, "rows": kept.tolist()}
    return TunedPlan(
        plan=tuning.plan,
        temperature=temperature,
        made_for=classifier.made_for() | classifier.tokens_made_for(cache, samples),
        guarantee=_guarantee(tuning),
        calibration=about | _measure(tuning.plan, chosen, temperature),
        held_out=None if others is None else _measure(tuning.plan, others, temperature),
        first_cut=scorer.first_cut if tuning.plan.first_cut else None,
    )


def _run_folder(out: Path, purpose: str) -> Path:
    return beside(out, f".{purpose}")


def _exact(agreement: float) -> Fraction:
    """The decimal fraction as it was written: 0.995 is 199/200."""
    return Fraction(str(agreement))


def _first_cut_scores(run: Run, first_cut: FirstCut) -> FloatN:
    from avarc_cli.scoring.drawn import summaries  # imports torch

    tokens_nL = run.cache.tokens(range(len(run.cache)))[:, 0]
    return first_cut.scores(summaries(run.model, tokens_nL))


def _read_table(run: Run, folder: RunFolder) -> ScoreTable:
    """The scores that a finished run kept."""
    files = [folder.path / records.SEGMENTS.format(index) for index in range(len(run.cache))]
    request, plan, ends = run.request, run.request.plan, run.model.segment_ends
    shapes = {
        "sums": (len(request.candidates), plan.orders, plan.samples, len(ends)),
        "estimates": (len(request.candidates), len(request.keep_estimates)),
    }
    sums, estimates = zip(*(_read_segments(file, shapes) for file in files), strict=True)
    prior_KN = np.stack([request.prior(tokens) for tokens in ends])
    by_segments = dict(zip(request.keep_estimates, np.moveaxis(np.stack(estimates), -1, 0), strict=True))
    return ScoreTable.of(np.stack(sums), prior_KN, ends, by_segments)


def _read_segments(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    """The arrays of `records.segments`. Raises: AvarcError when they are not of these shapes."""
    try:
        with open_npz(file) as arrays:
            found = {name: arrays[name] for name in shapes}
        for name, array in found.items():
            if (array.shape, array.dtype) != (shapes[name], np.dtype(np.float64)):
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, expected is {shapes[name]}")
    except CORRUPT as error:
        raise AvarcError(f"'{file}' is corrupt", str(error), f"delete the folder '{file.parent.parent}'") from None
    return tuple(found.values())


def _right_candidates(run: Run) -> IntN:
    right_nN = np.stack([run.candidate_labels.right(int(label)) for label in run.labels])
    return np.where(right_nN.sum(1) == 1, right_nN.argmax(1), UNKNOWN)


def _temperature(plan: Plan, scores: _Scores) -> float | None:
    """The posterior's temperature under the plan; None where too few images are labelled."""
    known = np.nonzero(scores.label_n >= 0)[0]
    if len(known) < LEAST_FOR_TEMPERATURE:
        return None
    outcome = conformal.simulate(plan, scores.table.rows(known))
    return calibration.fit_temperature(outcome.by_stage_JnN, scores.label_n[known])


def _measure(plan: Plan, scores: _Scores, temperature: float | None) -> dict[str, Any]:
    """What the plan does on these images: agreement, cost, and calibration of the posterior before and after."""
    table, label_n = scores.table, scores.label_n
    outcome = conformal.simulate(plan, table)
    exhaustive_n = table.along([table.end])[0].argmax(1)
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
        measured["after"] = _calibration(outcome, label_n, known, temperature or 1.0)
    return measured


def _calibration(outcome: SimulatedResult, label_n: IntN, known: IntN, temperature: float) -> dict[str, float]:
    by_stage_JnN = outcome.by_stage_JnN[:, known]
    winner_n, label_n = outcome.winner_n[known], label_n[known]
    confidence_n: FloatN = posterior(by_stage_JnN, temperature)[np.arange(len(known)), winner_n]
    return {
        "temperature": temperature,
        "expected_calibration_error": calibration.expected_calibration_error(confidence_n, winner_n == label_n),
        "negative_log_likelihood": calibration.negative_log_likelihood(by_stage_JnN, label_n, temperature),
    }


def _guarantee(tuning: Tuning) -> dict[str, Any]:
    """The guarantee with its conditions, in numbers and in words."""
    agreement, bound = float(tuning.agreement), conformal.lower_bound(tuning.level_images, tuning.rank)
    least = conformal.needed(tuning.agreement)
    return {
        "agreement": agreement,
        "level_images": tuning.level_images,
        "rank": tuning.rank,
        "needed": least,
        "width_images": tuning.scale_images,
        "bound_95": bound,
        "statement": (
            f"On a new image of the same distribution the plan predicts what exhaustive scoring predicts with "
            f"probability at least {agreement:.6g} (split conformal prediction: the level is the {tuning.rank}th "
            f"smallest of {tuning.level_images} images' nonconformities; this guarantee needs at least {least}). "
            f"For the very images used here, it is at least {bound:.4f} with 95 % confidence."
        ),
    }
