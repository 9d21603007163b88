"""What a training would take, from a few of its steps, which are thrown away."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from torch import nn

from avarc_cli.train.log import most_memory
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
    network: nn.Module, updates: Updates, *, images: int, tokens: int, batch_size: int, steps: int, clip: float | None
) -> Rehearsal:
    """Take a few steps, after which the network is of no further use."""
    network.train()
    started = 0.0
    for step in range(1 + TIMED):
        if step == 1:
            started = time.perf_counter()
        updates.gradients(step, clip)  # which waits for the device
        updates.apply()
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
