"""How similar images are to their originals: PSNR and SSIM.

Shapes: B images, H pixels a side.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RANGE = 255.0
WINDOW, SIGMA = 11, 1.5
"""Width of SSIM's window, and the standard deviation of its weights, in pixels."""

_C1, _C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2


def psnr(images_BHH3: np.ndarray, others_BHH3: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of uint8 images in dB, (B,); of equal ones as if one value were off by one."""
    error_B = np.square(images_BHH3.astype(np.float64) - others_BHH3).reshape(len(images_BHH3), -1).mean(axis=1)
    ratio_B: np.ndarray = 10 * np.log10(RANGE**2 / error_B.clip(min=1 / images_BHH3[0].size))
    return ratio_B


@torch.inference_mode()
def ssim(images_BHH3: np.ndarray, others_BHH3: np.ndarray) -> np.ndarray:
    """Structural similarity of uint8 images (Wang et al. 2004), (B,), in the mean over RGB and all whole windows.

    A Gaussian window of 11 pixels, K1 = 0.01, K2 = 0.03, range 255: scikit-image's `structural_similarity` with
    gaussian_weights and without use_sample_covariance.

    Raises: ValueError for images smaller than the window.
    """
    if images_BHH3.shape[1] < WINDOW:
        raise ValueError(f"SSIM needs images of {WINDOW} pixels a side, these have {images_BHH3.shape[1]}")
    x, y = (torch.from_numpy(each).permute(0, 3, 1, 2).double() for each in (images_BHH3, others_BHH3))
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * cov + _C2) / (var_x + var_y + _C2)
    return (luminance * structure).mean(dim=(1, 2, 3)).numpy()


def _blur(x_B3HH: Tensor) -> Tensor:
    """Weighted means over the windows that lie inside the image."""
    places = torch.arange(WINDOW, dtype=x_B3HH.dtype) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    rows = x_B3HH.unfold(2, WINDOW, 1) @ weights
    return rows.unfold(3, WINDOW, 1) @ weights
