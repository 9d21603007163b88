"""A model whose scores are a table, with errors of a known size in its cheap variant: it scores thousands of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from avarc_cli.likelihood import LikelihoodModel

TOKENS = 6  # of an image; the first holds its number
ENDS = (1, 3, 6)


class PlantedModel(LikelihoodModel):
    """log p of segment k of sequence b under class c is table[b, c, k], on the segment's first token."""

    segment_ends = ENDS
    flops_per_token = 1

    def __init__(self, table_BNK: np.ndarray) -> None:
        """The last class is the unconditional one."""
        self.table_BNK = torch.from_numpy(table_BNK.astype(np.float32))
        self.num_classes = table_BNK.shape[1] - 1
        self.unconditional = self.num_classes
        self.scored = 0
        """Token log-probabilities so far."""

    def begin(
        self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None
    ) -> dict[str, Any]:
        return {"row": tokens_BL[sequence_P, 0], "class": class_id_P, "at": 0}

    def extend(self, state: dict[str, Any], stop: int, *, keep_cache_segments: int) -> Tensor:
        starts = (0, *ENDS)
        first, end = starts[state["at"]], starts[stop]
        log_prob_PT = torch.zeros(len(state["class"]), end - first)
        for k in range(state["at"], stop):
            log_prob_PT[:, starts[k] - first] = self.table_BNK[state["row"], state["class"], k]
        state["at"] = stop
        self.scored += log_prob_PT.numel()
        return log_prob_PT

    def select(self, state: dict[str, Any], keep_Q: Tensor) -> dict[str, Any]:
        return state | {"row": state["row"][keep_Q], "class": state["class"][keep_Q]}

    def fork(self, *args: Any) -> Any:
        raise NotImplementedError("no two samples begin alike")

    def sample(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError("nothing is sampled here")

    def bytes_per_token(self, *, cached: bool) -> int:
        return 1


def planted_tokens(images: int, samples: int) -> np.ndarray:
    """Tokens of these images (G, S, L): each sample is a row of the table of its own."""
    tokens = np.zeros((images, samples, TOKENS), dtype=np.int64)
    tokens[:, :, 0] = np.arange(images * samples).reshape(images, samples)
    return tokens
