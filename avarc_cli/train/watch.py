"""What watches a training without changing it: validation, logs, pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avarc_cli.layers import collectives
from avarc_cli.names import to_json
from avarc_cli.train.best import Best
from avarc_cli.train.listing import Listing
from avarc_cli.train.log import Folder, Means, TensorBoard, WeightsAndBiases, Writer
from avarc_cli.train.run import Run
from avarc_cli.train.updates import Done
from avarc_cli.train.validation import Validation, with_weights


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What there is to watch in a training."""

    images: int = 0
    """That are trained on; 0 for a training on something else."""
    tokens: int = 0
    """Of an image."""
    listing: Callable[[], Listing] | None = None
    """The images one by one, to say which have changed when the training goes on."""
    validation: Validation | None = None
    draw: Callable[[], np.ndarray] | None = None
    """A picture (H, W, 3), uint8, of what the network does with its weights at the moment."""


class Watch:
    """Reports of one training, made by the first process; validation is measured by all."""

    def __init__(
        self,
        run: Run,
        watched: Watched,
        best: Best,
        network: nn.Module,
        *,
        batch_size: int,
        writers: list[Writer],
        peak: float | None = None,
    ) -> None:
        """Args:
        peak: operations per second of the device's matrix products; None where nothing is written.
        """
        self.run, self.watched, self.best, self.network = run, watched, best, network
        self.batch_size, self.writers, self.peak, self.means = batch_size, writers, peak, Means()
        self.device = next(network.parameters()).device
        self.operations: int | None = None  # of a step, in this process

    @contextmanager
    def counting(self) -> Iterator[None]:
        """In the first step, count the operations of what is done here."""
        if self.peak is None or self.operations is not None:
            yield
            return
        from torch.utils.flop_counter import FlopCounterMode  # imports Triton: only where it is needed

        with FlopCounterMode(display=False) as counter:
            yield
        self.operations = counter.get_total_flops()

    def after(self, step: int, done: Done, rate: float, averaged: Mapping[str, Tensor], *, is_last: bool) -> None:
        """Report what is due after `step` steps."""
        self.means.add({"loss": done.loss, **done.values, "gradient_norm": done.norm})
        if step % self.run.log_every == 0 or is_last:
            self._write(step, {**self._means(), "learning_rate": rate})
        with self.means.pausing():
            if self.watched.validation is not None and (step % self.run.validate_every == 0 or is_last):
                self._validate(self.watched.validation, step, averaged)
            if self.run.pictures_every and step % self.run.pictures_every == 0:
                self._draw(step, averaged)

    def _means(self) -> dict[str, float]:
        """Since the last report."""
        means = self.means.take(self.batch_size, self.device)
        if self.peak and self.operations:
            per_image = self.operations / self.batch_size
            means["share_of_peak"] = per_image * means["images_per_second"] / self.peak
        return means

    def _validate(self, validation: Validation, step: int, averaged: Mapping[str, Tensor]) -> None:
        values = validation.measure(self.network, averaged)
        if values["loss"] < self.best.loss:
            self.best.step, self.best.loss = step, values["loss"]
            self.best.weights = {name: tensor.clone() for name, tensor in averaged.items()}
        self._write(step, {f"validation/{name}": value for name, value in values.items()})

    def _draw(self, step: int, averaged: Mapping[str, Tensor]) -> None:
        if self.watched.draw is None:
            return
        with with_weights(self.network, averaged):
            if self.writers:
                pixels = self.watched.draw()
        for writer in self.writers:
            writer.picture(step, pixels)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self.writers:
            writer.numbers(step, values)


@contextmanager
def opened(run: Run, identity: Mapping[str, Any], start: int) -> Iterator[list[Writer]]:
    """The writers that a run asks for, which go on after `start` steps; none but in the first process.

    Raises: UsageError where one is not installed, or the folder has another training's log; OSError.
    """
    writers: list[Writer] = []
    if collectives.rank() == 0:
        training = hashlib.sha256(to_json(dict(identity), sort_keys=True).encode()).hexdigest()[:16]
        if run.log is not None:
            writers.append(Folder(run.log, training, start))
        if run.tensorboard is not None:
            writers.append(TensorBoard(run.tensorboard, start))
        if run.wandb is not None:
            writers.append(WeightsAndBiases(run.wandb, training))
    try:
        yield writers
    finally:
        for writer in writers:
            writer.close()


def grid(images_RC3HW: Tensor) -> np.ndarray:
    """Rows and columns of images (R, C, 3, H, W) in [-1, 1] as one picture, with white lines between them."""
    framed = torch.nn.functional.pad(images_RC3HW.float().cpu().clamp(-1, 1), (0, 1, 0, 1), value=1.0)
    pixels = framed.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)[:-1, :-1]
    return ((pixels + 1) * 127.5).round().to(torch.uint8).numpy()
