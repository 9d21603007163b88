"""Pictures of classes: tokens drawn from p(x | class), decoded to pixels.

Shapes: K classes, H pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from avarc_cli.data.labels import resolve_classes
from avarc_cli.layers.sampling import generator_of
from avarc_cli.loaded import LoadedModel
from avarc_cli.progress import Progress, no_progress
from avarc_cli.settings import check_one_precision, check_sampling
from avarc_cli.tokens.reconstruct import to_pixels


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw. Raises: UsageError for numbers outside their ranges."""

    guidance: float | None = None
    """Strength of classifier-free guidance, in [0, 1000]. 0 draws from p(x | class) itself; None is the model's own."""

    top_k: int = 0
    """Draw only from this many of the likeliest codes. 0 for all."""

    top_p: float = 0.0
    """Draw only from the likeliest codes that together have this probability, in [0, 1]. 0 for all."""

    seed: int = 0
    """Of the random numbers."""

    def __post_init__(self) -> None:
        check_sampling(self.guidance, self.top_k, self.top_p)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures that a model drew."""

    class_ids: tuple[int, ...]
    """The K classes, in the order they were asked for, without repetitions."""

    names: tuple[str, ...]
    """What they are called."""

    pictures: npt.NDArray[np.uint8]
    """(K, count, H, H, 3), RGB."""


def sample(
    model: LoadedModel,
    classes: Sequence[str],
    count: int = 1,
    sampling: Sampling | None = None,
    *,
    progress: Progress = no_progress,
) -> Samples:
    """Draw pictures of classes.

    Every picture has its own random stream, that of (seed, class, number), so it does not depend on the other classes
    or on `count`. A caption stands for itself, wherever it is in a list.

    Args:
        classes: each as in `data.labels.resolve_classes`: a name, an id, a number, a list, a subset or a file.
        count: pictures of each class.
        sampling: None for `Sampling()`.
        progress: called with (classes done, classes in all).
    Raises: UsageError for unknown classes.
    """
    how = sampling or Sampling()
    ids = tuple(dict.fromkeys(i for spec in classes for i in resolve_classes(spec, model.classes)))
    pictures = np.empty((len(ids), count, *[model.tokenizer.image_size] * 2, 3), dtype=np.uint8)
    for k, class_id in enumerate(ids):
        pictures[k] = draw(model, [class_id] * count, range(count), how)
        progress(k + 1, len(ids))
    return Samples(class_ids=ids, names=tuple(model.classes.names[i] for i in ids), pictures=pictures)


def draw(model: LoadedModel, class_ids: Sequence[int], numbers: Sequence[int], how: Sampling) -> npt.NDArray[np.uint8]:
    """One batch of pictures, (B, H, H, 3).

    Args:
        class_ids, numbers: of each picture; the number tells it from others of the class.
    """
    check_one_precision(model.precision, "sampling")
    device, captions = model.tokenizer.device, model.captions
    streams = class_ids if captions is None else [captions.stream(each) for each in class_ids]
    tokens_BL = model.likelihood.sample(
        torch.tensor(class_ids, device=device),
        guidance=model.likelihood.default_guidance if how.guidance is None else how.guidance,
        top_k=how.top_k,
        top_p=how.top_p,
        generators=[generator_of(how.seed, *key, device=device) for key in zip(streams, numbers, strict=True)],
    )
    return to_pixels(model.decoder(class_ids).decode(tokens_BL))
