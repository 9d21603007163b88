"""Tokens back to images, and pixels to and from what tokenizers read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from avarc_cli.tokenizer import Tokenizer


@torch.inference_mode()
def reconstruct(tokenizer: Tokenizer, tokens_NSL: np.ndarray) -> np.ndarray:
    """The images of tokens (N, S, L), as pixels (N, S, H, H, 3) uint8; decoded one image at a time.

    Continuous tokens are (N, S, L, Z) float32. Raises: UsageError for a decoder that needs a caption.
    """
    kept = tokens_NSL.astype(np.float32 if tokenizer.channels else np.int64)
    images = [tokenizer.decode(torch.from_numpy(tokens_SL)) for tokens_SL in kept]
    return to_pixels(torch.stack(images))


def from_pixels(pixels_HW3: np.ndarray) -> torch.Tensor:
    """Pixels (..., H, W, 3) uint8 as images (..., 3, H, W) float32 in [-1, 1], channels last in memory."""
    return torch.from_numpy(pixels_HW3).movedim(-1, -3).float().div_(255).mul_(2).sub_(1)


def to_pixels(images_3HW: torch.Tensor, rounding: str = "nearest") -> npt.NDArray[np.uint8]:
    """Decoded images (..., 3, H, W) in [-1, 1] as pixels (..., H, W, 3) uint8.

    Args:
        rounding: "nearest"; or as models' own samplers round, "truncate" or "half-up" (assets/sampling/paper.toml).
    """
    if rounding == "half-up":
        values = images_3HW.mul(127.5).add(128)  # in this order: LlamaGen's, with its rounding
    else:
        values = images_3HW.add(1).mul(127.5)
        values = values.round() if rounding == "nearest" else values
    pixels: npt.NDArray[np.uint8] = values.clamp(0, 255).to(torch.uint8).movedim(-3, -1).cpu().numpy()
    return pixels
