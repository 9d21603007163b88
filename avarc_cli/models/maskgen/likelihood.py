"""MaskGen VQ behind the LikelihoodModel interface (`masked.likelihood`).

Shapes: B images, P pairs, L tokens, C width, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli.layers.precision import inference
from avarc_cli.models.masked.likelihood import MaskedCodes
from avarc_cli.models.maskgen.captioned import CaptionedLikelihood, CaptionTable
from avarc_cli.models.maskgen.network import MaskGen
from avarc_cli.models.maskgen.sampling import SCHEDULE, sample


class MaskGenLikelihood(CaptionedLikelihood, MaskedCodes):
    """log p(codes of a block | codes of the blocks before, caption), for any order cut into `steps` blocks."""

    family = "maskgen"
    default_guidance = SCHEDULE.guidance
    transformer: MaskGen

    def __init__(
        self, network: MaskGen, steps: int | None = None, *, unsmooth: float = 0.0, table: CaptionTable | None = None
    ) -> None:
        super().__init__(network, steps, unsmooth=unsmooth, table=table)
        self.config = network.config
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
