"""What to score: a plan says which candidates survive after how many segments.

Written `segments:keep[:samples]` per stage, comma-separated. `6:10,10:3,10:1:3` scores every candidate on 6 segments
and keeps 10, scores those on 10 segments and keeps 3, then averages each survivor over 3 samples (the image's own
tokens and 2 smoothed samples) and keeps 1. Source: A-VARC+, arXiv:2510.12060.

`6:<8.5` keeps the candidates that are at most 8.5 nats behind the best, so that easy images lose candidates sooner than
hard ones; `scoring.conformal` chooses such margins. An image with one candidate left is decided and scored no further.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avarc_cli.errors import UsageError
from avarc_cli.words import are, counted

PAPER = "6:10,10:3,10:1:3"
HOW = (
    "write segments:keep[:samples] per stage, e.g. 6:10,10:3,10:1:3 (or <nats instead of keep: those at most this far "
    "behind the best), or exhaustive, or paper"
)
STAGE = re.compile(r"(\d{1,9}) *: *(?:(\d{1,9})|< *(\d+(?:\.\d+)?(?:e[-+]?\d+)?)) *(?:: *(\d{1,9}))?", re.ASCII)
Bool = npt.NDArray[np.bool_]
_ANY = 10**9 - 1  # the most that STAGE can write


@dataclass(frozen=True)
class Stage:
    """Score the remaining candidates on the first `segments` segments, averaged over `samples` samples; drop some."""

    segments: int
    """The first of each image that are scored."""
    keep: int
    """Candidates that survive at most: the best."""
    samples: int = 1
    """Of each image, the image itself included, that scores are averaged over."""
    margin: float = math.inf
    """Nats that a survivor is behind the best at most."""
    expected: float | None = None
    """Mean number of candidates per image that the next stage scores, if a margin decides; decided images count as 0.
    Only estimates of time and memory depend on it. None assumes that the margin drops nothing."""

    def __str__(self) -> str:
        rule = str(self.keep) if math.isinf(self.margin) else f"<{self.margin!r}"
        return f"{self.segments}:{rule}" + (f":{self.samples}" if self.samples > 1 else "")

    @property
    def expected_survivors(self) -> float:
        """Candidates per image that the next stage scores, on average."""
        if self.expected is not None:
            return self.expected
        return self.keep if self.keep > 1 else 0

    def survivors(self, alive_GN: Bool, scores_GN: npt.NDArray[np.float64]) -> Bool:
        """The candidates that survive (G images, N candidates), from those that are alive and their scores so far.

        Scores that are nan are yet to come: those candidates survive. A candidate that is dropped on some of the scores
        would be dropped on all of them too, since more scores can only raise the best score and a candidate's rank.
        """
        ready = alive_GN & ~np.isnan(scores_GN)
        score = np.where(ready, scores_GN, -np.inf)
        stays = score >= score.max(axis=1, keepdims=True) - self.margin
        if self.keep < ready.shape[1]:
            place = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1)  # equal scores: the first wins
            stays &= place < self.keep
        left: Bool = alive_GN & (stays | ~ready)
        return left


@dataclass(frozen=True)
class Step:
    """A stage, and what the stages before and after it imply."""

    stage: Stage
    """The stage itself."""
    samples_begun: int
    """Samples that earlier stages averaged; 1 in the first stage, where the images themselves begin."""
    last_segments: int
    """Most segments that this or a later stage scores."""
    last_samples: int
    """Most samples that this or a later stage averages."""

    @property
    def segments_grow(self) -> bool:
        """Whether a later stage scores more segments."""
        return self.last_segments > self.stage.segments

    @property
    def samples_grow(self) -> bool:
        """Whether a later stage averages more samples."""
        return self.last_samples > self.stage.samples


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
    def single_stage(self) -> bool:
        """Whether every candidate gets its full score."""
        return len(self.stages) == 1

    def steps(self) -> list[Step]:
        """The stages in order, each with what the others imply for it."""
        steps = []
        for number, stage in enumerate(self.stages):
            begun = max([1, *(earlier.samples for earlier in self.stages[:number])])
            rest = self.stages[number:]
            steps.append(Step(stage, begun, max(s.segments for s in rest), max(s.samples for s in rest)))
        return steps

    def new_tokens(self, ends: tuple[int, ...]) -> list[int]:
        """Tokens that each stage scores for one candidate that it gets; cached prefixes are not scored again."""
        done = [0] * self.samples
        counts = []
        for stage in self.stages:
            end = ends[stage.segments - 1]
            counts.append(sum(max(0, end - before) for before in done[: stage.samples]))
            done[: stage.samples] = [max(end, before) for before in done[: stage.samples]]
        return counts

    def tokens(self, candidates: int, ends: tuple[int, ...]) -> int:
        """Tokens scored for one image with this many candidates; expected tokens if margins decide who survives."""
        total, left = 0.0, float(candidates)
        for stage, new in zip(self.stages, self.new_tokens(ends), strict=True):
            total += left * new
            left = min(left, stage.expected_survivors)
        return round(total)


def parse_plan(text: str, *, segments: int, candidates: int, samples: int, can_smooth: bool = True) -> Plan:
    """The plan that `text` describes, checked against what there is to score.

    Args:
        text: "exhaustive" (or "exhaustive:3", averaged over 3 samples), "paper", or stages as in the module's
            docstring.
        segments: of the model. candidates: classes to choose from. samples: of each image in the token cache.
        can_smooth: whether encoding again can give more samples; there are only so many crops of an image.
    Raises: UsageError for a plan that cannot be carried out, naming the stage.
    """
    written = PAPER if text.strip() == "paper" else text.strip().replace("exhaustive", f"{segments}:1", 1)
    stages: list[Stage] = []
    have = candidates
    for number, part in enumerate(written.split(","), start=1):
        stage = _parse_stage(part, text, have)
        for problem in _problems(stage, segments, have, samples, can_smooth):
            raise UsageError(f"plan '{text}', stage {number} ({stage}): {problem[0]}", problem[1], problem[2])
        stages.append(stage)
        have = stage.keep
    if have != 1:
        raise UsageError(
            f"plan '{text}' ends with {have} candidates", "a prediction is one class", "let the last stage keep 1"
        )
    return Plan(tuple(stages))


def check_plan(text: str, *, candidates: int | None = None, samples: int | None = None) -> None:
    """Raises: UsageError for a plan that no model could carry out with so many candidates and samples; None: any."""
    parse_plan(text, segments=_ANY, candidates=candidates or _ANY, samples=samples or _ANY)


def _parse_stage(part: str, text: str, have: int) -> Stage:
    found = STAGE.fullmatch(part.strip())
    if found is None:
        raise UsageError(f"cannot read plan '{text}'", f"'{part}' is not a stage", HOW)
    segments, keep, margin, samples = found.groups()
    if margin is not None:
        return Stage(int(segments), have, int(samples or 1), float(margin))
    return Stage(int(segments), int(keep), int(samples or 1))


def _problems(stage: Stage, segments: int, have: int, samples: int, can_smooth: bool) -> list[tuple[str, str, str]]:
    problems = []
    if not 1 <= stage.segments <= segments:
        problems.append((f"there is no segment {stage.segments}", f"the model has {segments}", f"use 1 to {segments}"))
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
    return problems
