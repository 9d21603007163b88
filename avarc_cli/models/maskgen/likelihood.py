"""MaskGen VQ behind the LikelihoodModel interface (`masked.likelihood`).

Shapes: B images, P pairs, L tokens, C width, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli.layers.precision import inference
from avarc_cli.models.masked.likelihood import MaskedCodes
from avarc_cli.models.masked.loss import masked_loss, random_masks
from avarc_cli.models.maskgen.captioned import CaptionedLikelihood, CaptionTable
from avarc_cli.models.maskgen.config import MaskGenConfig
from avarc_cli.models.maskgen.network import MaskGen
from avarc_cli.models.maskgen.sampling import SCHEDULE, sample
from avarc_cli.objective import Draw, Objective, StepLoss
from avarc_cli.text.features import CaptionFeatures


class MaskGenLikelihood(CaptionedLikelihood, MaskedCodes):
    """log p(codes of a block | codes of the blocks before, caption), for any order cut into `steps` blocks."""

    family = "maskgen"
    trained_with = frozenset({"smoothing", "visible"})
    default_guidance = SCHEDULE.guidance
    sampler = SCHEDULE.settings
    transformer: MaskGen
    config: MaskGenConfig

    def __init__(
        self, network: MaskGen, steps: int | None = None, *, unsmooth: float = 0.0, table: CaptionTable | None = None
    ) -> None:
        super().__init__(network, steps, unsmooth=unsmooth, table=table)
        self.mask = self.config.mask
        self.flops_per_token += 2 * self.config.width * self.config.vocab_size

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def kernels(self) -> str:
        return self.transformer.kernels

    @property
    def head(self) -> tuple[Tensor, None]:
        return self.transformer.codes, None

    def hidden(self, class_id_P: Tensor, ids_PL: Tensor) -> Tensor:
        return self.transformer.hidden(self.captions, class_id_P, ids_PL)

    @inference
    def sample(
        self,
        class_id_B: Tensor,
        *,
        generators: Sequence[torch.Generator],
        guidance: float = SCHEDULE.guidance,
        top_k: int = 0,
        top_p: float = 0.0,
    ) -> Tensor:
        """As `LikelihoodModel.sample`, by the reference's sampler, which is not p(x | caption) even without guidance.

        Raises: UsageError for guidance without the features of the empty caption.
        """
        return sample(
            self.transformer,
            self.captions,
            class_id_B,
            self.unconditional,
            SCHEDULE,
            generators,
            guidance,
            top_k,
            top_p,
        )

    def draw(self, count: int, objective: Objective, generator: torch.Generator) -> Draw:
        """Codes that are hidden."""
        return Draw(hidden_BL=random_masks(count, self.config.num_tokens, generator))

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
        """The cross-entropy of the hidden codes, given the others; a dropped caption is the empty one.

        Raises: as `trained_captions`.
        """
        assert draw.hidden_BL is not None, "of another model"
        hidden_BL = draw.hidden_BL.to(self.device)
        tokens_BL, row_B = tokens_BL.to(self.device), torch.arange(len(tokens_BL), device=self.device)
        captions = self.trained_captions(features, dropped_B, score_B)
        logits_BLV = self.transformer.logits(captions, row_B, tokens_BL.masked_fill(hidden_BL, self.mask))
        loss = masked_loss(
            logits_BLV,
            tokens_BL,
            hidden_BL,
            smoothing=objective.smoothing,
            visible=objective.visible,
            counted=draw.all_hidden_BL,
        )
        return loss._replace(mean=self.with_unread(loss.mean))

    def checkpoint_metadata(self) -> dict[str, str]:
        return super().checkpoint_metadata() | {"codebook_size": str(self.config.vocab_size)}
