"""The captions that a training gives its images: those of the image's class.

Shapes: B images, T positions of a caption, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avarc_cli.data.labels import UNKNOWN, match
from avarc_cli.errors import UsageError, shorten_list
from avarc_cli.layers.rows import Rows
from avarc_cli.text.captions import Captions
from avarc_cli.text.encoders import take
from avarc_cli.text.features import CaptionFeatures
from avarc_cli.tokens.source import Source, class_names


@dataclass(frozen=True)
class ClassCaptions:
    """The captions of each class, of which every image has one at a step."""

    rows: list[list[int]]
    """Of each class, in `features`."""
    features: CaptionFeatures
    digest: str
    """In hex, of names and captions."""

    @classmethod
    def of(cls, source: Source, captions: Captions, features: CaptionFeatures) -> ClassCaptions:
        """The captions of the classes of these images.

        Args:
            features: of all captions.
        Raises: UsageError for images without a class, or classes without a caption.
        """
        names = class_names(source)
        if not names or (source.labels < 0).any():
            raise UsageError(
                "images without a class", "captions are found by the class of an image", "use class sub-folders"
            )
        found = match(names, captions.label_space)
        if missing := [name for name, index in zip(names, found, strict=True) if index == UNKNOWN]:
            raise UsageError(
                f"classes without a caption: {shorten_list(missing)}",
                f"{captions.source} has captions for {shorten_list(captions.ids)}",
                "write a caption for each class, under its name",
            )
        rows = [[row for row, owner in enumerate(captions.candidate) if owner == index] for index in found.tolist()]
        return cls(rows, features, captions.digest)

    def draw(self, labels: Tensor, rows: Rows, generator: torch.Generator) -> CaptionFeatures:
        """The features of one caption for each image of these rows, drawn at random.

        Args:
            labels: of the whole batch. generator: the step's own.
        """
        drawn = torch.rand(rows.of, generator=generator)
        pairs = zip(rows.take(labels).tolist(), rows.take(drawn), strict=True)
        return take(self.features, [self.rows[label][int(u * len(self.rows[label]))] for label, u in pairs])

    def guidance(self, labels: Tensor, rows: Rows, generator: torch.Generator) -> Tensor:
        """What a decoder reads of these captions, (B, T, D); otherwise as `draw`.

        Raises: UsageError for features of an encoder that gives nothing for decoders.
        """
        guidance_BTD = self.draw(labels, rows, generator).guidance_RTD
        if guidance_BTD is None:
            raise UsageError(
                "this text encoder gives no features for decoders",
                "T5 does not; CLIP and the encoders of avarc train text-encoder do",
                "name another with --text-encoder",
            )
        return guidance_BTD
