"""A small text encoder: a transformer over words, each of which is the sum of its pieces (arXiv:1607.04606).

It serves models that are trained on a few kinds of captions, such as the embedded `digits-captions`. It knows the words
that it was trained on and, by their pieces, words that are spelled alike; any other word means little to it.
Shapes: R captions, T positions, K pieces of a word, D channels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from avarc_cli.layers.state_dict import build, shape_of
from avarc_cli.layers.vision_transformer import Block

FAMILY = "small-text"
TITLE = "small text encoder"
SIGNATURE = ("pieces.weight", "places.weight", "norm.weight")
"""Keys of tensors that every file of it has."""
HEAD_WIDTH = 16
PIECES = 16  # K; longer words lose their last pieces
NOTHING = 0  # in place of a piece
END = 1  # the one piece of the position behind the last word; so an empty caption has a position too
FIRST = 2  # piece of words


@dataclass(frozen=True, kw_only=True)
class SmallTextConfig:
    """Shape of a small text encoder."""

    positions: int  # T: words and the end of a caption
    pieces: int  # rows of the table that pieces of words are hashed to
    width: int  # D, a multiple of HEAD_WIDTH
    depth: int  # blocks


class SmallTextEncoder(nn.Module):
    """words -> sum of their pieces' embeddings, and places -> blocks that see the whole caption -> norm."""

    def __init__(self, config: SmallTextConfig) -> None:
        super().__init__()
        self.config = config
        self.pieces = nn.EmbeddingBag(config.pieces, config.width, mode="mean", padding_idx=NOTHING)
        self.places = nn.Embedding(config.positions, config.width)
        heads = config.width // HEAD_WIDTH
        self.blocks = nn.ModuleList(Block(config.width, heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.places.weight, std=0.1)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], source: str) -> SmallTextEncoder:
        """The encoder that these tensors make up, in evaluation mode. Raises: CheckpointError naming `source`."""
        positions, width = shape_of(tensors, "places.weight", 2, source=source, expected=TITLE)
        pieces, _ = shape_of(tensors, "pieces.weight", 2, source=source, expected=TITLE)
        depth = 0
        while f"blocks.{depth}.ln_1.weight" in tensors:
            depth += 1
        config = SmallTextConfig(positions=positions, pieces=pieces, width=width, depth=depth)
        return build(lambda: cls(config), tensors, source=source, expected=TITLE)

    def forward(self, ids_RTK: Tensor, length_R: Tensor, first: int = 0) -> Tensor:
        """Features (R, T, D), zero behind the end of each caption.

        Args:
            first: place of the first word; in training it varies, so that few captions teach every place.
        """
        count = ids_RTK.shape[1]
        inside_RT = torch.arange(count, device=ids_RTK.device) < length_R[:, None]
        words = self.pieces(ids_RTK.flatten(0, 1)).unflatten(0, ids_RTK.shape[:2])
        x = words + self.places.weight[first : first + count]
        for block in cast("list[Block]", list(self.blocks)):
            x = block(x, inside_RT[:, None, None])
        return self.norm(x) * inside_RT[..., None]

    def ids(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Pieces of each word and the end, (R, T', K) int64 with T' <= T, and how many positions count, (R,) int64.

        What does not fit into T positions is cut.
        """
        rows = [[*map(self._pieces_of, _words(text)[: self.config.positions - 1]), [END]] for text in captions]
        length_R = torch.tensor([len(row) for row in rows])
        ids_RTK = torch.full((len(rows), int(length_R.max()), PIECES), NOTHING)
        for r, row in enumerate(rows):
            for t, pieces in enumerate(row):
                ids_RTK[r, t, : len(pieces)] = torch.tensor(pieces)
        return ids_RTK, length_R

    def _pieces_of(self, word: str) -> list[int]:
        """Rows of the word itself and of its runs of three letters."""
        marked = f"<{word}>"
        runs = [marked[i : i + 3] for i in range(len(marked) - 2)]
        texts = dict.fromkeys([marked, *runs][:PIECES])
        return [FIRST + zlib.crc32(text.encode()) % (self.config.pieces - FIRST) for text in texts]


def _words(caption: str) -> list[str]:
    """The words and other marks of a caption, without differences of case."""
    return re.findall(r"\w+|[^\w\s]", caption.casefold())
