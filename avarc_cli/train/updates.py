"""One optimizer step: parts of a batch in several passes and processes, in a precision, and what to show of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avarc_cli.errors import UsageError
from avarc_cli.layers import collectives
from avarc_cli.layers.rows import Rows
from avarc_cli.train import sharding
from avarc_cli.train.run import Run
from avarc_cli.train.update import clip

LossOfRows = Callable[[int, Rows], tuple[Tensor, dict[str, float]]]
"""(step, rows of its batch) -> (their mean loss, what to show): a function of step and rows alone."""

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Pass(nn.Module):
    """The loss as a module: DDP watches the forward call of one. Its weights are the network's own."""

    def __init__(self, network: nn.Module, loss: LossOfRows) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        return sharding.call(self.network, self.loss, step, rows)


@dataclass(frozen=True)
class Done:
    """What a step's gradients were computed from."""

    loss: float
    """Mean over the batch."""
    norm: float
    """Of the gradient before clipping."""
    values: dict[str, float]
    """What the loss shows, means over the batch."""
    stops: bool
    """Whether some process was asked to end."""


class Updates:
    """Gradients of a batch by all processes, and optimizer steps."""

    def __init__(
        self, network: nn.Module, loss: LossOfRows, optimizer: torch.optim.Optimizer, run: Run, *, batch_size: int
    ) -> None:
        """Raises: UsageError for more parts than images, and for fp16 without a CUDA device."""
        run.check_batch(batch_size)
        self.network, self.optimizer, self.run = network, optimizer, run
        self.device = next(network.parameters()).device
        if run.precision == "fp16" and self.device.type != "cuda":
            raise UsageError(
                "--precision fp16 trains on CUDA devices only", f"this is {self.device}", "use --precision bf16 or fp32"
            )
        # Of the loss, as VAR trains.
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=2.0**11, growth_interval=1000, enabled=run.precision == "fp16"
        )
        processes = collectives.count()
        own = Rows.whole(batch_size).split(processes)[collectives.rank()]
        self.parts = own.split(run.accumulate)
        self.weights = [processes * part.share for part in self.parts]  # DDP and FSDP take the mean over processes
        self.passes = _Pass(network, loss)
        self.synchronized = _synchronized(self.passes) if processes > 1 and not run.shard else None

    def gradients(self, step: int, limit: float | None, *, asked_to_end: Sequence[int] = ()) -> Done:
        """Compute the clipped gradient of a step. Its norm is not finite where that of fp16 overflowed.

        Args:
            limit: of the gradient's norm; None for no limit.
            asked_to_end: the signals that asked this process to, by now and during the call.
        """
        self.optimizer.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        for number, (rows, weight) in enumerate(zip(self.parts, self.weights, strict=True)):
            with self._synchronizing(number):
                loss, values = self._pass(step, rows)
                scaled = self.scaler.scale(loss if weight == 1 else loss * weight)
                scaled.backward()
            for name, value in {"": loss.item(), **values}.items():
                means[name] = means.get(name, 0.0) + value * weight
        means, stops = self._over_processes(means, asked_to_end)
        self.scaler.unscale_(self.optimizer)
        norm = clip(self.network.parameters(), limit)
        return Done(means.pop(""), norm, means, stops)

    def apply(self) -> None:
        """The optimizer step; in fp16 it is left out where the gradient overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def skip(self) -> None:
        """In place of `apply`: the weights stay as they are."""
        self.scaler.update()  # or it refuses to unscale the next gradient

    def _pass(self, step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        half = HALF.get(self.run.precision)
        with torch.autocast(self.device.type, dtype=half) if half else nullcontext():
            loss, values = (self.synchronized or self.passes)(step, rows)
        return loss, values

    def _synchronizing(self, number: int) -> AbstractContextManager[Any]:
        """Gradients are exchanged with those of the last pass; of a divided network with those of every pass."""
        is_last = number == len(self.parts) - 1
        return nullcontext() if self.synchronized is None or is_last else self.synchronized.no_sync()

    def _over_processes(self, means: dict[str, float], asked_to_end: Sequence[int]) -> tuple[dict[str, float], bool]:
        if collectives.count() == 1:
            return means, bool(asked_to_end)
        numbers = torch.tensor([*means.values(), float(bool(asked_to_end))], dtype=torch.float64, device=self.device)
        *shared, ending = collectives.add_up(numbers).tolist()
        count = collectives.count()
        return {name: value / count for name, value in zip(means, shared, strict=True)}, ending > 0


def _synchronized(passes: nn.Module) -> DistributedDataParallel:
    """The same, with the mean of all processes' gradients."""
    # Some weights may have no gradient, such as convolutions that a VQ-VAE of few scales does not use.
    return DistributedDataParallel(passes, find_unused_parameters=True)


def is_finite(done: Done) -> bool:
    """Whether loss and gradient are numbers."""
    return math.isfinite(done.loss) and math.isfinite(done.norm)
