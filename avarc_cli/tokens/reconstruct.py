"""Pictures of what tokens stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from avarc_cli.likelihood import Tokenizer


@torch.inference_mode()
def reconstruct(tokenizer: Tokenizer, tokens_NSL: np.ndarray) -> np.ndarray:
    """The images of tokens (N, S, L), one at a time, as pixels (N, S, H, H, 3) uint8."""
    images = [tokenizer.decode(torch.from_numpy(tokens_SL)) for tokens_SL in tokens_NSL.astype(np.int64)]
    pixels = torch.stack(images).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 1, 3, 4, 2).cpu().numpy()
