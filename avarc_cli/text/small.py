"""A small text encoder: a transformer over words, each of which is the sum of its pieces (arXiv:1607.04606).

It serves models that are trained on a few kinds of captions, such as the included `digits-captions`. It knows the words
that it was trained on and, by their pieces, words that are spelled alike; any other word means little to it.
Shapes: R captions, T positions, K pieces of a word, D channels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from avarc_cli.errors import CheckpointError, first_line
from avarc_cli.layers.precision import tf32
from avarc_cli.layers.state_dict import build, shape_of
from avarc_cli.layers.vision_transformer import Block
from avarc_cli.text import hub_folder
from avarc_cli.text.encoder import TextEncoder

TITLE = "small text encoder"
MODEL_TYPE = "avarc-small-text"
"""In config.json."""
WEIGHTS = "model.safetensors"
Pieces: TypeAlias = tuple[int, ...]
"""Rows of the table of pieces, of one word or of a caption's end."""
HEAD_WIDTH = 16
PIECES = 16  # K; longer words lose their last pieces
NOTHING = 0  # in place of a piece
END: Pieces = (1,)  # behind the last word; so an empty caption has a position too
FIRST = 2  # piece of words


@dataclass(frozen=True, kw_only=True)
class SmallTextConfig:
    """Shape of a small text encoder."""

    positions: int  # T: words and the end of a caption
    pieces: int  # rows of the table that pieces of words are hashed to
    width: int  # D, a multiple of HEAD_WIDTH
    depth: int  # blocks


class SmallTextNetwork(nn.Module):
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

    def ids(self, captions: Sequence[Sequence[Pieces]]) -> tuple[Tensor, Tensor]:
        """Captions as `forward` reads them: (R, T, K) int64 with T of the longest, and their lengths, (R,) int64."""
        length_R = torch.tensor([len(words) for words in captions])
        ids_RTK = torch.full((len(captions), int(length_R.max()), PIECES), NOTHING)
        for r, words in enumerate(captions):
            for t, pieces in enumerate(words):
                ids_RTK[r, t, : len(pieces)] = torch.tensor(pieces)
        return ids_RTK, length_R


class SmallText(TextEncoder):
    """A trained encoder from a folder with config.json and weights."""

    def __init__(self, folder: Path, name: str, positions: int, device: torch.device) -> None:
        """Raises: CheckpointError for a folder that is not whole."""
        self.name, self.device = name, device
        self.sha256 = hub_folder.sha256_of(folder)
        try:
            tensors = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as problem:
            raise CheckpointError(f"'{folder}' holds no {TITLE}", f"{WEIGHTS}: {first_line(problem)}") from None
        config = _read_config(tensors, str(folder / WEIGHTS))
        network = build(lambda: SmallTextNetwork(config), tensors, source=str(folder / WEIGHTS), expected=TITLE)
        self.network, self.positions = network.to(device), min(positions, config.positions)

    def tokens(self, caption: str) -> list[Pieces]:
        return tokens(caption, self.network.config)

    def cut(self, ids: list[Pieces]) -> list[Pieces]:
        return ids if len(ids) <= self.positions else [*ids[: self.positions - 1], END]

    def encode(self, ids: Sequence[list[Pieces]]) -> dict[str, Tensor]:
        ids_RTK, length_R = self.network.ids(ids)
        with torch.inference_mode(), tf32(False):
            features_RTD = self.network(ids_RTK.to(self.device), length_R.to(self.device)).cpu()
        # Its training tells captions apart by this mean; positions behind the end are zero.
        return {
            "sequence": features_RTD,
            "pooled": features_RTD.sum(1) / length_R[:, None],
            "guidance": features_RTD,
        }


def tokens(caption: str, config: SmallTextConfig) -> list[Pieces]:
    """The pieces of each word of a caption, not cut, and its end. Words and marks do not differ by case."""
    words = re.findall(r"\w+|[^\w\s]", caption.casefold())
    return [*(_pieces_of(word, config.pieces) for word in words), END]


def _pieces_of(word: str, count: int) -> Pieces:
    """Rows of the word itself and of its runs of three letters, of a table with `count` rows."""
    marked = f"<{word}>"
    texts = dict.fromkeys([marked, *(marked[i : i + 3] for i in range(len(marked) - 2))])
    return tuple(FIRST + zlib.crc32(text.encode()) % (count - FIRST) for text in [*texts][:PIECES])


def _read_config(tensors: Mapping[str, Tensor], source: str) -> SmallTextConfig:
    """The shape of the encoder that these tensors make up. Raises: CheckpointError naming `source`."""
    positions, width = shape_of(tensors, "places.weight", 2, source=source, expected=TITLE)
    pieces, _ = shape_of(tensors, "pieces.weight", 2, source=source, expected=TITLE)
    depth = 0
    while f"blocks.{depth}.ln_1.weight" in tensors:
        depth += 1
    return SmallTextConfig(positions=positions, pieces=pieces, width=width, depth=depth)
