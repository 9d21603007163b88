"""What to score: a plan says which candidates survive after how many segments.

Written `segments:keep[:samples]` per stage, comma-separated. `6:10,10:3,10:1:3` scores every candidate on 6 segments
and keeps 10, scores those on 10 segments and keeps 3, then averages each survivor over 3 samples (the image's own
tokens and 2 smoothing neighbours) and keeps 1. Source: A-VARC+, arXiv:2510.12060.
"""

from __future__ import annotations

from dataclasses import dataclass

from avarc_cli.errors import UsageError

PAPER = "6:10,10:3,10:1:3"
HOW = "write segments:keep[:samples] per stage, e.g. 6:10,10:3,10:1:3, or exhaustive, or paper"


@dataclass(frozen=True)
class Stage:
    """Score what is left on the first `segments` segments, averaged over `samples` samples; keep the best `keep`."""

    segments: int
    keep: int
    samples: int = 1

    def __str__(self) -> str:
        return f"{self.segments}:{self.keep}" + (f":{self.samples}" if self.samples > 1 else "")


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

    def needs_prefix(self, number: int) -> bool:
        """Whether a stage after stage `number` (0-based) goes on to more segments."""
        return any(later.segments > self.stages[number].segments for later in self.stages[number + 1 :])

    def tokens(self, candidates: int, ends: tuple[int, ...]) -> int:
        """Tokens scored for one image with so many candidates (prefixes are never scored twice)."""
        total = 0
        done: dict[int, int] = {}  # sample -> tokens
        for stage in self.stages:
            for sample in range(stage.samples):
                new = ends[stage.segments - 1] - done.get(sample, 0)
                if new > 0:
                    total += candidates * new
                    done[sample] = ends[stage.segments - 1]
            candidates = min(candidates, stage.keep)
        return total


def parse_plan(text: str, *, segments: int, candidates: int, samples: int) -> Plan:
    """The plan that `text` describes, checked against what there is to score.

    Args:
        text: "exhaustive", "paper", or stages as in the module's docstring.
        segments: segments of the model; candidates: classes to choose from; samples: samples in the cache.
    Raises: UsageError for a plan that cannot be carried out, naming the stage.
    """
    written = {"exhaustive": f"{segments}:1", "paper": PAPER}.get(text.strip(), text.strip())
    plan = Plan(tuple(_parse_stage(part, text) for part in written.split(",")))
    have = candidates
    for number, stage in enumerate(plan.stages, start=1):
        for problem in _problems(stage, segments, have, samples):
            raise UsageError(f"plan '{text}', stage {number} ({stage}): {problem[0]}", problem[1], problem[2])
        have = stage.keep
    if have != 1:
        raise UsageError(
            f"plan '{text}' ends with {have} candidates", "a prediction is one class", "let the last stage keep 1"
        )
    return plan


def _parse_stage(part: str, text: str) -> Stage:
    numbers = part.strip().split(":")
    if len(numbers) not in (2, 3) or not all(n.strip().isascii() and n.strip().isdigit() for n in numbers):
        raise UsageError(f"cannot read plan '{text}'", f"'{part}' is not a stage", HOW)
    return Stage(*(int(n) for n in numbers))


def _problems(stage: Stage, segments: int, have: int, samples: int) -> list[tuple[str, str, str]]:
    problems = []
    if not 1 <= stage.segments <= segments:
        problems.append((f"there is no segment {stage.segments}", f"the model has {segments}", f"use 1 to {segments}"))
    if stage.keep < 1:
        problems.append(("it keeps nobody", "a stage keeps at least 1", HOW))
    if stage.keep > have:
        problems.append((f"it keeps {stage.keep}", f"only {have} candidates are left there", f"keep at most {have}"))
    if stage.samples < 1:
        problems.append(("it averages nothing", "a stage needs at least 1 sample", HOW))
    if stage.samples > samples:
        why = f"the tokens hold {samples} an image (the image itself counts)"
        fix = f"encode again with --samples {stage.samples}"
        problems.append((f"it wants {stage.samples} samples", why, fix))
    return problems
