"""What to score: a plan says which candidates survive after how many segments.

Written `segments:keep[:samples][@orders][/precision]` per stage, comma-separated. `6:10,10:3,10:1:3` scores every
candidate on 6 segments and keeps 10, scores those on 10 segments and keeps 3, then averages each survivor over 3
samples (the image's own tokens and 2 smoothed samples) and keeps 1. Source: A-VARC+, arXiv:2510.12060.

`6:<8.5` keeps the candidates that are at most 8.5 nats behind the best, so that easy images lose candidates sooner than
hard ones; `scoring.conformal` chooses such margins. An image with one candidate left is decided and scored no further.

Models that score tokens in any order have a second average: `4:100@1,16:10@2,16:1@20` scores all candidates on the
first 4 segments of one order, 100 of them on the whole of two orders, and 10 on the whole of twenty. With `4~:100` the
first stage also estimates the other segments, in the same pass: each of their tokens is scored as if it came next
(`LikelihoodModel.block_parallel`). An estimate only drops candidates; those that are left are scored exactly.
`0~:<31.5,3+0.2:<9.7,6:1` begins with a first cut that scores no segment (`scoring.first_cut`), and adds 0.2 times its
scores to those of the second stage. Only a tuned plan has what it needs.

`6:10/bf16,10:3/bf16,10:1:3` scores the first two stages in bf16 and the third in the run's precision. Numbers of
different precisions are never added: where the precision changes, the survivors are scored from their first token.

Shapes: G images, N candidates, O orders.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from avarc_cli.errors import UsageError
from avarc_cli.scoring.reference_lists import translate
from avarc_cli.settings import check_precision
from avarc_cli.words import are, counted

PAPER = "6:10,10:3,10:1:3"
HOW = (
    "write segments[~]:keep[:samples][@orders][/precision] per stage, e.g. 6:10,10:3,10:1:3 (or <nats instead of keep: "
    "those at most this far behind the best), or exhaustive, or paper"
)
STAGE = re.compile(
    r"(\d{1,9})(?:(~)|\+(\d+(?:\.\d+)?))? *: *(?:(\d{1,9})|< *(\d+(?:\.\d+)?(?:e[-+]?\d+)?)) *(?:: *(\d{1,9}))? *"
    r"(?:@ *(\d{1,9}))? *(?:/ *(\w+))?",
    re.ASCII,
)
Bool = npt.NDArray[np.bool_]
IntN = npt.NDArray[np.int64]
LEFT_BY_FIRST_CUT = 2  # candidates, at least: the model itself decides, and every image has a log-likelihood
_ANY = 10**9 - 1  # the most that STAGE can write


@dataclass(frozen=True)
class Stage:
    """Score the remaining candidates on their first segments, averaged over samples and orders; drop some."""

    segments: int
    """The first of each image that are scored; 0 for a first cut, which is an estimate from none."""
    keep: int
    """Candidates that survive at most: the best."""
    samples: int = 1
    """Of each image, the image itself included, that scores are averaged over."""
    margin: float = math.inf
    """Nats that a survivor is behind the best at most."""
    expected: float | None = None
    """Mean number of candidates per image that the next stage scores, if a margin decides; decided images count as 0.
    Only estimates of time and memory depend on it. None assumes that the margin drops nothing."""
    orders: int = 1
    """Of each sample, that scores are averaged over."""
    estimated: bool = False
    """Whether the other segments are estimated from the first ones."""
    cut_weight: float = 0.0
    """What the first cut's scores are multiplied by before they are added."""
    precision: str | None = None
    """That the stage is scored in; None for the run's."""
    slack: float = 0.0
    """Nats by which a difference of two scores may be wrong: a candidate is dropped only if it is behind by more."""

    def __str__(self) -> str:
        rule = str(self.keep) if math.isinf(self.margin) else f"<{self.margin!r}"
        samples, orders = f":{self.samples}" * (self.samples > 1), f"@{self.orders}" * (self.orders > 1)
        cut = f"+{self.cut_weight!r}" if self.cut_weight else ""
        precision = f"/{self.precision}" if self.precision else ""
        return f"{self.segments}{'~' * self.estimated}{cut}:{rule}{samples}{orders}{precision}"

    def estimate_cost(self, ends: tuple[int, ...]) -> int:
        """What one estimate costs, in tokens that are scored exactly: these take two positions of the sequence each, of
        which an estimate needs only one for a token that is not revealed. A first cut is no pass of the model."""
        if not self.segments:
            return 0
        return (ends[-1] + ends[self.segments - 1] + 1) // 2

    @property
    def expected_survivors(self) -> float:
        """Candidates per image that the next stage scores, on average."""
        if self.expected is not None:
            return self.expected
        return self.keep if self.keep > 1 else 0

    def survivors(self, alive_GN: Bool, scores_GN: npt.NDArray[np.float64], sure_GN: Bool | None = None) -> Bool:
        """The candidates that survive (G images, N candidates), from those that are alive and their scores so far.

        Scores that are nan are yet to come: those candidates survive. A candidate that is dropped on some of the scores
        would be dropped on all of them too, since more scores can only raise the best score and a candidate's rank.

        Args:
            sure_GN: of a plan with slack, the candidates that are alive with exact scores too (`sure`). The others may
                be alive only because of the slack, so they displace no candidate.
        """
        ready = alive_GN & ~np.isnan(scores_GN)
        if sure_GN is not None:
            best_first = -np.sort(-np.where(ready & sure_GN, scores_GN, -np.inf), axis=1)
            least = best_first[:, :1] - self.margin
            if self.keep < ready.shape[1]:
                least = np.maximum(least, best_first[:, self.keep - 1 : self.keep])
            if not self.segments and ready.shape[1] > LEFT_BY_FIRST_CUT:
                least = np.minimum(least, best_first[:, LEFT_BY_FIRST_CUT - 1 : LEFT_BY_FIRST_CUT])
            possible: Bool = alive_GN & ~(ready & (scores_GN < least - self.slack))
            return possible
        score = np.where(ready, scores_GN, -np.inf)
        stays = score >= score.max(axis=1, keepdims=True) - self.margin
        if self.keep < ready.shape[1]:
            place = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1)  # equal scores: the first wins
            stays &= place < self.keep
        if not self.segments and ready.shape[1] > LEFT_BY_FIRST_CUT:
            stays |= ready & (score >= np.partition(score, -LEFT_BY_FIRST_CUT, axis=1)[:, [-LEFT_BY_FIRST_CUT]])
        left: Bool = alive_GN & (stays | ~ready)
        return left

    def sure(self, alive_GN: Bool, scores_GN: npt.NDArray[np.float64]) -> Bool:
        """The candidates that survive whatever the errors, if no difference that matters is wrong by the slack.

        Args:
            scores_GN: of all that are alive.
        """
        score_GN = np.where(alive_GN, scores_GN, -np.inf)
        rivals_GN = np.array(  # that may be ahead; the candidate itself is counted as well
            [len(row) - np.searchsorted(np.sort(row), row - self.slack) for row in score_GN]
        ).reshape(score_GN.shape)
        within_GN = score_GN >= score_GN.max(axis=1, keepdims=True) - self.margin + self.slack
        sure_GN: Bool = alive_GN & (rivals_GN <= self.keep) & within_GN
        return sure_GN


