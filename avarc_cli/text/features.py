"""What generators of captions read: the features of captions, as a text encoder gives them.

Shapes: R captions, T positions, D channels of a position, E channels of a whole caption.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from avarc_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """Which features a generator reads."""

    encoder: str
    """Name of the text encoder that it was trained with (`text.encoders`)."""
    positions: int
    """T; longer captions are cut."""
    width: int
    """D."""
    pooled_width: int = 0
    """E; 0 where it reads no vector of the whole caption."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionFeatures:
    """The features of R captions."""

    captions: tuple[str, ...]
    """(R,) as the user wrote them."""
    sequence_RTD: Tensor
    """float32; positions from `length_R` on are padding."""
    length_R: Tensor
    """int64, in [1, T]."""
    pooled_RE: Tensor | None = None
    """float32."""
    encoder: str = ""
    """Name of the text encoder; "" where it is not known."""
    empty: CaptionFeatures | None = None
    """Of the empty caption alone; None where it was not encoded."""

    def __len__(self) -> int:
        return len(self.captions)

    def check(self, wanted: TextInput, model: str) -> None:
        """Raises: UsageError where a generator of this name does not read such features."""
        what, fix = f"{model} cannot read these captions", f"encode them with {wanted.encoder}: avarc captions encode"
        if self.encoder and self.encoder != wanted.encoder:
            raise UsageError(what, f"{self.encoder} encoded them, it reads {wanted.encoder}", fix)
        width = self.sequence_RTD.shape[2]
        if width != wanted.width:
            raise UsageError(what, f"their features have {width} channels, it reads {wanted.width}", fix)
        pooled = 0 if self.pooled_RE is None else self.pooled_RE.shape[1]
        if wanted.pooled_width and pooled != wanted.pooled_width:
            has = f"{pooled} channels" if pooled else "none"
            raise UsageError(what, f"it reads {wanted.pooled_width} channels of a whole caption; they have {has}", fix)
