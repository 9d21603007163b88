"""Everything that the steps of a training depend on, besides model and data."""

from __future__ import annotations

import bisect
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from avarc_cli.errors import UsageError
from avarc_cli.objective import Objective, Stage
from avarc_cli.settings import check_class_dropout, check_learning_rate
from avarc_cli.train import schedules

DECAYED = ("linears", "published")
LONG_HELD = ("steps", "batch_size", "lr", "warmup", "hold", "final", "weight_decay", "betas", "clip", "ema_decay")
ALWAYS_STATED = frozenset((*LONG_HELD, "save_every", "seed"))  # in the checkpoints of every version
SLOWEST_RAMP = 0.01  # smallest weight of a scale that progressive training adds


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of a training. The defaults are those of small models; they follow VAR (arXiv:2404.02905).

    A length in time is a fraction of the steps if it is below 1, otherwise a number of steps.
    Raises: UsageError for numbers out of range.
    """

    steps: int  # optimizer steps
    batch_size: int  # images per optimizer step
    lr: float  # peak learning rate
    schedule: str = schedules.PLATEAU  # of the learning rate (`schedules.relative_rate`)
    warmup: float = 0.05  # length of the linear rise at first
    hold: float = 0.1  # length at the peak after the warm-up; of the schedule "plateau"
    first: float = 0.005  # first learning rate / peak
    final: float = 0.01  # last learning rate / peak
    weight_decay: float = 0.05  # of the parameters that `decayed` names
    final_weight_decay: float | None = None  # which it changes to along a cosine; None for no change
    decayed: str = "linears"  # weights of linears and convolutions; "published": as in the family's own code
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    clip: float | None = 2.0  # largest gradient norm; None for no limit
    ema_decay: float | None = 0.999  # of the moving average of the weights, which is what is saved; None for none
    ema_start: str = "tensorflow"  # how the average begins (`schedules.ema_decay`)
    class_dropout: float = 0.1  # fraction of images trained on as unconditional (arXiv:2404.02905, section 4)
    smoothing: float = 0.0  # of the labels of the cross-entropy
    visible: float = 0.0  # weight of visible tokens, in models of hidden tokens; hidden ones weigh 1
    dropout: float = 0.0  # of activations, where the family's own code has it
    drop_path: float = 0.0  # fraction of images that skip a branch of the last block; it rises from 0 at the first
    anneal: tuple[float, float] = (0.5, 0.75)  # RAR: random orders until the first fraction, none from the second on
    progressive: float = 0.0  # VAR: fraction of the steps until all scales are trained; 0: from the beginning
    progressive_first: int = 1  # last scale trained at first, from 0
    progressive_ramp: float = 1 / 300  # length of the rise of a new scale's weight
    skip_norm: float | None = None  # RandAR: skip an update if the tensors' clipped norms sum to this; None: never
    skip_from: int = 0  # first step that may be skipped
    save_every: int = 500  # steps between checkpoints
    seed: int = 0  # of data order and initialization

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "it must be at least 1")
        for name in ("warmup", "hold", "progressive_ramp", "progressive_first", "skip_from", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"{name} is {getattr(self, name)}", "it must be at least 0")
        for name in ("first", "final", "smoothing", "visible", "dropout", "drop_path", "progressive"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "it is a fraction in [0, 1]")
        for name, known in (("decayed", DECAYED), ("ema_start", schedules.EMA_STARTS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is '{getattr(self, name)}'", f"it is {' or '.join(known)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas are {self.betas}", "each is at least 0 and less than 1")
        for name in ("clip", "skip_norm", "final_weight_decay"):
            limit = getattr(self, name)
            if limit is not None and not (math.isfinite(limit) and limit >= 0):
                raise UsageError(f"{name} is {limit}", "it must be at least 0")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay is {self.ema_decay}", "it is at least 0 and less than 1")
        if self.drop_path == 1:
            raise UsageError("drop_path is 1", "nothing would be left of the last block")
        if not 0 <= self.anneal[0] <= self.anneal[1]:
            raise UsageError(f"anneal is {self.anneal}", "the first fraction is at most the second")
        schedules.check_schedule(self.schedule)
        check_learning_rate(self.lr)
        check_class_dropout(self.class_dropout)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint says of the recipe.

        Fields that older versions did not have are left out at their defaults, so that their checkpoints go on.
        """
        default = {field.name: field.default for field in fields(self)}
        stated = {k: v for k, v in asdict(self).items() if k in ALWAYS_STATED or v != default[k]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in stated.items()}

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        name = f"lin{self.progressive:g}" if self.progressive else self.schedule
        return self.lr * schedules.relative_rate(
            name,
            step,
            self.steps,
            warmup=self._length(self.warmup),
            level=self._level(),
            first=self.first,
            final=self.final,
        )

    def decay(self, step: int) -> float:
        """Weight decay of a step."""
        end = self.weight_decay if self.final_weight_decay is None else self.final_weight_decay
        return schedules.weight_decay(step, self.steps, self.weight_decay, end)

    def beginning_at(self, start: int, lr: float) -> Recipe:
        """The recipe, at another peak rate, of what is trained from that step on: its steps count from there.

        The warm-up has as many steps, and the end is the same.
        """
        warmup = float(round(self._length(self.warmup)))
        return replace(self, steps=max(1, self.steps - start), lr=lr, warmup=warmup)

    def averaging(self, step: int) -> float:
        """How much of the average of the weights a step keeps; 0 where there is no average but the weights."""
        return 0.0 if self.ema_decay is None else schedules.ema_decay(step, self.ema_decay, self.ema_start)

    def objective(self, step: int, segments: int = 1) -> Objective:
        """What a step minimizes.

        Args:
            segments: of the model, which progressive training adds one after the other.
        Raises: UsageError for a `progressive_first` that the model does not have.
        """
        return Objective(
            permuted=schedules.random_order_share(step / self.steps, *self.anneal),
            smoothing=self.smoothing,
            visible=self.visible,
            dropout=self.dropout,
            drop_path=self.drop_path,
            stage=self._stage(step, segments) if self.progressive else None,
        )

    def _stage(self, step: int, segments: int) -> Stage | None:
        """The stage of progressive training; None where all segments are trained as usual."""
        if self.progressive_first >= segments:
            raise UsageError(f"progressive_first is {self.progressive_first}", f"the model has {segments} scales")
        last = self._last_segment(step, segments)
        if last == segments - 1:
            return None
        if last == self._last_segment(0, segments):
            return Stage(last + 1, 1.0)
        came = bisect.bisect_left(range(step), last, key=lambda g: self._last_segment(g, segments))
        ramp = self._length(self.progressive_ramp)
        return Stage(last + 1, min(max((step - came + 1) / ramp, SLOWEST_RAMP), 1.0) if ramp else 1.0)

    def _last_segment(self, step: int, segments: int) -> int:
        warmup, first = self._length(self.warmup), self.progressive_first
        return schedules.last_segment(step, self.steps, segments, until=self.progressive, first=first, warmup=warmup)

    def _level(self) -> float:
        """Step at which the plateau ends."""
        if self.warmup < 1 and self.hold < 1:  # rounded as it always was: trainings repeat to the bit
            return (self.warmup + self.hold) * self.steps
        return self._length(self.warmup) + self._length(self.hold)

    def _length(self, given: float) -> float:
        """In steps."""
        return given * self.steps if given < 1 else given
