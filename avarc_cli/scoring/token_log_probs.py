"""Token log-probabilities of a few classes: what explanations, exports and calibrations look at.

Shapes: B images, K classes, L tokens, P pairs of image and class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avarc_cli.errors import AvarcError
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.engine import MAX_PAIRS, adapters


def token_log_probs(
    model: LikelihoodModel, tokens_BL: Tensor, class_ids_K: Sequence[int] | np.ndarray, tokens_per_batch: int
) -> npt.NDArray[np.float32]:
    """log p(token | tokens before, class) of every token under every class, in nats.

    Args:
        tokens_BL: int64, of the images. class_ids_K: the unconditional class may be among them.
        tokens_per_batch: tokens of all pairs of one forward pass; at least one pair is scored at a time.
    Returns: (B, K, L) float32.
    Raises: AvarcError when the model's numbers are not finite.
    """
    classes_K = np.asarray(class_ids_K, dtype=np.int64)
    segments, length = len(model.segment_ends), model.segment_ends[-1]
    pairs = min(MAX_PAIRS, max(1, tokens_per_batch // length))
    log_prob_BKL = np.empty((len(tokens_BL), len(classes_K), length), np.float32)
    adapter_K = adapters(model, classes_K)
    for adapter in np.unique(adapter_K):  # pairs of different adapters never share a batch
        image_P, class_P = np.indices((len(tokens_BL), int((adapter_K == adapter).sum()))).reshape(2, -1)
        class_P = np.flatnonzero(adapter_K == adapter)[class_P]
        for start in range(0, len(image_P), pairs):
            image, column = image_P[start : start + pairs], class_P[start : start + pairs]
            used, sequence = np.unique(image, return_inverse=True)
            state = model.begin(
                tokens_BL[torch.from_numpy(used)], torch.from_numpy(sequence), torch.from_numpy(classes_K[column])
            )
            log_prob_BKL[image, column] = model.extend(state, segments, hold=0).cpu().numpy()
    if not np.isfinite(log_prob_BKL).all():
        raise AvarcError(
            "the model gave a log-probability that is not a number",
            "low precisions overflow in large models",
            "use --precision bf16 or fp32",
        )
    return log_prob_BKL
