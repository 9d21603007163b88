"""What a training would take, from a few of its steps, which are thrown away."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from avarc_cli.train.log import most_memory
from avarc_cli.train.state import Kept
from avarc_cli.train.update import average
from avarc_cli.train.updates import Updates

TIMED = 3
"""Steps that are timed, after one that warms up."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a dry run finds."""

    parameters: int
    trained: int
    """Parameters that are trained."""
    images: int
    """Of an epoch; 0 for a training on something else."""
    tokens: int
    """Of an epoch."""
    batch_size: int
    steps: int
    """Of the training."""
    seconds_per_step: float
    memory: int
    """The most bytes that were in use: of the GPU, else by the process."""

    @property
    def steps_per_epoch(self) -> int:
        """The last one takes images of the next epoch as well."""
        return math.ceil(self.images / self.batch_size)

    @property
    def epochs(self) -> float:
        """Times that the training sees each image; 0 for a training on something else."""
        return self.steps * self.batch_size / self.images if self.images else 0.0

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return self.steps * self.seconds_per_step


def rehearse(
    network: nn.Module,
    updates: Updates,
    averaged: Mapping[str, Tensor],
    kept: Kept | None,
    *,
    images: int,
    tokens: int,
    batch_size: int,
    steps: int,
    clip: float | None,
) -> Rehearsal:
    """Take the last few steps, in which a discriminator takes part, too. All given is of no further use then.

    Args:
        averaged, kept: as of `state.State`.
    """
    network.train()
    started, first = 0.0, max(0, steps - 1 - TIMED)
    for step in range(first, first + 1 + TIMED):
        if step == first + 1:
            started = time.perf_counter()
        updates.gradients(step, clip)  # which waits for the device
        if kept is not None:
            kept.before_update(step, steps)
        updates.apply()
        average(averaged, network, 0.5)
    seconds = (time.perf_counter() - started) / TIMED
    return Rehearsal(
        parameters=sum(p.numel() for p in network.parameters()),
        trained=sum(p.numel() for p in network.parameters() if p.requires_grad),
        images=images,
        tokens=images * tokens,
        batch_size=batch_size,
        steps=steps,
        seconds_per_step=seconds,
        memory=most_memory(updates.device),
    )
