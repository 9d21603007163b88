"""Pictures that a model believes to be of a class: tokens drawn from p(x | class), decoded to pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from avarc_cli.errors import UsageError
from avarc_cli.layers.sampling import image_generator
from avarc_cli.loaded import LoadedModel
from avarc_cli.tokens.reconstruct import to_pixels

MOST_GUIDANCE = 1000  # far beyond any use; float32 ends at 1e38


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw.

    guidance: strength of classifier-free guidance, 0 samples from p(x | class) itself; top_k: only from so many
    likeliest codes, 0 for all; top_p: only from the likeliest codes that hold this probability, 0 for all.
    Raises: UsageError for numbers outside their ranges.
    """

    guidance: float = 1.5
    top_k: int = 0
    top_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.guidance <= MOST_GUIDANCE and self.top_k >= 0 and 0 <= self.top_p <= 1):
            raise UsageError(
                f"guidance {self.guidance}, top-k {self.top_k}, top-p {self.top_p}",
                f"guidance lies in [0, {MOST_GUIDANCE}], top-k is at least 0, top-p lies in [0, 1]",
            )


def draw(
    model: LoadedModel,
    classes: Sequence[int],
    count: int,
    how: Sampling,
    progress: Callable[[int], None] = lambda done: None,
) -> npt.NDArray[np.uint8]:
    """Pictures of each class, (K, count, H, H, 3) uint8.

    Each picture has a random stream of its own, that of (seed, class, number): asking for other classes or for more
    pictures changes none of them.
    """
    device = model.tokenizer.device
    pictures = np.empty((len(classes), count, *[model.tokenizer.image_size] * 2, 3), dtype=np.uint8)
    for k, class_id in enumerate(classes):
        streams = [image_generator(how.seed, class_id, number, device) for number in range(count)]
        tokens_BL = model.likelihood.sample(
            torch.full((count,), class_id, device=device),
            guidance=how.guidance,
            top_k=how.top_k,
            top_p=how.top_p,
            generators=streams,
        )
        pictures[k] = to_pixels(model.tokenizer.decode(tokens_BL))
        progress(k + 1)
    return pictures
