"""Margins with a guarantee: how far behind the best a candidate may be dropped, by split conformal prediction.

The *gap* of an image at a stage is how far the class that exhaustive scoring chooses is behind the best class there.
The adaptive run chooses the same class if no gap exceeds the margin of its stage: that class is then never dropped, and
the best of the survivors is never ahead of the best of all candidates. So

    nonconformity of an image  R = max over stages of gap / scale,      margins = level * scales,

where the scales are fitted to one part of the calibration images, and the level is the ceil((n + 1) agreement)-th
smallest R of the n images of the other part. A new image of the same distribution then has R <= level with
probability >= agreement, whatever the distribution and the scales.
Source: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; Lei et al. 2018, arXiv:1604.04173.

Random orders are a part of their image: each image has its own, drawn in the same way, so that images with their orders
are exchangeable if the images are.

Shapes: n images, N candidates, O orders, S samples, K segments, J stages; J1 = J - 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from avarc_cli.errors import UsageError
from avarc_cli.scoring.plan import Plan, Stage
from avarc_cli.scoring.scores import FloatN, IntN, rounding_noise
from avarc_cli.words import are, counted

if TYPE_CHECKING:
    from avarc_cli.likelihood import LikelihoodModel


class Point(NamedTuple):
    """What a stage scores."""

    segments: int
    samples: int
    orders: int
    estimated: bool = False
    cut_weight: float = 0.0

    @classmethod
    def of(cls, stage: Stage) -> Point:
        """The point that a stage ends at."""
        return cls(stage.segments, stage.samples, stage.orders, stage.estimated, stage.cut_weight)

    def stage(self, keep: int, margin: float = math.inf) -> Stage:
        """A stage that ends here."""
        return Stage(
            self.segments,
            keep,
            self.samples,
            margin,
            orders=self.orders,
            estimated=self.estimated,
            cut_weight=self.cut_weight,
        )


FIRST_CUT = Point(0, 1, 1, estimated=True)

# How schedules are chosen. About twenty variants were compared on the 360 digits (docs/plans.md); the guarantee depends
# on none of these numbers.
LEAST_FOR_SCALES = 20  # images; with fewer, all stages have the same margin
EXPONENTS = (0.0, -1.0, -0.5, 0.5, 1.0)  # 0 first: it wins ties
CUT_WEIGHTS = (0.2, 0.4, 0.8)  # of the first cut's scores for the part of the tokens that is to come
CUT_FACTORS = (0.25, 0.5, 1.0, 2.0)  # of the first cut's margin, in nats
TRIED_LEVELS = (0.8, 0.9, 0.95, 0.98, 1.0)  # quantiles of R; several, because one depends on a few images
WORTH_A_STAGE = 0.01  # fraction of the tokens; a stage that saves less is left out. Not measured
DECIMALS = 3  # of a margin, in nats; rounded up, which keeps the guarantee


def needed(agreement: Fraction) -> int:
    """The fewest images that can guarantee this agreement: the smallest n with ceil((n + 1) agreement) <= n."""
    return math.ceil(agreement / (1 - agreement))


def rank_of_level(agreement: Fraction, images: int) -> int:
    """The rank of the level among the sorted R, from 1. Raises UsageError if there are too few images."""
    if not 0 < agreement < 1:
        raise UsageError(f"cannot guarantee an agreement of {float(agreement)}", "it must be between 0 and 1")
    if images < needed(agreement):
        raise UsageError(
            f"{counted(images, 'image')} {are(images)} too few to guarantee {float(agreement):.4%}".replace("00%", "%"),
            f"the bound needs at least {counted(needed(agreement), 'calibration image')}",
            "encode more images, or ask for less with --agreement",
        )
    return math.ceil((images + 1) * agreement)


def lower_bound(images: int, rank: int, confidence: float = 0.95) -> float:
    """A lower bound on the agreement after one particular calibration, with this confidence over its images.

    Given the calibration images, coverage is at least Beta(rank, images + 1 - rank) distributed (Vovk 2012,
    arXiv:1209.2673). Such a variable is below p with the probability that `images` coin tosses of bias p show at least
    `rank` heads.
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
    """Exhaustive scores, prior included, of n images under N candidates at every point where a stage could end."""

    at: dict[Point, FloatN]
    """(n, N) each."""
    segment_ends: tuple[int, ...]
    """Of the model."""
    samples: int
    """S."""
    orders: int = 1
    """O."""
    cut_nN: FloatN | None = None
    """Scores of a first cut, without priors; with priors they are at FIRST_CUT."""

    @classmethod
    def of(
        cls,
        segment_log_prob_nNOSK: FloatN,
        prior: FloatN,
        segment_ends: tuple[int, ...],
        estimates: Mapping[int, FloatN] = MappingProxyType({}),
    ) -> ScoreTable:
        """The table of these sums of log p over each segment of each order and sample.

        Args:
            prior: nats added to the scores: (N,), or (K, N) for scores up to each segment.
            estimates: of whole images from this many segments of the first order, (n, N) each.
        """
        _, candidates, orders, samples, segments = segment_log_prob_nNOSK.shape
        prior_KN = np.broadcast_to(prior, (segments, candidates))
        at: dict[Point, FloatN] = {}
        for s, o in itertools.product({1, samples}, doubling(orders)):
            mean_nNK = segment_log_prob_nNOSK[:, :, :o, :s].mean((2, 3)).cumsum(-1)
            at |= {Point(k + 1, s, o): mean_nNK[..., k] + prior_KN[k] for k in range(segments)}
        at |= {Point(k, 1, 1, estimated=True): estimate_nN + prior_KN[-1] for k, estimate_nN in estimates.items()}
        return cls(at, segment_ends, samples, orders)

    def with_first_cut(self, scores_nN: FloatN, prior_N: FloatN | float = 0.0) -> ScoreTable:
        """The table that also has these scores of a first cut, and the prior of whole images that is added to them."""
        return replace(self, at=self.at | {FIRST_CUT: scores_nN + prior_N}, cut_nN=scores_nN)

    def __len__(self) -> int:
        return len(next(iter(self.at.values())))

    @property
    def candidates(self) -> int:
        """N."""
        return int(next(iter(self.at.values())).shape[1])

    @property
    def exhaustive_tokens(self) -> int:
        """Tokens that exhaustive scoring of one image takes."""
        return self.candidates * self.samples * self.orders * self.segment_ends[-1]

    @property
    def end(self) -> Point:
        """The point of the full score."""
        return Point(len(self.segment_ends), self.samples, self.orders)

    def rows(self, rows_m: IntN) -> ScoreTable:
        """The table of these images only."""
        at = {point: scores[rows_m] for point, scores in self.at.items()}
        return replace(self, at=at, cut_nN=None if self.cut_nN is None else self.cut_nN[rows_m])

    def along(self, points: Sequence[Point]) -> FloatN:
        """(J, n, N): the scores at these points."""
        return np.stack([self._scores(point) for point in points])

    def _scores(self, point: Point) -> FloatN:
        scores_nN = self.at[point._replace(cut_weight=0.0)]
        if not point.cut_weight:
            return scores_nN
        assert self.cut_nN is not None, "a weight of the first cut, and there is none"
        return scores_nN + point.cut_weight * self.cut_nN

    def paths(self) -> list[tuple[Point, ...]]:
        """Sequences of points to the full score.

        A path goes along the segments of one or more orders at once, then to more orders. Other samples come after
        the image, or along with it. An estimate, if there is any, comes first.
        """
        segments, every = range(1, len(self.segment_ends) + 1), doubling(self.orders)
        paths: list[tuple[Point, ...]] = []
        for first in range(len(every)):
            along = [Point(k, 1, every[first]) for k in segments]
            more = [Point(len(segments), 1, count) for count in every[first + 1 :]]
            paths.append((*along, *more) if self.samples == 1 else (*along, *more, self.end))
        if self.samples > 1:
            paths.append(tuple(Point(k, self.samples, self.orders) for k in segments))
        estimates = [point for point in self.at if point.estimated and point != FIRST_CUT]
        paths += [(estimate, *path) for estimate in estimates for path in paths]
        return paths + [self._after_first_cut(path, w) for w in CUT_WEIGHTS for path in paths if FIRST_CUT in self.at]

    def _after_first_cut(self, path: tuple[Point, ...], weight: float) -> tuple[Point, ...]:
        """The path after a first cut, whose scores stand for the tokens that a stage has not scored."""
        to_come = [1 - self.segment_ends[point.segments - 1] / self.segment_ends[-1] for point in path]
        weights = [round(weight * part, DECIMALS) for part in to_come]
        return (FIRST_CUT, *(point._replace(cut_weight=w) for point, w in zip(path, weights, strict=True)))


