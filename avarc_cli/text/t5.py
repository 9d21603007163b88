"""The encoder of a T5 as LlamaGen uses it: cleaned captions, its last hidden states, padded on the right.

Shapes: R captions, T positions, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from avarc_cli.layers.precision import tf32
from avarc_cli.text import hub_folder
from avarc_cli.text.cleaner import clean
from avarc_cli.text.encoder import TextEncoder

END = "</s>"
PADDING = 0


class T5(TextEncoder):
    """Computes in float32, where the reference runs it in the generator's bfloat16."""

    def __init__(self, folder: Path, name: str, positions: int, device: torch.device) -> None:
        """Raises: UsageError without the packages, CheckpointError for a folder that is not whole."""
        hub_folder.need("transformers", "ftfy")
        from transformers import T5EncoderModel

        self.name, self.positions, self.device = name, positions, device
        self.sha256 = hub_folder.sha256_of(folder)
        self.tokenizer = hub_folder.read_tokenizer(folder)
        self.end = hub_folder.token_id(self.tokenizer, END, folder)
        self.network = hub_folder.load_weights(T5EncoderModel, folder).to(device)

    def tokens(self, caption: str) -> list[int]:
        return [*self.tokenizer.encode(clean(caption), add_special_tokens=False).ids, self.end]

    def cut(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.positions else [*ids[: self.positions - 1], self.end]

    def encode(self, ids: Sequence[list[int]]) -> dict[str, Tensor]:
        longest = max(map(len, ids))
        ids_RT = torch.tensor([[*each, *[PADDING] * (longest - len(each))] for each in ids], device=self.device)
        seen_RT = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in ids], device=self.device)
        with torch.inference_mode(), tf32(False):
            states = self.network(input_ids=ids_RT, attention_mask=seen_RT).last_hidden_state
        return {"sequence": states.float().cpu()}
