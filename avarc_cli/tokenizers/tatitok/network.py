"""TA-TiTok: a TiTok whose decoder also reads a caption (arXiv:2501.07730). Tokens do not depend on the caption.

Checkpoint-compatible with the published models. Letters as in `titok.network`; T tokens of a caption, D channels of
the text features.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.errors import UsageError
from avarc_cli.tokenizers.tatitok.config import ENCODER, TATiTokConfig
from avarc_cli.tokenizers.titok.network import Decoder, TiTok


class TextDecoder(Decoder):
    """The decoder, whose sequence ends with the caption."""

    def __init__(self, c: TATiTokConfig) -> None:
        super().__init__(c)
        width = c.decoder.width
        self.text_guidance_proj = nn.Linear(c.text_width, width)
        self.text_guidance_positional_embedding = nn.Parameter(width**-0.5 * torch.randn(c.text_length, width))

    def embed_text(self, text_BTD: Tensor) -> Tensor:
        """What follows the latents, (B, T, C)."""
        return self.text_guidance_proj(text_BTD) + self.text_guidance_positional_embedding


class TATiTok(TiTok):
    """The tokenizer. Images are float32 in [-1, 1]."""

    config: TATiTokConfig
    decoder: TextDecoder

    def __init__(self, config: TATiTokConfig) -> None:
        super().__init__(config)
        self.decoder = TextDecoder(config)
        # Of CLIP, the last hidden states of the text tower after its last norm, at all 77 positions.
        self.guidance = f"{config.text_encoder}:guidance"
        self._text: Tensor | None = None

    def checkpoint_metadata(self) -> dict[str, str]:
        """What the tensors do not tell."""
        return super().checkpoint_metadata() | {"text_encoder": self.config.text_encoder}

    def with_guidance(self, features: Tensor) -> TATiTok:
        """As `TokenizerNetwork.with_guidance`. Captions of other encoders than CLIP may end early: zeros follow."""
        expected = (self.config.text_length, self.config.text_width)
        missing = self.config.text_length - features.shape[-2]
        if missing > 0 and self.config.text_encoder != ENCODER:
            features = F.pad(features, (0, 0, 0, missing))
        if features.shape[-2:] != expected or features.ndim not in (2, 3):
            raise ValueError(f"text features {tuple(features.shape)}, expected are {expected} of each caption")
        guided = copy.copy(self)
        guided._text = features.float()
        return guided

    def decode(self, codes_BZ1L: Tensor, text_BTD: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, H), not clamped.

        Args:
            text_BTD: features of the captions; None for those of `with_guidance`.
        Raises: UsageError without any.
        """
        text = self._text if text_BTD is None else text_BTD
        if text is None:
            raise UsageError(
                "this tokenizer needs a caption to decode tokens",
                f"the decoder of a TA-TiTok reads text features ({self.guidance}) beside the tokens",
                "avarc cache head --caption TEXT gives it one; the empty caption is one, too",
            )
        beside = self.decoder.embed_text(text.to(codes_BZ1L)).expand(len(codes_BZ1L), -1, -1)
        return self._pixels(self.decoder(codes_BZ1L, beside))