def tried_estimates(model: LikelihoodModel) -> tuple[int, ...]:
    """From how many segments a tuned plan may estimate the others; none if the model has no estimate."""
    return tuple(doubling(len(model.segment_ends))[:-1]) if model.has_block_parallel else ()


def doubling(orders: int) -> list[int]:
    """Numbers of orders (or segments) that are tried: 1, 2, 4, ..., and all."""
    return sorted({*(2**i for i in range(orders.bit_length()) if 2**i < orders), orders})


@dataclass(frozen=True)
class MarginSchedule:
    """Where candidates are dropped, and the ratios of the margins there."""

    points: tuple[Point, ...]
    """Of J stages; the last decides."""
    scale_J1: FloatN
    """Of all stages but the last, (J - 1,)."""

    def nonconformity(self, table: ScoreTable) -> FloatN:
        """R of each image (n,): the smallest level at which its winner survives."""
        if len(self.points) == 1:
            return np.zeros(len(table))
        worst_n: FloatN = (gaps(table.along(self.points)) / self.scale_J1[:, None]).max(0)
        return worst_n

    def plan(self, level: float, candidates: int, noise_J1: FloatN | float = 0.0) -> Plan:
        """The plan with the margins of this level, widened by `noise_J1` nats."""
        margin_J1 = np.ceil((level * self.scale_J1 + noise_J1) * 10**DECIMALS) / 10**DECIMALS
        stages = [point.stage(candidates, float(margin)) for point, margin in zip(self.points, margin_J1, strict=False)]
        return Plan((*stages, self.points[-1].stage(1)))

    def without(self, number: int) -> MarginSchedule:
        """The schedule without stage `number`; without a first cut, no other stage has a weight of it."""
        points = (*self.points[:number], *self.points[number + 1 :])
        if self.points[number] == FIRST_CUT:
            points = tuple(point._replace(cut_weight=0.0) for point in points)
        return MarginSchedule(points, np.delete(self.scale_J1, number))


