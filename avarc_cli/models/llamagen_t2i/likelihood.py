"""Text-conditional LlamaGen behind the LikelihoodModel interface: the classes are captions, the segments rows.

Shapes: B token sequences, P pairs, L tokens, T tokens of the rows at hand or positions of captions, R captions,
C width, D channels of the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.errors import UsageError
from avarc_cli.layers.kv_cache import Workspace
from avarc_cli.layers.precision import check_gradients, inference
from avarc_cli.models.llamagen.likelihood import LlamaGenState, RowLikelihood
from avarc_cli.models.llamagen_t2i.config import TEXT_ENCODER, CaptionLlamaGenConfig
from avarc_cli.models.llamagen_t2i.network import CaptionLlamaGen, Prefix
from avarc_cli.models.llamagen_t2i.sampling import sample
from avarc_cli.objective import Draw, Objective, StepLoss, token_losses
from avarc_cli.text.features import CaptionFeatures, TextInput
from avarc_cli.trainable import CaptionTrainableModel

GUIDANCE = 6.5  # of the published models, which the reference draws with scale 7.5, which is 1 + guidance


class CaptionLlamaGenLikelihood(RowLikelihood, CaptionTrainableModel):
    """log p(tokens of a row | rows before, caption), for any run of rows. Class id r is caption r.

    The unconditional class, id R, is the null caption of the checkpoint. Under the reference's mask it has as many
    positions as the caption that it is compared with, so log p(x | null) depends on that number. Here one column serves
    all captions: it has as many positions as the longest of them, and is the reference's where all are of one length.
    Guidance in `sample` takes the null caption at the length of each image's own caption.

    Attention runs through PyTorch's scaled_dot_product_attention with numbers that are added to the scores, whatever
    the kernels; in half precision log n is rounded like every other score.
    """

    family = "llamagen-t2i"
    gpt: CaptionLlamaGen
    config: CaptionLlamaGenConfig

    def __init__(
        self, network: CaptionLlamaGen, workspace: Workspace | None = None, captions: Prefix | None = None
    ) -> None:
        """captions: the R captions and, after them, the null caption; None for a model that has none yet."""
        super().__init__(network, workspace)
        self._captions = captions
        self.num_classes = 0 if captions is None else len(captions.length_R) - 1
        self.unconditional: int | None = None if captions is None else self.num_classes
        if self.config.text_encoder == TEXT_ENCODER:
            self.default_guidance = GUIDANCE
        self.text = TextInput(
            encoder=self.config.text_encoder, positions=self.config.positions, width=self.config.caption_width
        )

    @inference
    def with_captions(
        self, features: CaptionFeatures, *, aesthetic_score: float | None = None
    ) -> CaptionLlamaGenLikelihood:
        if aesthetic_score is not None:
            raise UsageError(
                "an aesthetic score is for models that are given one", "LlamaGen is given the caption only"
            )
        longest = int(features.length_R.max())
        if longest > self.config.positions:
            raise UsageError(
                "a caption is too long for this model",
                f"its features have {longest} positions, the model reads {self.config.positions}",
                f"cut captions to {self.config.positions} positions where they are encoded",
            )
        length_R = features.length_R.to(self.gpt.table_LJ2.device)
        null_1 = length_R.max()[None]
        parts = (
            self.gpt.prefix(features.sequence_RTD.to(length_R.device), length_R),
            self.gpt.prefix(self.gpt.null_features(null_1), null_1),
        )
        captions = Prefix(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
        return type(self)(self.gpt, self.workspace, captions)

    @property
    def captions(self) -> Prefix:
        """The captions and the null caption. Raises: ValueError for a model that has none yet."""
        if self._captions is None:
            raise ValueError("a model of captions has no classes before with_captions")
        return self._captions

    def _hidden(self, state: LlamaGenState, start: int, end: int) -> Tensor:
        captions_P = self.captions.rows(state.class_id_P)
        inputs = self._token_inputs(state.tokens_BL, state.order_BL, start, end).rows(state.sequence_P)
        hidden_PTC = self.gpt.hidden_after(captions_P, inputs, state.kv_cache)
        return hidden_PTC if start else torch.cat([captions_P.hidden_RC[:, None], hidden_PTC], dim=1)

    @inference
    def sample(
        self,
        class_id_B: Tensor,
        *,
        generators: Sequence[torch.Generator],
        guidance: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
    ) -> Tensor:
        captions_B = self.captions.rows(class_id_B.to(self.gpt.table_LJ2.device))
        return sample(self.gpt, captions_B, generators=generators, guidance=guidance, top_k=top_k, top_p=top_p)

    def caption_log_prob(self, tokens_BL: Tensor, features_BTD: Tensor, length_B: Tensor) -> Tensor:
        """log p(token | before, caption) in nats, (B, L), in one pass and with gradients; every sequence has a caption.

        Raises: UsageError for a model in 8 bits, whose products have no gradients.
        """
        logits = self._logits(tokens_BL, features_BTD, length_B).flatten(0, 1)
        return -F.cross_entropy(logits, tokens_BL.flatten(), reduction="none").view_as(tokens_BL)

    def _logits(self, tokens_BL: Tensor, features_BTD: Tensor, length_B: Tensor) -> Tensor:
        """Of the tokens, (B, L, V); as `caption_log_prob`."""
        gpt = self.gpt
        check_gradients(gpt.precision)
        captions_B = gpt.prefix(features_BTD, length_B, kernels="torch")
        inputs = self._token_inputs(tokens_BL, None, 0, tokens_BL.shape[1], kernels="torch")
        hidden_BTC = gpt.hidden_after(captions_B, inputs, kernels="torch")
        logits: Tensor = gpt.output(torch.cat([captions_B.hidden_RC[:, None], hidden_BTC], dim=1))
        return logits

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
        """The mean of -log p(token | before, caption); a dropped caption is the null one of the same length."""
        device = self.gpt.table_LJ2.device
        length_B = features.length_R.to(device)
        null_BTD = self.gpt.null_features(length_B)
        given_BTD = features.sequence_RTD.to(device)[:, : null_BTD.shape[1]]
        features_BTD = torch.where(dropped_B.to(device)[:, None, None], null_BTD, given_BTD)
        logits_BLV = self._logits(tokens_BL, features_BTD, length_B)
        losses_BL, correct_BL = token_losses(logits_BLV, tokens_BL, objective.smoothing)
        return StepLoss(losses_BL.mean(), correct_BL.float().mean())

    def checkpoint_metadata(self) -> dict[str, str]:
        return super().checkpoint_metadata() | {"text_encoder": self.config.text_encoder}

    def bytes_per_token(self, *, cached: bool) -> int:
        added = 0 if cached else self.segment_ends[-1] * self.precision.attention.itemsize  # to a position's scores
        return super().bytes_per_token(cached=cached) + added

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights, and of what is kept of captions."""
        captions = self._captions or ()
        return super().resident_bytes + sum(field.nbytes for field in captions)