@dataclass(frozen=True)
class Step:
    """A stage, and what the stages before and after it imply."""

    stage: Stage
    """The stage itself."""
    samples_begun_O: IntN
    """Samples of each order that earlier stages averaged; 0 for an order that has not begun."""
    last_segments: int
    """Most segments that this or a later stage scores, of those in the same precision without a break."""
    last_samples: int
    """Most samples that this or a later stage averages, of those in the same precision without a break."""
    changes_precision: bool = False
    """Whether the stage before has another precision, so that nothing it scored is of use."""

    @property
    def segments_grow(self) -> bool:
        """Whether a later stage scores more segments."""
        return self.last_segments > self.stage.segments

    @property
    def samples_grow(self) -> bool:
        """Whether a later stage averages more samples."""
        return self.last_samples > self.stage.samples

    @property
    def new_orders(self) -> IntN:
        """Orders in which the images begin to be scored in this stage."""
        begins_O = self.samples_begun_O == 0
        begins_O[self.stage.orders :] = False
        return np.nonzero(begins_O)[0]


@dataclass(frozen=True)
class Plan:
    """Stages in order; the last keeps one candidate."""

    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.stages))

    @property
    def samples(self) -> int:
        """Samples an image needs in the cache."""
        return max(stage.samples for stage in self.stages)

    @property
    def orders(self) -> int:
        """Orders that each image is scored in."""
        return max(stage.orders for stage in self.stages)

    @property
    def first_cut(self) -> Stage | None:
        """The first stage, if it is a first cut."""
        return None if self.stages[0].segments else self.stages[0]

    @property
    def single_stage(self) -> bool:
        """Whether every candidate gets its full score."""
        return len(self.stages) == 1

    def steps(self) -> list[Step]:
        """The stages in order, each with what the others imply for it."""
        steps, begun_O = [], np.zeros(self.orders, dtype=np.int64)
        for number, stage in enumerate(self.stages):
            changes = self._changes_precision(number)
            begun_O *= not changes
            alike = itertools.takewhile(partial(_same_precision, stage), self.stages[number:])
            rest = [later for later in alike if not later.estimated]
            most_segments, most_samples = (
                max((each.segments for each in rest), default=0),
                max((each.samples for each in rest), default=0),
            )
            steps.append(Step(stage, begun_O.copy(), most_segments, most_samples, changes))
            if stage.estimated:
                continue
            begun_O[: stage.orders] = begun_O[: stage.orders].clip(min=stage.samples)
        return steps

    def _changes_precision(self, number: int) -> bool:
        """Whether the stage before this one has another precision."""
        return number > 0 and not _same_precision(self.stages[number - 1], self.stages[number])

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that stages name, each once."""
        return tuple(dict.fromkeys(stage.precision for stage in self.stages if stage.precision is not None))

    def new_tokens(self, ends: tuple[int, ...]) -> list[int]:
        """Tokens that each stage scores for one candidate that it gets; cached prefixes are not scored again."""
        done_OS = np.zeros((self.orders, self.samples), dtype=np.int64)
        counts = []
        for number, stage in enumerate(self.stages):
            done_OS *= not self._changes_precision(number)
            if stage.estimated:
                counts.append(stage.samples * stage.orders * stage.estimate_cost(ends))
                continue
            own_OS, end = done_OS[: stage.orders, : stage.samples], ends[stage.segments - 1]
            counts.append(int((end - own_OS).clip(min=0).sum()))
            own_OS[:] = own_OS.clip(min=end)
        return counts

    def tokens(self, candidates: int, ends: tuple[int, ...]) -> int:
        """Tokens scored for one image with this many candidates; expected tokens if margins decide who survives."""
        total, left = 0.0, float(candidates)
        for stage, new in zip(self.stages, self.new_tokens(ends), strict=True):
            total += left * new
            left = min(left, stage.expected_survivors)
        return round(total)


def _same_precision(one: Stage, other: Stage) -> bool:
    return one.precision == other.precision


def parse_plan(
    text: str,
    *,
    segments: int,
    candidates: int,
    samples: int,
    orders: int = 1,
    can_smooth: bool = True,
    can_estimate: bool = False,
    can_cut: bool = False,
) -> Plan:
    """The plan that `text` describes, checked against what there is to score.

    Args:
        text: "exhaustive" (or "exhaustive:3", averaged over 3 samples; over all orders, or with "@4" over 4), "paper",
            stages as in the module's docstring, or the reference's three lists (`reference_lists`).
        segments: of the model. candidates: classes to choose from. samples: of each image in the token cache.
        orders: that there are; 1 for a model with a fixed order.
        can_estimate: whether the model has an estimate of the segments that are not scored.
        can_cut: whether there is a first cut.
        can_smooth: whether encoding again can give more samples; an image has ten crops and no more.
    Raises: UsageError for a plan that cannot be carried out, naming the stage.
    """
    written = PAPER if text.strip() == "paper" else translate(text.strip())
    if written.startswith("exhaustive"):
        all_orders = f"@{orders}" if "@" not in written and orders > 1 else ""
        counts, slash, precision = written.removeprefix("exhaustive").partition("/")
        written = f"{segments}:1{counts}{all_orders}{slash}{precision}"
    stages: list[Stage] = []
    have = candidates
    for number, part in enumerate(written.split(","), start=1):
        stage = _parse_stage(part, text, have)
        if stage.precision is not None:
            check_precision(stage.precision)
        for problem in _problems(stage, segments, have, samples, orders, can_smooth, can_estimate):
            raise UsageError(f"plan '{text}', stage {number} ({stage}): {problem[0]}", problem[1], problem[2])
        _check_first_cut(
            stage, text, first=number == 1, there_is_one=can_cut and (number == 1 or not stages[0].segments)
        )
        stages.append(stage)
        have = stage.keep
    if stages[-1].estimated or stages[-1].cut_weight:
        raise UsageError(f"plan '{text}' ends with an estimate", "it only drops candidates", "add an exact stage")
    if have != 1:
        raise UsageError(
            f"plan '{text}' ends with {have} candidates", "a prediction is one class", "let the last stage keep 1"
        )
    return Plan(tuple(stages))


def check_plan(text: str, *, candidates: int | None = None, samples: int | None = None) -> None:
    """Raises: UsageError for a plan that no model could carry out with these numbers; None: any number."""
    parse_plan(
        text,
        segments=_ANY,
        candidates=candidates or _ANY,
        samples=samples or _ANY,
        orders=_ANY,
        can_estimate=True,
        can_cut=True,
    )


def read_stages(text: str, candidates: int) -> tuple[Stage, ...]:
    """The stages of a plan as a run records it, unchecked; a margin keeps at most all of the candidates."""
    return tuple(_parse_stage(part, text, candidates) for part in text.split(","))


def _parse_stage(part: str, text: str, have: int) -> Stage:
    found = STAGE.fullmatch(part.strip())
    if found is None:
        raise UsageError(f"cannot read plan '{text}'", f"'{part}' is not a stage", HOW)
    segments, estimated, weight, keep, margin, samples, orders, precision = found.groups()
    behind = math.inf if margin is None else float(margin)
    kept = have if keep is None else int(keep)
    return Stage(
        int(segments),
        kept,
        int(samples or 1),
        behind,
        orders=int(orders or 1),
        estimated=bool(estimated),
        cut_weight=float(weight or 0),
        precision=precision,
    )


def _check_first_cut(stage: Stage, text: str, *, first: bool, there_is_one: bool) -> None:
    """Raises: UsageError for a first cut, or its scores, where there is none."""
    if (not stage.segments or stage.cut_weight) and (not there_is_one or bool(stage.segments) == first):
        raise UsageError(
            f"plan '{text}': there is no first cut for stage '{stage}'",
            "only a tuned plan begins with one",
            "use --plan plan.json",
        )


def _problems(
    stage: Stage,
    segments: int,
    have: int,
    samples: int,
    orders: int,
    can_smooth: bool,
    can_estimate: bool,
) -> list[tuple[str, str, str]]:
    problems = []
    is_cut = stage.estimated and not stage.segments
    if not is_cut and not 1 <= stage.segments <= segments:
        problems.append((f"there is no segment {stage.segments}", f"the model has {segments}", f"use 1 to {segments}"))
    if stage.estimated and not is_cut and not can_estimate:
        problems.append(("it estimates segments", "the model has no such estimate", "leave out the ~"))
    if stage.estimated and stage.segments == segments:
        problems.append(("nothing is left to estimate", "it scores every segment", "leave out the ~"))
    if stage.keep < 1:
        problems.append(("it keeps no candidate", "a stage keeps at least 1", HOW))
    if stage.keep > have:
        left = f"only {counted(have, 'candidate')} {are(have)} left"
        problems.append((f"it keeps {stage.keep}", left, f"keep at most {have}"))
    if stage.samples < 1:
        problems.append(("it averages nothing", "a stage needs at least 1 sample", HOW))
    if stage.samples > samples:
        if can_smooth:
            why = f"the token cache has {samples} per image, counting the image itself"
            fix = f"encode again with --samples {stage.samples}"
        else:
            why, fix = f"there are {samples} views of each image", f"average at most {samples}"
        problems.append((f"it needs {counted(stage.samples, 'sample')}", why, fix))
    if stage.orders < 1:
        problems.append(("it averages nothing", "a stage needs at least 1 order", HOW))
    if stage.orders > orders:
        why = f"there {are(orders)} {counted(orders, 'order')}"
        problems.append(
            (f"it needs {counted(stage.orders, 'order')}", why, f"write @{orders} or fewer, or add --orders")
        )
    return problems
