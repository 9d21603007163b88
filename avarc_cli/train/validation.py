"""The loss on images that a training does not see, with the averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from avarc_cli.data.labels import UNKNOWN, normalize
from avarc_cli.errors import UsageError, shorten_list
from avarc_cli.layers import collectives
from avarc_cli.layers.rows import Rows
from avarc_cli.tokens.source import Source, SourceT, class_names, relabelled, title
from avarc_cli.train.sharding import gathered
from avarc_cli.train.state import Kept
from avarc_cli.train.updates import LossOfRows


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What the loss is measured on."""

    loss: LossOfRows
    """Of rows of the validation images' batch of that number, without anything random but what the model needs."""
    images: int
    batch_size: int
    subject: str
    """What identifies the images."""
    kept: Kept | None = None
    """What the loss keeps from step to step of the training, which stays as it is."""

    def measure(self, network: nn.Module, averaged: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the images: the loss, as "loss", and what it shows. All processes take part and get the same."""
        totals: dict[str, float] = {}
        with with_weights(network, averaged), torch.no_grad(), self._keeping():
            for number, start in enumerate(range(0, self.images, self.batch_size)):
                size = min(self.batch_size, self.images - start)
                part = Rows.whole(size).split(collectives.count())[collectives.rank()]
                # Every process makes every call, because losses may exchange numbers; one without an image repeats one.
                loss, values = self.loss(number, part if len(part) else Rows(0, 1, size))
                for name, value in {**values, "loss": loss.item()}.items():
                    totals[name] = totals.get(name, 0.0) + value * len(part)
        sums = collectives.add_up(torch.tensor(list(totals.values()), device=next(network.parameters()).device))
        return {name: value / self.images for name, value in zip(totals, sums.tolist(), strict=True)}

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        state = None if self.kept is None else copy.deepcopy(self.kept.state_dict())
        yield
        if self.kept is not None and state is not None:
            self.kept.load_state_dict(state)


@contextmanager
def with_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """A network in evaluation mode with these weights; afterwards it trains on with its own.

    All processes come here together.
    """
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(weights)
    network.eval()
    try:
        with gathered(network):
            yield
    finally:
        network.load_state_dict(own)
        network.train()


def hold_out(source: Source, fraction: float, seed: int) -> tuple[Source, Source]:
    """Images to train on, and this fraction of each class for validation; a class's only image is trained on.

    Raises: UsageError when nothing would be held out.
    """
    rng, held = np.random.default_rng([seed, len(source)]), []
    for label in np.unique(source.labels):
        rows = rng.permutation(np.flatnonzero(source.labels == label))
        held.append(rows[: min(len(rows) - 1, max(1, round(fraction * len(rows))))])
    chosen = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    if not len(chosen):
        raise UsageError("no image can be held out for validation", "no class has two", "leave out --hold-out")
    rest = np.setdiff1d(np.arange(len(source)), chosen)
    return source.take(rest), source.take(chosen)


def labelled_as(source: SourceT, names: tuple[str, ...]) -> SourceT:
    """The same images with labels that index into these classes. Raises: UsageError for images of other classes."""
    index_of, own = {normalize(name): index for index, name in enumerate(names)}, class_names(source)
    new = np.array([index_of.get(normalize(name), UNKNOWN) for name in own] + [UNKNOWN], np.int32)
    if (new[source.labels] == UNKNOWN).any():
        strange = [name for name in own if normalize(name) not in index_of]
        why = f"it has images of {shorten_list(strange)}" if strange else "it has images without a class"
        raise UsageError(
            f"cannot validate on {title(source)}", f"{why}, which is not trained on", "name images of these"
        )
    return relabelled(source, new[source.labels], names)