@dataclass(frozen=True)
class SimulatedResult:
    """What a plan does to the images of a table."""

    winner_n: IntN
    """Chosen candidates."""
    tokens_n: IntN
    """Tokens scored."""
    survivors_J: FloatN
    """Mean number of candidates per image that the next stage scores; decided images count as 0."""
    by_stage_JnN: FloatN
    """Scores; nan for candidates that took no part in a stage."""


def simulate(plan: Plan, table: ScoreTable) -> SimulatedResult:
    """What the engine would do, from known scores."""
    by_stage_JnN = table.along([Point.of(stage) for stage in plan.stages])
    alive_nN = np.ones((len(table), table.candidates), dtype=bool)
    undecided_n = np.ones(len(table), dtype=bool)
    tokens_n, survivors = np.zeros(len(table), dtype=np.int64), []
    for stage, new, scores_nN in zip(plan.stages, plan.new_tokens(table.segment_ends), by_stage_JnN, strict=True):
        part_nN = alive_nN & undecided_n[:, None]
        scores_nN[~part_nN] = np.nan
        tokens_n += new * part_nN.sum(1)
        alive_nN = stage.survivors(alive_nN, scores_nN)
        undecided_n = alive_nN.sum(1) > 1
        survivors.append(float(alive_nN[undecided_n].sum() / len(table)))
    return SimulatedResult(alive_nN.argmax(1), tokens_n, np.array(survivors), by_stage_JnN)


def gaps(scores_JnN: FloatN) -> FloatN:
    """How far the last stage's winner is behind the best candidate of each earlier stage, (J - 1, n) nats."""
    winner_1n1 = scores_JnN[-1].argmax(-1)[None, :, None]
    gap_Jn: FloatN = scores_JnN.max(-1) - np.take_along_axis(scores_JnN, winner_1n1, -1)[..., 0]
    return gap_Jn[:-1]


def fit_schedule(table: ScoreTable) -> MarginSchedule:
    """The cheapest of a small family: scales are powers of the spread of the evidence that is still to come.

    The power 0 gives all stages the same margin in nats. That is right for a model with calibrated odds, where a class
    that is d nats behind wins with odds e**-d at any stage (Wald 1945, the sequential probability ratio test).
    """
    schedules = []
    for points in table.paths():
        spread_J1 = _spread_to_come(table.along(points))
        for exponent in EXPONENTS:
            schedules += _with_scales(points, spread_J1**exponent)
    schedule = min(schedules, key=lambda s: _mean_tokens(s, table))
    most = _mean_tokens(schedule, table) * (1 + WORTH_A_STAGE)
    while len(schedule.points) > 1:
        shorter = [schedule.without(j) for j in range(len(schedule.points) - 1)]
        best = min(shorter, key=lambda s: _mean_tokens(s, table))
        if _mean_tokens(best, table) > most:
            break
        schedule = best
    return schedule


