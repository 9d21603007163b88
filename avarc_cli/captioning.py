"""A model of captions with the captions that it chooses from: read, encoded once, and bound."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avarc_cli.caption_means import MeanOfCaptions
from avarc_cli.data.labels import LabelSpace
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.progress import StartProgress, silent
from avarc_cli.text import captions as caption_sets
from avarc_cli.text import encoders, feature_file
from avarc_cli.text.captions import RULE, Captions
from avarc_cli.text.features import CaptionFeatures
from avarc_cli.words import counted
from avarc_cli.zoo.cards import check_captions

UNBOUND = LabelSpace("captions", (), ())
"""The classes of a model of captions that was given none."""


@dataclass(frozen=True, kw_only=True)
class CaptionChoice:
    """Which captions a model of captions chooses from; the fields of `loading.ModelSpec` about them."""

    captions: str | Path | None = None
    templates: tuple[str, ...] = ()
    template_names: tuple[str, ...] = ()
    text_encoder: str | Path | None = None
    aesthetic_score: float | None = None

    @property
    def is_given(self) -> bool:
        """Whether there are any."""
        return self.captions is not None or bool(self.templates)

    def read(self) -> Captions:
        """The captions. Raises: UsageError as `text.captions`."""
        return caption_sets.choose(self.captions, self.templates, self.template_names)


@dataclass(frozen=True, kw_only=True)
class BoundCaptions:
    """The captions that a model was bound to."""

    captions: Captions
    """The candidates, in the order of the class ids."""
    encoder: dict[str, str]
    """Name and sha256 of the text encoder; of a file of features the name, as far as it tells."""
    aesthetic_score: float | None = None
    """Of the images that the captions describe, if the user named one."""
    notes: tuple[str, ...] = ()
    """What is to be said to the user."""
    guidance_RTD: Tensor | None = None
    """Features that decoders of TA-TiTok read; None where the encoder gives none."""
    empty_guidance_TD: Tensor | None = None
    """Of the empty caption."""

    def protocol(self) -> dict[str, Any]:
        """What results depend on, for run.json. The captions' names are among the candidates there."""
        chosen = self.captions
        recorded: dict[str, Any] = {"sha256": chosen.digest, "count": len(chosen.texts), "encoder": self.encoder}
        recorded |= {} if self.aesthetic_score is None else {"aesthetic_score": self.aesthetic_score}
        recorded |= {"templates": list(chosen.templates)} if chosen.templates else {}
        return recorded | ({"rule": RULE} if chosen.has_several else {})

    def stream(self, candidate: int) -> int:
        """A digest of a candidate's captions, on which the random numbers of its pictures depend."""
        own = [t for t, owner in zip(self.captions.texts, self.captions.candidate, strict=True) if owner == candidate]
        return int.from_bytes(hashlib.sha256("\n".join(own).encode()).digest()[:8], "little")

    def guidance(self, candidates: Sequence[int]) -> Tensor | None:
        """What a decoder that reads captions needs for pictures of these candidates, (B, T, D): the features of each
        one's first caption; None where the encoder gives none.
        """
        if self.guidance_RTD is None:
            return None
        first = {owner: row for row, owner in reversed(list(enumerate(self.captions.candidate)))}
        return self.guidance_RTD[[first[candidate] for candidate in candidates]]


def bind(
    model: LikelihoodModel, choice: CaptionChoice, name: str, device: torch.device, progress: StartProgress = silent
) -> tuple[LikelihoodModel, BoundCaptions]:
    """A model of captions with these captions for classes.

    The text encoder is loaded if the captions were not encoded before, and freed before this returns.

    Args:
        name: of the model, for messages. progress: opens the bar of encoding.
    Raises: UsageError for captions or features that the model cannot read, for a model of classes, and as
        `text.captions.read`; AvarcError for a text encoder that is not on this machine.
    """
    check_captions(name, reads_captions=model.text is not None, captions=choice.is_given)
    assert model.text is not None
    chosen = choice.read()
    notes = [_same(chosen)] if chosen.same else []
    if chosen.features is not None:
        features, _ = feature_file.load(chosen.features)
        encoder = {"name": features.encoder}
    else:
        found = encoders.find(choice.text_encoder or model.text.encoder)
        encoders.check_kind(found, model.text.encoder, name)
        encoded = encoders.encode_once(found, chosen.texts, device, progress)
        features, encoder = encoded.features, found.protocol()
        notes += [note] if (note := encoded.note(found.positions)) else []
    if chosen.has_several:
        notes.append(f"scores are means over captions: {len(chosen.texts):,} of {counted(len(chosen), 'candidate')}")
    features.check(model.text, name)
    bound = model.with_captions(features, aesthetic_score=choice.aesthetic_score)
    likelihood = MeanOfCaptions(bound, chosen.candidate) if chosen.has_several else bound
    return likelihood, BoundCaptions(
        captions=chosen,
        encoder=encoder,
        aesthetic_score=choice.aesthetic_score,
        notes=tuple(notes),
        guidance_RTD=features.guidance_RTD,
        empty_guidance_TD=_of_empty(features),
    )


def _of_empty(features: CaptionFeatures) -> Tensor | None:
    empty = features.empty
    return None if empty is None or empty.guidance_RTD is None else empty.guidance_RTD[0]


def _same(chosen: Captions) -> str:
    pairs = chosen.same
    shown = " and ".join(pairs[0])
    more = f", and {len(pairs) - 1} more" if len(pairs) > 1 else ""
    return f"{shown} have the same caption{more}: no image can tell them apart"
