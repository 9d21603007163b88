"""Margins with a promise: how far behind the leader a candidate may be dropped, by split conformal prediction.

An image's *gap* at a stage is how far the class that exhaustive scoring chooses lies behind the leader there. The
adaptive run chooses the same class if no gap exceeds its stage's margin: nobody who leads at the end is dropped, and
a leader among survivors is never further ahead than the leader among all. So

    nonconformity of an image  R = max over stages of gap / width,      margins = level x widths,

where the widths are fitted to one part of the calibration images, and the level is the ceil((n + 1) agreement)-th
smallest R of the n images of the other part. A new image of the same distribution then has R <= level with
probability >= agreement, whatever the distribution and whatever the widths.
Source: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; Lei et al. 2018, arXiv:1604.04173.

Shapes: n images, N candidates, S samples, K segments, J stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from avarc_cli.errors import UsageError
from avarc_cli.scoring.plan import Plan, Stage
from avarc_cli.scoring.scores import FloatN, IntN, rounding_noise

Point = tuple[int, int]  # (segments, samples) that a stage scores

LEAST_FOR_WIDTHS = 20  # images; below, all stages have the same width
EXPONENTS = (0.0, -1.0, -0.5, 0.5, 1.0)  # 0 first: it wins ties
TRIED_LEVELS = (0.8, 0.9, 0.95, 0.98, 1.0)  # quantiles of R: a single one depends on single images
WORTH_A_STAGE = 0.01  # of the tokens; a stage that saves less is not worth its forward pass
DECIMALS = 3  # of a margin, in nats; rounded up, which keeps the promise


def needed(agreement: Fraction) -> int:
    """The fewest images that can promise this agreement: the smallest n with ceil((n + 1) agreement) <= n."""
    return math.ceil(agreement / (1 - agreement))


def rank_of_level(agreement: Fraction, images: int) -> int:
    """Which of the sorted R is the level, from 1. Raises UsageError when there are too few images."""
    if not 0 < agreement < 1:
        raise UsageError(f"cannot promise an agreement of {float(agreement)}", "it is a share between 0 and 1")
    if images < needed(agreement):
        raise UsageError(
            f"{images} images are too few to promise {float(agreement):.4%}".replace("00%", "%"),
            f"the bound needs at least {needed(agreement)} calibration images",
            "encode more images, or ask for less with --agreement",
        )
    return math.ceil((images + 1) * agreement)


def lower_bound(images: int, rank: int, confidence: float = 0.95) -> float:
    """What the agreement of one particular calibration is at least, with this confidence over its images.

    Given the calibration images, coverage is at least Beta(rank, images + 1 - rank) distributed (Vovk 2012,
    arXiv:1209.2673), and such a variable is below p as often as images coin tosses of bias p show >= rank heads.
    """
    heads = np.arange(rank, images + 1)
    log_choose = [math.lgamma(images + 1) - math.lgamma(h + 1) - math.lgamma(images - h + 1) for h in heads]
    low, high = 0.0, 1.0
    for _ in range(50):
        p = (low + high) / 2
        below = np.exp(log_choose + heads * math.log(p) + (images - heads) * math.log1p(-p)).sum()
        low, high = (p, high) if below < 1 - confidence else (low, p)
    return low


@dataclass(frozen=True)
class ScoreTable:
    """Exhaustive scores, prior included, of n images under N candidates at every point that a stage could end at."""

    at: dict[Point, FloatN]  # (n, N) each
    segment_ends: tuple[int, ...]
    samples: int

    @classmethod
    def of(cls, segment_log_prob_nNSK: FloatN, prior: FloatN, segment_ends: tuple[int, ...]) -> ScoreTable:
        """The table of these sums of log p over each segment of each sample.

        prior: what is added to the scores: (N,) nats, or (K, N) for scores up to each segment.
        """
        prior_KN = np.broadcast_to(prior, (len(segment_ends), segment_log_prob_nNSK.shape[1]))
        samples = segment_log_prob_nNSK.shape[2]
        at: dict[Point, FloatN] = {}
        for count in {1, samples}:
            mean_nNK = segment_log_prob_nNSK[:, :, :count].mean(2).cumsum(-1)
            at |= {(k + 1, count): mean_nNK[..., k] + prior_KN[k] for k in range(len(segment_ends))}
        return cls(at, segment_ends, samples)

    def __len__(self) -> int:
        return len(next(iter(self.at.values())))

    @property
    def candidates(self) -> int:
        """N."""
        return int(next(iter(self.at.values())).shape[1])

    @property
    def exhaustive_tokens(self) -> int:
        """Tokens that scoring one image on everything takes."""
        return self.candidates * self.samples * self.segment_ends[-1]

    def rows(self, rows_m: IntN) -> ScoreTable:
        """The table of these images only."""
        return ScoreTable({point: scores[rows_m] for point, scores in self.at.items()}, self.segment_ends, self.samples)

    def along(self, points: Sequence[Point]) -> FloatN:
        """(J, n, N): the scores at these points."""
        return np.stack([self.at[point] for point in points])

    def paths(self) -> list[tuple[Point, ...]]:
        """Ways from nothing to the full score: neighbours come last, or go along segment by segment."""
        segments = range(1, len(self.segment_ends) + 1)
        last: tuple[Point, ...] = tuple((k, 1) for k in segments)
        if self.samples == 1:
            return [last]
        return [(*last, (len(segments), self.samples)), tuple((k, self.samples) for k in segments)]


@dataclass(frozen=True)
class Shape:
    """Where candidates are dropped, and the ratios of the margins there; the last point decides.

    points: of J stages; width_J1: of all but the last, (J - 1,).
    """

    points: tuple[Point, ...]
    width_J1: FloatN

    def nonconformity(self, table: ScoreTable) -> FloatN:
        """R of each image (n,): the level at which its winner just survives."""
        if len(self.points) == 1:
            return np.zeros(len(table))
        worst_n: FloatN = (gaps(table.along(self.points)) / self.width_J1[:, None]).max(0)
        return worst_n

    def plan(self, level: float, candidates: int, noise_J1: FloatN | float = 0.0) -> Plan:
        """The plan with these margins, `noise_J1` nats wider than the level says."""
        wide_J1 = np.ceil((level * self.width_J1 + noise_J1) * 10**DECIMALS) / 10**DECIMALS
        stages = [
            Stage(segments, candidates, samples, float(margin))
            for (segments, samples), margin in zip(self.points, wide_J1, strict=False)
        ]
        segments, samples = self.points[-1]
        return Plan((*stages, Stage(segments, 1, samples)))

    def without(self, number: int) -> Shape:
        """The shape that does not drop anybody at stage `number`."""
        points = (*self.points[:number], *self.points[number + 1 :])
        return Shape(points, np.delete(self.width_J1, number))


@dataclass(frozen=True)
class Outcome:
    """What a plan does to the images of a table.

    winner_n: chosen candidates; tokens_n: tokens scored; goes_on_J: candidates an image that go on to the next stage,
    on average; by_stage_JnN: scores, nan for who took no part.
    """

    winner_n: IntN
    tokens_n: IntN
    goes_on_J: FloatN
    by_stage_JnN: FloatN


def simulate(plan: Plan, table: ScoreTable) -> Outcome:
    """What the engine would do, from scores that are known already."""
    by_stage_JnN = table.along([(stage.segments, stage.samples) for stage in plan.stages])
    alive_nN = np.ones((len(table), table.candidates), dtype=bool)
    undecided_n = np.ones(len(table), dtype=bool)
    tokens_n, goes_on = np.zeros(len(table), dtype=np.int64), []
    for stage, new, scores_nN in zip(plan.stages, plan.new_tokens(table.segment_ends), by_stage_JnN, strict=True):
        part_nN = alive_nN & undecided_n[:, None]
        scores_nN[~part_nN] = np.nan
        tokens_n += new * part_nN.sum(1)
        alive_nN = stage.survivors(alive_nN, scores_nN)
        undecided_n = alive_nN.sum(1) > 1
        goes_on.append(float(alive_nN[undecided_n].sum() / len(table)))
    return Outcome(alive_nN.argmax(1), tokens_n, np.array(goes_on), by_stage_JnN)


def gaps(scores_JnN: FloatN) -> FloatN:
    """How far the last stage's winner is behind the leader of each stage before it, (J - 1, n)."""
    winner_1n1 = scores_JnN[-1].argmax(-1)[None, :, None]
    gap_Jn: FloatN = scores_JnN.max(-1) - np.take_along_axis(scores_JnN, winner_1n1, -1)[..., 0]
    return gap_Jn[:-1]