def _with_scales(points: tuple[Point, ...], scale_J1: FloatN) -> list[MarginSchedule]:
    """The schedule with these scales, or several if it begins with a first cut, whose scores become nats of the model
    when they are multiplied by their weight."""
    if points[0] != FIRST_CUT:
        return [MarginSchedule(points, scale_J1)]
    rest = scale_J1[1:]
    unit = rest.mean() / max(point.cut_weight for point in points) if len(rest) else 1.0
    return [MarginSchedule(points, np.array([factor * unit, *rest])) for factor in CUT_FACTORS]


def even_schedule(table: ScoreTable) -> MarginSchedule:
    """The same margin in nats at every stage, which needs no images to fit."""
    points = table.paths()[0]
    return MarginSchedule(points, np.ones(len(points) - 1))


@dataclass(frozen=True)
class Tuning:
    """A plan with its guarantee."""

    plan: Plan
    """Stages with margins, and the survivors they are expected to leave."""
    agreement: Fraction
    """Guaranteed probability of exhaustive scoring's prediction."""
    rank: int
    """Of the level among the nonconformities of the level images."""
    level_images: int
    """Images that the level was computed from."""
    scale_images: int
    """Images that the schedule was fitted to."""


def tune(table: ScoreTable, agreement: Fraction, precision: str, *, seed: int = 0) -> Tuning:
    """The plan that guarantees `agreement` with exhaustive scoring on images like those of the table.

    Args:
        precision: of the scores; margins are widened by its rounding noise. seed: of the split in two parts.
    Raises: UsageError if there are too few images or only one candidate.
    """
    if table.candidates < 2:
        raise UsageError("there is nothing to tune", "only one class is a candidate")
    rank_of_level(agreement, len(table))
    spare = min(len(table) // 4, len(table) - needed(agreement))
    for_scale = spare if spare >= LEAST_FOR_SCALES else 0
    order = np.random.default_rng(seed).permutation(len(table))
    scale_part, level_part = table.rows(order[:for_scale]), table.rows(order[for_scale:])
    schedule = fit_schedule(scale_part) if for_scale else even_schedule(table)
    rank = rank_of_level(agreement, len(level_part))
    level = float(np.sort(schedule.nonconformity(level_part))[rank - 1])
    last = table.segment_ends[-1]
    tokens = [last if point.estimated else table.segment_ends[point.segments - 1] for point in schedule.points[:-1]]
    noise_J1 = [rounding_noise(count, precision) for count in tokens]
    plan = schedule.plan(level, table.candidates, np.array(noise_J1))
    return Tuning(expecting(plan, simulate(plan, table).survivors_J), agreement, rank, len(level_part), for_scale)


def expecting(plan: Plan, survivors: Sequence[float] | npt.NDArray[np.float64]) -> Plan:
    """The plan with the expected number of survivors of each stage but the last."""
    pairs = zip(plan.stages[:-1], survivors, strict=False)
    stages = [replace(stage, expected=float(expected)) for stage, expected in pairs]
    return Plan((*stages, plan.stages[-1]))


def _mean_tokens(schedule: MarginSchedule, table: ScoreTable) -> float:
    levels = np.quantile(schedule.nonconformity(table), TRIED_LEVELS)
    plans = [schedule.plan(float(level), table.candidates) for level in levels]
    return float(np.mean([simulate(plan, table).tokens_n.mean() for plan in plans]))


def _spread_to_come(scores_JnN: FloatN) -> FloatN:
    """Standard deviation of how much the winner's lead over a candidate still grows after each stage, (J - 1,) nats."""
    winner_1n1 = scores_JnN[-1].argmax(-1)[None, :, None]
    lead_JnN = np.take_along_axis(scores_JnN, winner_1n1, -1) - scores_JnN
    spread_J1: FloatN = (lead_JnN[-1:] - lead_JnN[:-1]).std((1, 2))
    return spread_J1.clip(min=1e-6)
