"""Tuned plans: adaptive margins with their guarantee, in a file that records what they were tuned for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avarc_cli import __version__, strict_json
from avarc_cli.data.preprocess import current_description
from avarc_cli.errors import AvarcError, UsageError, describe_differences
from avarc_cli.scoring.conformal import expecting
from avarc_cli.scoring.first_cut import FirstCut
from avarc_cli.scoring.orders import MAX_ORDERS
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.storage import write_bytes

if TYPE_CHECKING:
    from avarc_cli.loaded import LoadedModel

AUTO = "auto"
"""In place of a file: the plan that comes with the model."""
FORMAT = 1
ANY_SAMPLES = 1 << 16  # whether a cache has enough samples is checked when it is classified


@dataclass(frozen=True, kw_only=True)
class TunedPlan:
    """A plan whose margins were calibrated (`avarc_cli.tune`)."""

    plan: Plan
    """Stages with margins in nats, and the candidates expected to survive each."""

    temperature: float | None
    """Of the posterior. None where too few calibration images were labelled."""

    made_for: Mapping[str, Any]
    """What the guarantee depends on: digests of model and tokenizer, candidates, priors, precision, preprocessing."""

    guarantee: Mapping[str, Any]
    """The guaranteed agreement with exhaustive scoring, the numbers it follows from, and a statement of both."""

    calibration: Mapping[str, Any]
    """The calibration images, and on them: agreement, tokens per image, accuracy, calibration error."""

    held_out: Mapping[str, Any] | None = None
    """The same numbers on images that the plan was not tuned on. None where there were none."""

    first_cut: FirstCut | None = None
    """What the first stage compares, if the plan begins with a first cut."""

    path: Path | None = field(default=None, compare=False)
    """The file that it was read from."""

    def __str__(self) -> str:
        return str(self.plan)

    def to_dict(self) -> dict[str, Any]:
        """The content of the file, without its digest."""
        return {
            "format": FORMAT,
            "avarc": __version__,
            "plan": str(self.plan),
            "goes_on": [stage.expected for stage in self.plan.stages[:-1]],
            "temperature": self.temperature,
            "made_for": dict(self.made_for),
            "guarantee": dict(self.guarantee),
            "calibration": dict(self.calibration),
            "held_out": None if self.held_out is None else dict(self.held_out),
        } | ({} if self.first_cut is None else {"first_cut": self.first_cut.to_dict()})

    def write(self, path: Path) -> None:
        """Write the file atomically. Raises OSError."""
        content = self.to_dict()
        write_bytes(path, json.dumps(content | {"sha256": _digest(content)}, indent=1).encode())

    def check(self, now: Mapping[str, Any]) -> None:
        """Raises: UsageError, with both values, where one of these is not what the plan was made for."""
        if differences := describe_differences({name: self.made_for.get(name) for name in now}, now):
            raise UsageError(
                f"the guarantee of '{self.path or self}' does not hold here",
                differences,
                "tune a plan for this: avarc tune TOKENS.h5 --model ... --out plan.json",
            )


def is_file(plan: str) -> bool:
    """Whether the value of `Options.plan` names the file of a tuned plan."""
    return Path(plan).suffix.lower() == ".json"


def find(plan: str | TunedPlan, model: LoadedModel) -> TunedPlan | None:
    """The tuned plan that the value of `Options.plan` names; None for any other plan.

    Raises: as `read`; UsageError when none comes with the model.
    """
    if isinstance(plan, TunedPlan):
        return plan
    if plan != AUTO:
        return read(Path(plan)) if is_file(plan) else None
    path = Path(model.file).with_name("plan.json")
    if not path.exists():
        raise UsageError(
            f"no tuned plan comes with {model.name}",
            f"there is no '{path}'",
            f"tune one: avarc tune TOKENS.h5 --model {model.name} --out plan.json; then --plan plan.json",
        )
    return read(path)


def read(path: Path) -> TunedPlan:
    """Read a plan file.

    Raises: UsageError when there is no such file; AvarcError when it is corrupt, was edited, or has another format.
    """
    try:
        values = strict_json.parse_object(path.read_text("utf-8"))
        digest, version = values.pop("sha256"), values["format"]
        if version != FORMAT:
            fix = "upgrade avarc: pip install --upgrade avarc" if version > FORMAT else "tune it again"
            raise AvarcError(f"'{path}' has another format", f"it is version {version}, this is {FORMAT}", fix)
        if digest != _digest(values):
            raise ValueError("its content does not match its digest: it is not what was tuned")
        return replace(from_dict(values), path=path)
    except FileNotFoundError:
        raise UsageError(f"there is no plan '{path}'", fix="make one: avarc tune TOKENS.h5 --out plan.json") from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise AvarcError(f"cannot use the plan '{path}'", why, "make it again: avarc tune") from None


def from_dict(values: Mapping[str, Any]) -> TunedPlan:
    """The plan that `TunedPlan.to_dict` described. Raises: UsageError, KeyError, TypeError or ValueError."""
    made_for = values["made_for"]
    if "preprocess" in made_for:
        made_for = made_for | {"preprocess": current_description(made_for["preprocess"])}
    first_cut = FirstCut.from_dict(values["first_cut"]) if "first_cut" in values else None
    plan = parse_plan(
        values["plan"],
        segments=made_for["segments"],
        candidates=len(made_for["candidates"]),
        samples=ANY_SAMPLES,
        orders=MAX_ORDERS,
        can_estimate=True,
        can_cut=first_cut is not None,
    )
    return TunedPlan(
        plan=expecting(plan, values["goes_on"]),
        temperature=values["temperature"],
        made_for=made_for,
        guarantee=values["guarantee"],
        calibration=values["calibration"],
        held_out=values["held_out"],
        first_cut=first_cut,
    )


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
