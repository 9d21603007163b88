"""What a text encoder is, and how captions are encoded: in batches, with the empty caption, and once on this machine.

Shapes: R captions, T positions, D channels of a position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from avarc_cli.progress import Progress, no_progress
from avarc_cli.text.features import CaptionFeatures

BATCH = 16
"""Captions that are encoded at once; a choice without measurement."""
SHOWN = 40  # characters of a caption in a note


class TextEncoder(ABC):
    """A text encoder, in float32 on its device."""

    name: str
    """As in `TextInput.encoder`; "" for a folder of the user's own."""
    sha256: str
    """Of everything that features depend on: weights, vocabulary and configuration."""
    positions: int
    """T; longer captions are cut as the reference does."""

    @abstractmethod
    def tokens(self, caption: str) -> list[Any]:
        """The ids of a caption, as the encoder's vocabulary has them, with those that begin and end it, not cut."""

    @abstractmethod
    def cut(self, ids: list[Any]) -> list[Any]:
        """The same ids, or as many of them as fit, with the one that ends a caption in the last place."""

    @abstractmethod
    def encode(self, ids: Sequence[list[Any]]) -> dict[str, Tensor]:
        """Features of captions whose ids were cut, on the CPU.

        Returns: `sequence` (R, T', D), where T' is at least the longest; and as the encoder has them `pooled` (R, E)
            and `guidance` (R, T', D).
        """

    def length(self, ids: list[Any]) -> int:
        """Positions of a caption that generators read."""
        return len(ids)


@dataclass(frozen=True)
class Encoded:
    """Features of captions, and what is to be said about them."""

    features: CaptionFeatures
    """With the empty caption's."""
    cut: tuple[int, ...]
    """The captions that were too long."""

    def note(self, positions: int) -> str:
        """How many captions were cut, and the first; "" for none."""
        if not self.cut:
            return ""
        first = self.features.captions[self.cut[0]]
        shown = first if len(first) <= SHOWN else f"{first[:SHOWN]}..."
        many = "1 caption was" if len(self.cut) == 1 else f"{len(self.cut):,} captions were"
        return f"{many} cut to {positions} positions, as the reference does; the first is '{shown}'"


def encode(encoder: TextEncoder, captions: Sequence[str], progress: Progress = no_progress) -> Encoded:
    """Features of captions and of the empty one. progress: called with (captions done, captions in all)."""
    texts = [*captions, ""]
    whole = {text: encoder.tokens(text) for text in dict.fromkeys(texts)}
    cut_R = tuple(i for i, text in enumerate(captions) if len(whole[text]) > encoder.positions)
    ids = {text: encoder.cut(found) for text, found in whole.items()}
    order = sorted(ids, key=lambda text: (len(ids[text]), text))  # so that little of a batch is padding
    parts: dict[str, dict[str, Tensor]] = {}
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        found = encoder.encode([ids[text] for text in batch])
        parts |= {text: {name: each[i] for name, each in found.items()} for i, text in enumerate(batch)}
        progress(min(start + BATCH, len(order)), len(order))
    lengths = {text: encoder.length(found) for text, found in ids.items()}
    features = _stacked(encoder, captions, parts, lengths)
    return Encoded(replace(features, empty=_stacked(encoder, [""], parts, lengths)), cut_R)


def _stacked(
    encoder: TextEncoder, captions: Sequence[str], parts: dict[str, dict[str, Tensor]], lengths: dict[str, int]
) -> CaptionFeatures:
    """Features of these captions, as long as the longest, with zeros for padding."""
    longest = max(lengths[text] for text in captions)

    def padded(name: str) -> Tensor | None:
        if name not in parts[captions[0]]:
            return None
        values = [parts[text][name] for text in captions]
        if values[0].dim() == 1:
            return torch.stack(values)
        stacked = torch.zeros(len(captions), longest, values[0].shape[-1])
        for row, value, text in zip(stacked, values, captions, strict=True):
            row[: lengths[text]] = value[: lengths[text]]
        return stacked

    sequence = padded("sequence")
    assert sequence is not None
    return CaptionFeatures(
        captions=tuple(captions),
        sequence_RTD=sequence,
        length_R=torch.tensor([lengths[text] for text in captions]),
        pooled_RE=padded("pooled"),
        guidance_RTD=padded("guidance"),
        encoder=encoder.name,
    )