def fit_shape(table: ScoreTable) -> Shape:
    """The cheapest of a small family: widths are powers of the spread of the evidence that is still to come.

    The power 0 gives all stages one margin in nats: right for a model whose odds are true, since the class that is d
    nats behind then wins with odds e**-d at any stage (Wald 1945, the sequential probability ratio test).
    """
    shapes = []
    for points in table.paths():
        spread_J1 = _spread_to_come(table.along(points))
        shapes += [Shape(points, spread_J1**exponent) for exponent in EXPONENTS]
    shape = min(shapes, key=lambda s: _mean_tokens(s, table))
    most = _mean_tokens(shape, table) * (1 + WORTH_A_STAGE)
    while len(shape.points) > 1:
        fewer = min((shape.without(j) for j in range(len(shape.points) - 1)), key=lambda s: _mean_tokens(s, table))
        if _mean_tokens(fewer, table) > most:
            break
        shape = fewer
    return shape


def even_shape(table: ScoreTable) -> Shape:
    """All margins equal, in nats: what takes no images to fit."""
    points = table.paths()[0]
    return Shape(points, np.ones(len(points) - 1))


@dataclass(frozen=True)
class Tuning:
    """A plan with its promise.

    agreement: promised; rank: of the level among the level_images; width_images: that the shape was fitted to.
    """

    plan: Plan
    agreement: Fraction
    rank: int
    level_images: int
    width_images: int


