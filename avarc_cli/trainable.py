"""The interfaces between training on one side, and families of generators on the other.

Shapes: B token sequences, L tokens, V codes, C channels of a class embedding.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.likelihood import NetworkModel
from avarc_cli.objective import Draw, Objective, StepLoss, token_losses
from avarc_cli.text.features import CaptionFeatures


class CaptionTrainableModel(NetworkModel):
    """A likelihood model of captions whose weights can be trained."""

    @abstractmethod
    def caption_loss(
        self,
        tokens_BL: Tensor,
        features: CaptionFeatures,
        dropped_B: Tensor,
        objective: Objective,
        draw: Draw,
        *,
        score_B: Tensor | None = None,
    ) -> StepLoss:
        """What a step of training minimizes.

        Args:
            features: of one caption for each image.
            dropped_B: bool, the images that are trained on as unconditional.
            draw: of `draw`.
            score_B: the images' aesthetic scores, for a model that is given one; None for its default.
        """


class TrainableModel(NetworkModel):
    """A likelihood model of classes whose weights can be trained, and to which classes can be added.

    In its network, class id `num_classes` is the unconditional class.
    """

    @abstractmethod
    def with_network(self, network: nn.Module) -> TrainableModel:
        """The same model with another network of this family, such as a copy or one of `one_class_network`."""

    @abstractmethod
    def token_log_prob(self, tokens_BL: Tensor, class_id_B: Tensor, order_BL: Tensor | None = None) -> Tensor:
        """log p(token | before, class) in nats, (B, L), with gradients.

        Args:
            order_BL: as for `begin`. The result is in the order of scoring.
        Raises: UsageError for a model in 8 bits, whose products have no gradients.
        """

    @abstractmethod
    def training_loss(self, tokens_BL: Tensor, class_id_B: Tensor, objective: Objective, draw: Draw) -> StepLoss:
        """What a step of training minimizes.

        Args:
            draw: of `draw`.
        """

    @abstractmethod
    def class_embedding(self, class_id: int) -> Tensor:
        """A class's row (C,) in the table of class embeddings."""

    @abstractmethod
    def low_rank_targets(self, method: str) -> dict[str, tuple[int, int]]:
        """Linears of the network that a low-rank method changes: name -> (out, in).

        Args:
            method: "adaln", the linears that turn a class into a modulation; "lora", those of attention and MLP.
        """

    @abstractmethod
    def one_class_network(self, row_C: nn.Parameter) -> nn.Module:
        """A network with the one class 0, whose embedding is `row_C`. It shares every other tensor with this one."""

    @abstractmethod
    def finish_network(self, network: nn.Module) -> nn.Module:
        """Give a network of `one_class_network`, once its linears have changed, this model's precision and kernels."""

    @abstractmethod
    def with_more_classes(self, count: int) -> TrainableModel:
        """A copy with classes added before the unconditional one; each starts as the mean of the old embeddings."""


class AutoregressiveModel(TrainableModel):
    """One whose log p of all tokens takes one pass, and is what training maximizes."""

    @abstractmethod
    def token_logits(
        self, tokens_BL: Tensor, class_id_B: Tensor, order_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, L, V), and the tokens (B, L) that they predict, in the order of scoring; as `token_log_prob`."""

    def token_log_prob(self, tokens_BL: Tensor, class_id_B: Tensor, order_BL: Tensor | None = None) -> Tensor:
        logits_BLV, target_BL = self.token_logits(tokens_BL, class_id_B, order_BL)
        return -F.cross_entropy(logits_BLV.flatten(0, 1), target_BL.flatten(), reduction="none").view_as(target_BL)

    def training_loss(self, tokens_BL: Tensor, class_id_B: Tensor, objective: Objective, draw: Draw) -> StepLoss:
        """The mean of -log p(token | before, class)."""
        order_BL = None if draw.order_BL is None else draw.order_BL.to(tokens_BL.device)
        logits_BLV, target_BL = self.token_logits(tokens_BL, class_id_B, order_BL)
        losses_BL, correct_BL = token_losses(logits_BLV, target_BL, objective.smoothing)
        return StepLoss(losses_BL.mean(), correct_BL.float().mean())
