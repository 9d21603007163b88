"""Inception Score, and improved precision and recall, of features that a network gave.

Shapes: N generated images, R real ones, D features, V outputs of the network.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avarc_cli.layers.precision import tf32

PART = 5000
"""Images of a part, for the Inception Score."""

NEIGHBOURS = 3
ROWS = 1000  # whose distances to all others are in memory at once: 200 MB for 50,000 images


def inception_score(features_ND: np.ndarray, weights_DV: np.ndarray, part: int = PART) -> tuple[float, float]:
    """Inception Score (arXiv:1606.03498), as ADM's evaluator computes it: without the bias of the outputs.

    The images are divided into parts of consecutive ones, the last of which may be smaller.

    Returns: exp of the mean divergence of p(output | image) from its mean over the part, in the mean over the parts;
        and by how many nats the outputs differ more between images of all parts than of one. That is about 0 unless
        the images come sorted by class, which lowers the score.
    """
    weights = torch.from_numpy(np.ascontiguousarray(weights_DV, dtype=np.float32))
    scores, marginals, sizes = [], [], []
    for start in range(0, len(features_ND), part):
        logits_nV = torch.from_numpy(features_ND[start : start + part]).float() @ weights
        log_p_nV = logits_nV.double().log_softmax(dim=1)
        mean_V = log_p_nV.exp().mean(dim=0)
        divergence = (log_p_nV.exp() * (log_p_nV - mean_V.log())).sum(dim=1).mean()
        scores.append(divergence.exp().item())
        marginals.append(mean_V)
        sizes.append(len(logits_nV))
    marginals_KV, share_K = torch.stack(marginals), torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    spread = _entropy(share_K @ marginals_KV) - (share_K * _entropy(marginals_KV)).sum()
    return sum(scores) / len(scores), spread.item()


def _entropy(p_V: Tensor) -> Tensor:
    entropy: Tensor = -torch.special.xlogy(p_V, p_V).sum(dim=-1)
    return entropy


@torch.inference_mode()
def precision_recall(
    real_RD: np.ndarray, generated_ND: np.ndarray, *, neighbours: int = NEIGHBOURS, device: torch.device | None = None
) -> tuple[float, float]:
    """Improved precision and recall (arXiv:1904.06991), with distances in float32; ADM's evaluator has float16.

    A ball around each point of a set reaches to the third nearest other point of the set. Precision is the share of
    generated images inside a ball of the real ones; recall is the share of real ones inside a ball of the generated.

    Raises: ValueError where a set has too few images for this many neighbours.
    """
    if min(len(real_RD), len(generated_ND)) <= neighbours:
        raise ValueError(f"precision and recall need more than {neighbours} images of each kind")
    center_D = real_RD.mean(axis=0, dtype=np.float64).astype(np.float32)  # distances stay, and their roundings shrink
    real, generated = (torch.from_numpy(each - center_D).float().to(device) for each in (real_RD, generated_ND))
    real_radii_R, generated_radii_N = (radii(points, neighbours) for points in (real, generated))
    return _share_inside(generated, real, real_radii_R), _share_inside(real, generated, generated_radii_N)


def radii(points_ND: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Squared distance of each point to its `neighbours`-th nearest other point, (N,)."""
    found = []
    for start in range(0, len(points_ND), ROWS):
        distances_nN = _distances(points_ND[start : start + ROWS], points_ND)
        own = torch.arange(len(distances_nN), device=points_ND.device)
        distances_nN[own, start + own] = torch.inf  # the point itself
        found.append(distances_nN.topk(neighbours, largest=False).values[:, -1])
    return torch.cat(found)


def _share_inside(points_ND: Tensor, centers_MD: Tensor, radii_M: Tensor) -> float:
    """Share of points inside at least one of the balls."""
    blocks = (points_ND[start : start + ROWS] for start in range(0, len(points_ND), ROWS))
    inside = sum((_distances(block, centers_MD) <= radii_M).any(dim=1).sum().item() for block in blocks)
    return inside / len(points_ND)


def _distances(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Squared distances, (N, M) float32."""
    with tf32(False):
        products_NM = a_ND @ b_MD.T
    return (a_ND.square().sum(1)[:, None] + b_MD.square().sum(1) - 2 * products_NM).clamp_(min=0)