def tune(table: ScoreTable, agreement: Fraction, precision: str, *, seed: int = 0) -> Tuning:
    """The plan that promises `agreement` with exhaustive scoring on images like those of the table.

    Args:
        precision: of the scores; margins are widened by its rounding noise. seed: of the split in two parts.
    Raises: UsageError when there are too few images, or nothing to choose between.
    """
    if table.candidates < 2:
        raise UsageError("there is nothing to tune", "only one class is a candidate")
    rank_of_level(agreement, len(table))
    spare = min(len(table) // 4, len(table) - needed(agreement))
    for_width = spare if spare >= LEAST_FOR_WIDTHS else 0
    order = np.random.default_rng(seed).permutation(len(table))
    width_part, level_part = table.rows(order[:for_width]), table.rows(order[for_width:])
    shape = fit_shape(width_part) if for_width else even_shape(table)
    rank = rank_of_level(agreement, len(level_part))
    level = float(np.sort(shape.nonconformity(level_part))[rank - 1])
    noise_J1 = np.array([rounding_noise(table.segment_ends[segments - 1], precision) for segments, _ in shape.points])
    plan = shape.plan(level, table.candidates, noise_J1[:-1])
    return Tuning(expecting(plan, simulate(plan, table).goes_on_J), agreement, rank, len(level_part), for_width)


def expecting(plan: Plan, goes_on: Sequence[float] | npt.NDArray[np.float64]) -> Plan:
    """The plan with what it is expected to leave after each stage but the last."""
    stages = [
        Stage(s.segments, s.keep, s.samples, s.margin, float(left))
        for s, left in zip(plan.stages[:-1], goes_on, strict=False)
    ]
    return Plan((*stages, plan.stages[-1]))


def _mean_tokens(shape: Shape, table: ScoreTable) -> float:
    levels = np.quantile(shape.nonconformity(table), TRIED_LEVELS)
    plans = [shape.plan(float(level), table.candidates) for level in levels]
    return float(np.mean([simulate(plan, table).tokens_n.mean() for plan in plans]))


def _spread_to_come(scores_JnN: FloatN) -> FloatN:
    """Standard deviation of how much the winner's lead over another candidate will still grow, (J - 1,) nats."""
    winner_1n1 = scores_JnN[-1].argmax(-1)[None, :, None]
    lead_JnN = np.take_along_axis(scores_JnN, winner_1n1, -1) - scores_JnN
    spread_J1: FloatN = (lead_JnN[-1:] - lead_JnN[:-1]).std((1, 2))
    return spread_J1.clip(min=1e-6)
