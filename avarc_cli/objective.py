"""What a step of training minimizes, as recipes tell it to the families of models.

Shapes: B sequences, L tokens, N predictions, V codes, D blocks, M tries of a token, Z channels of a token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from avarc_cli.errors import UsageError
from avarc_cli.layers.rows import Rows


class Stage(NamedTuple):
    """A stage of progressive training."""

    segments: int
    """That are trained, from the first on."""
    newest: float
    """Weight of the last of them, in (0, 1]; the others weigh 1."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a recipe says of the loss of one step; a family states which fields concern it (`trained_with`)."""

    permuted: float = 1.0  # probability that a sequence is trained in a random order
    smoothing: float = 0.0  # of the labels
    visible: float = 0.0  # weight of visible tokens; hidden ones weigh 1
    dropout: float = 0.0  # of activations (`layers.dropout`)
    drop_path: float = 0.0  # fraction of sequences that skip a branch of the last block, rising from 0 at the first
    stage: Stage | None = None  # None where everything is trained

    def check(self, trained_with: Collection[str], model: str) -> None:
        """Raises: UsageError for a field other than its default that the model does not use."""
        default = Objective()
        for name in ("smoothing", "visible", "dropout", "drop_path", "stage"):
            if name not in trained_with and getattr(self, name) != getattr(default, name):
                option = "progressive training" if name == "stage" else name
                raise UsageError(f"{option} is not for {model}", "its training has no such thing", "leave it out")


class Draw(NamedTuple):
    """What is random in the loss of one step, apart from the data."""

    order_BL: Tensor | None = None
    """int64: element j is the position that is scored j-th; None for the order of the positions."""
    hidden_BL: Tensor | None = None
    """bool: the tokens that are hidden, in models of hidden tokens."""
    kept_D2B: Tensor | None = None
    """bool: whether a sequence takes a block's attention and its MLP; None where none skips any."""
    all_hidden_BL: Tensor | None = None
    """`hidden_BL` of the whole batch, where this is the draw of a part of it; else None."""
    step_BLM: Tensor | None = None
    """int64: the steps of a diffusion at which each token is tried."""
    noise_BLMZ: Tensor | None = None
    """Standard normal, of these tries."""

    def take(self, rows: Rows) -> Draw:
        """What is random in the loss of these rows, of a draw for the whole batch."""
        if len(rows) == rows.of:
            return self
        return Draw(
            order_BL=None if self.order_BL is None else rows.take(self.order_BL),
            hidden_BL=None if self.hidden_BL is None else rows.take(self.hidden_BL),
            kept_D2B=None if self.kept_D2B is None else self.kept_D2B[..., rows.start : rows.stop],
            all_hidden_BL=self.hidden_BL,
            step_BLM=None if self.step_BLM is None else rows.take(self.step_BLM),
            noise_BLMZ=None if self.noise_BLMZ is None else rows.take(self.noise_BLMZ),
        )


class StepLoss(NamedTuple):
    """The loss of one step."""

    mean: Tensor
    """Nats a token where tokens are codes, with gradients."""
    accuracy: Tensor
    """Share of the predicted tokens that were the likeliest, without gradients; 0 for continuous tokens."""
    shown: Mapping[str, float] | None = None
    """What to show of the loss; None for bits a token."""


def token_losses(logits_NLV: Tensor, tokens_NL: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, and whether the token is the likeliest, both (N, L)."""
    rows, targets = logits_NLV.flatten(0, 1), tokens_NL.flatten()
    losses = F.cross_entropy(rows, targets, reduction="none", label_smoothing=smoothing)
    return losses.view_as(tokens_NL), logits_NLV.detach().argmax(-1) == tokens_NL
