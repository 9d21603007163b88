"""The text tower of a CLIP as MaskGen and TA-TiTok use it: three features of a caption.

There is no mask: positions after the end of a caption are read like all others, so a caption always has 77 of them,
and what fills them counts. The reference fills them with id 0, other libraries with the end token.

Shapes: R captions, T positions, D channels of a position, E of a whole caption.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.precision import tf32
from avarc_cli.text import hub_folder
from avarc_cli.text.encoder import TextEncoder

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PADDING = 0
ACTIVATION = "quick_gelu"


class CLIP(TextEncoder):
    """`sequence`: the input of the last block; `pooled`: the projected state at the end token; `guidance`: the last
    states after the final norm.
    """

    def __init__(self, folder: Path, name: str, positions: int, device: torch.device) -> None:
        """Raises: UsageError without the packages, CheckpointError for a folder that is not whole."""
        hub_folder.need("transformers", "ftfy")
        from transformers import CLIPTextModelWithProjection

        self.name, self.positions, self.device = name, positions, device
        self.sha256 = hub_folder.sha256_of(folder)
        self.tokenizer = hub_folder.read_tokenizer(folder)
        self.begin, self.end = (hub_folder.token_id(self.tokenizer, token, folder) for token in (BEGIN, END))
        self.network = hub_folder.load_weights(CLIPTextModelWithProjection, folder).to(device)
        activation = self.network.config.hidden_act
        if activation != ACTIVATION:
            why = f"its activation is {activation}, that of OpenAI's CLIP {ACTIVATION}"
            raise CheckpointError(f"'{folder}' is another CLIP than generators were trained with", why)

    def tokens(self, caption: str) -> list[int]:
        ids = self.tokenizer.encode(_clean(caption), add_special_tokens=False).ids
        return [self.begin, *ids, self.end]

    def cut(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.positions else [*ids[: self.positions - 1], self.end]

    def length(self, ids: list[int]) -> int:
        return self.positions

    def encode(self, ids: Sequence[list[int]]) -> dict[str, Tensor]:
        ids_RT = torch.tensor([[*each, *[PADDING] * (self.positions - len(each))] for each in ids], device=self.device)
        at_R = torch.tensor([each.index(max(each)) for each in ids], device=self.device)  # of the end
        with torch.inference_mode(), tf32(False):
            found = self.network(input_ids=ids_RT, output_hidden_states=True)
            states = found.hidden_states  # the embeddings, then the output of each block
            normed_RTD = found.last_hidden_state
            end_RD = normed_RTD[torch.arange(len(ids), device=self.device), at_R]
            pooled_RE = self.network.text_projection(end_RD)
        made = {"sequence": states[-2], "pooled": pooled_RE, "guidance": normed_RTD}
        return {name: value.float().cpu() for name, value in made.items()}


def _clean(caption: str) -> str:
    """As OpenCLIP does before its tokenizer."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(text.split()).lower()
