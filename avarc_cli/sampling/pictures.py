"""Pictures of classes: tokens drawn from p(x | class), decoded to pixels.

Shapes: K classes, H pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from avarc_cli.data.labels import resolve_all
from avarc_cli.errors import UsageError, describe_differences
from avarc_cli.layers.sampling import generator_of
from avarc_cli.likelihood import Known
from avarc_cli.loaded import LoadedModel
from avarc_cli.progress import Progress, no_progress
from avarc_cli.sampling.painting import check_keeps_tokens
from avarc_cli.sampling.presets import Preset
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

    preset: Preset | None = None
    """Where the settings were published, with their rounding and the size of the pictures (`with_preset`)."""

    known: Known | None = None
    """Tokens of an image that are kept (`painting.known_tokens`)."""

    more_smooth: bool = False
    """Mix codes, for smoother pictures, which are not draws from p(x | class) (`LikelihoodModel.sample_latents`)."""

    def __post_init__(self) -> None:
        check_sampling(self.guidance, self.top_k, self.top_p)

    @classmethod
    def with_preset(cls, preset: Preset, seed: int = 0, *, known: Known | None = None) -> Sampling:
        """How published pictures were drawn."""
        guidance, top_k, top_p = preset.guidance, preset.top_k, preset.top_p
        return cls(guidance=guidance, top_k=top_k, top_p=top_p, seed=seed, preset=preset, known=known)

    def side(self, model: LoadedModel) -> int:
        """Pixels a side of a picture."""
        reduced = self.preset.side if self.preset else None
        return reduced or model.tokenizer.image_size

    def protocol(self, model: LoadedModel) -> dict[str, Any]:
        """What pictures depend on, as JSON types."""
        guidance = model.likelihood.default_guidance if self.guidance is None else self.guidance
        settings = {"guidance": float(guidance), "top_k": self.top_k, "top_p": float(self.top_p), "seed": self.seed}
        optional = {
            "preset": self.preset and self.preset.to_dict(),
            "known": self.known and self.known.digest,
            "more_smooth": self.more_smooth,
        }
        return settings | {name: value for name, value in optional.items() if value}

    def check(self, model: LoadedModel) -> None:
        """Raises: UsageError for what this model cannot do."""
        check_one_precision(model.precision, "sampling")
        if self.preset is not None:
            _check_preset(self.preset, model)
        if self.known is not None:
            check_keeps_tokens(model)
        if self.more_smooth and not model.likelihood.smooths:
            why = f"VAR mixes codes of a scale before the next one reads them; {model.name} is a {model.family}"
            raise UsageError(f"--more-smooth is not for {model.name}", why, "leave it out, or name a VAR")


def _check_preset(preset: Preset, model: LoadedModel) -> None:
    """Raises: UsageError for a preset of another family, or with settings that this model's sampler does not have."""
    what = f"the preset of {preset.model} is not for {model.name}"
    if preset.family != model.family:
        why = f"{preset.model} is of the family {preset.family}, {model.name} of {model.family}"
        raise UsageError(what, why, "name another --preset")
    own = asdict(model.likelihood.sampler)
    published = {name: getattr(preset, name) for name in own}
    if differences := describe_differences(published, own, sides=("published", "here")):
        fix = "name the --preset of the published model with its shape, or give --guidance, --top-k and --top-p instead"
        raise UsageError(what, f"a network of its shape draws otherwise: {differences}", fix)


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
    how.check(model)
    ids = resolve_all(classes, model.classes)
    pictures = np.empty((len(ids), count, *[how.side(model)] * 2, 3), dtype=np.uint8)
    for k, class_id in enumerate(ids):
        pictures[k] = draw(model, [class_id] * count, range(count), how)
        progress(k + 1, len(ids))
    return Samples(class_ids=ids, names=tuple(model.classes.names[i] for i in ids), pictures=pictures)


def draw(model: LoadedModel, class_ids: Sequence[int], numbers: Sequence[int], how: Sampling) -> npt.NDArray[np.uint8]:
    """One batch of pictures, (B, H, H, 3), of a model that `how` was checked with.

    Args:
        class_ids, numbers: of each picture; the number counts the pictures of its class, from 0.
    """
    device, captions = model.tokenizer.device, model.captions
    streams = class_ids if captions is None else [captions.stream(each) for each in class_ids]
    options: dict[str, Any] = {
        "guidance": model.likelihood.default_guidance if how.guidance is None else how.guidance,
        "top_k": how.top_k,
        "top_p": how.top_p,
        "generators": [generator_of(how.seed, *key, device=device) for key in zip(streams, numbers, strict=True)],
    }
    if how.known is not None:
        options["known"] = how.known
    ids, decoder = torch.tensor(class_ids, device=device), model.decoder(class_ids)
    if how.more_smooth:
        images = decoder.decode_latents(model.likelihood.sample_latents(ids, **options))
    else:
        images = decoder.decode(model.likelihood.sample(ids, **options))
    if (side := how.side(model)) != images.shape[-1]:  # as LlamaGen's evaluation does
        images = F.interpolate(images, size=(side, side), mode="bicubic")
    return to_pixels(images, how.preset.rounding if how.preset else "nearest")
