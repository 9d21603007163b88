"""The BERT (arXiv:1810.04805) of the smaller published MaskGITs of TiTok's tokens, under its published keys.

Shapes: P sequences, T positions, L tokens, C width.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from avarc_cli.layers.dropout import Dropout
from avarc_cli.layers.gelu import linear_gelu
from avarc_cli.layers.linears import linear
from avarc_cli.layers.precision import Precision
from avarc_cli.models.masked.attention import attend
from avarc_cli.models.maskgit.config import MaskGITConfig
from avarc_cli.models.maskgit.network import MaskedTransformer

EPS = 1e-12


class Dense(nn.Module):
    """A linear and, at the end of a branch, the norm of the sum of the branch's input and output."""

    def __init__(self, c_in: int, c_out: int, *, norm: bool = True) -> None:
        super().__init__()
        self.dense = nn.Linear(c_in, c_out)
        self.LayerNorm = nn.LayerNorm(c_out, EPS) if norm else None
        self.drop = Dropout()


class QKV(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))


class Attention(nn.Module):
    def __init__(self, c: MaskGITConfig) -> None:
        super().__init__()
        self.self, self.output = QKV(c.width), Dense(c.width, c.width)


class Block(nn.Module):
    """Norms come after the branches, on the sum of input and output."""

    def __init__(self, c: MaskGITConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.attention = Attention(c)
        self.intermediate, self.output = Dense(c.width, c.hidden, norm=False), Dense(c.hidden, c.width)

    def forward(self, x: Tensor, precision: Precision) -> Tensor:
        """The residual stream (P, T, C) float32 after the block."""
        low, qkv = x.to(precision.activations), self.attention.self
        q, k, v = (linear(layer, low) for layer in (qkv.query, qkv.key, qkv.value))
        end = self.attention.output
        x = _add(end, x, attend(q, k, v, self.heads, precision, end.drop))
        y = linear_gelu(self.intermediate.dense, x.to(precision.activations), approximate="none")
        return _add(self.output, x, y)


def _add(end: Dense, x: Tensor, y: Tensor) -> Tensor:
    assert end.LayerNorm is not None
    normed: Tensor = end.LayerNorm(x + end.drop(linear(end.dense, y)))
    return normed


class Embeddings(nn.Module):
    def __init__(self, c: MaskGITConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(c.first_class + c.num_classes + 1, c.width)
        self.position_embeddings = nn.Embedding(c.positions, c.width)
        self.token_type_embeddings = nn.Embedding(2, c.width)
        self.LayerNorm, self.drop = nn.LayerNorm(c.width, EPS), Dropout()

    def forward(self, ids_PT: Tensor) -> Tensor:
        # Everything is of type 0; the published tables have a row for a second one.
        position_TC = self.position_embeddings.weight + self.token_type_embeddings.weight[0]
        embedded: Tensor = self.drop(self.LayerNorm(self.word_embeddings(ids_PT) + position_TC))
        return embedded


class Encoder(nn.Module):
    def __init__(self, c: MaskGITConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(c) for _ in range(c.depth))


class Bert(MaskedTransformer):
    linears = (
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    )
    table = "embeddings.word_embeddings.weight"
    prefix = "model."

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__(config)
        self.embeddings, self.encoder = Embeddings(config), Encoder(config)
        self.lm_head = nn.Linear(config.width, config.vocab_size)

    @property
    def words(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    @property
    def head(self) -> nn.Linear:
        return self.lm_head

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from ((f"encoder.layer.{i}", block) for i, block in enumerate(self.encoder.layer))

    def hidden(self, class_id_P: Tensor, ids_PL: Tensor) -> Tensor:
        x = self.embeddings(self.ids(class_id_P, ids_PL))
        for block in self.encoder.layer:
            x = block(x, self.precision)
        return x[:, 1:]
