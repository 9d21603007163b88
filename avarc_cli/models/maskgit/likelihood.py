"""MaskGIT behind the LikelihoodModel interface (`masked.likelihood`).

Shapes: B token sequences, P pairs, L tokens, T tokens of a block, C width, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from avarc_cli.layers.class_rows import FirstRow, with_mean_rows
from avarc_cli.layers.low_rank import finished
from avarc_cli.layers.precision import Precision, check_gradients, inference
from avarc_cli.layers.stored import plain_state, stored_bytes
from avarc_cli.layers.weight_decay import ONE_D_TOKENIZER, decays_unless_named
from avarc_cli.likelihood import Known
from avarc_cli.models.masked.likelihood import MaskedCodes, visible
from avarc_cli.models.masked.loss import masked_loss, random_masks
from avarc_cli.models.maskgit.config import MaskGITConfig
from avarc_cli.models.maskgit.network import MaskedTransformer
from avarc_cli.models.maskgit.sampling import Schedule, sample
from avarc_cli.objective import Draw, Objective, StepLoss
from avarc_cli.trainable import TrainableModel

DEFAULT_STEPS = 8  # as many as the published samplers of 32 and 64 tokens take


class MaskGITLikelihood(MaskedCodes, TrainableModel):
    """log p(tokens of a block | tokens of the blocks before, class), for any order cut into `steps` blocks."""

    family = "maskgit"
    keeps_tokens = True
    uses_library = True
    trained_with = frozenset({"smoothing", "visible"})

    def __init__(self, network: MaskedTransformer, steps: int | None = None, *, unsmooth: float = 0.0) -> None:
        """Score this network.

        Args:
            steps: passes that an order is cut into; None for `DEFAULT_STEPS`, or fewer where there are fewer tokens.
            unsmooth: label smoothing that is undone (`undo_smoothing`).
        """
        self.unsmooth = unsmooth
        self.network = self.transformer = network
        self.config: MaskGITConfig = network.config
        length = self.config.num_tokens
        self.cut(length, min(DEFAULT_STEPS, length) if steps is None else steps)
        self.mask = self.config.mask
        self.num_classes = self.config.num_classes
        self.unconditional: int | None = self.config.num_classes
        head = 2 * self.config.width * self.config.vocab_size
        self.flops_per_token = self.steps * self.config.pass_flops // length + head
        self.schedule = Schedule.of_length(length)
        self.default_guidance, self.sampler = self.schedule.guidance, self.schedule.settings

    @property
    def precision(self) -> Precision:
        """What the blocks compute in."""
        return self.transformer.precision

    def with_steps(self, steps: int, *, unsmooth: float = 0.0) -> MaskGITLikelihood:
        return type(self)(self.transformer, steps, unsmooth=unsmooth)

    def evaluated(self, tokens: int) -> int:
        """All positions, whatever is scored."""
        return self.config.positions

    @property
    def kernels(self) -> str:
        return self.transformer.kernels

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        return self.transformer.head.weight, self.transformer.head.bias

    def hidden(self, class_id_P: Tensor, ids_PL: Tensor) -> Tensor:
        return self.transformer.hidden(class_id_P, ids_PL)

    @inference
    def sample(
        self,
        class_id_B: Tensor,
        *,
        generators: Sequence[torch.Generator],
        guidance: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
        known: Known | None = None,
    ) -> Tensor:
        """As `LikelihoodModel.sample`, by the reference's sampler, which is not p(x | class) even without guidance."""
        return sample(self.transformer, class_id_B, self.schedule, generators, guidance, top_k, top_p, known)

    def with_network(self, network: nn.Module) -> MaskGITLikelihood:
        return type(self)(cast("MaskedTransformer", network), self.steps, unsmooth=self.unsmooth)

    def token_log_prob(self, tokens_BL: Tensor, class_id_B: Tensor, order_BL: Tensor | None = None) -> Tensor:
        """As `TrainableModel.token_log_prob`, each block given those before it."""
        check_gradients(self.precision)
        tokens_BL, order_BL, _ = self.placed(tokens_BL, order_BL)
        class_id_B = class_id_B.to(tokens_BL.device)
        blocks, start = [], 0
        for end in self.segment_ends:
            asked_BT = order_BL[:, start:end]
            logits_BLV = self.transformer.logits(class_id_B, tokens_BL.where(visible(order_BL, start), self.mask))
            logits_BTV = logits_BLV.gather(1, asked_BT[..., None].expand(-1, -1, logits_BLV.shape[-1]))
            target_BT = tokens_BL.gather(1, asked_BT)
            blocks.append(-F.cross_entropy(logits_BTV.transpose(1, 2), target_BT, reduction="none"))
            start = end
        return torch.cat(blocks, dim=1)

    def decays(self, name: str, parameter: Tensor) -> bool:
        return decays_unless_named(name, parameter, ONE_D_TOKENIZER)

    def draw(self, count: int, objective: Objective, generator: torch.Generator) -> Draw:
        """Tokens that are hidden."""
        return Draw(hidden_BL=random_masks(count, self.config.num_tokens, generator))

    def training_loss(self, tokens_BL: Tensor, class_id_B: Tensor, objective: Objective, draw: Draw) -> StepLoss:
        """The cross-entropy of the hidden tokens, given the others."""
        assert draw.hidden_BL is not None, "of another model"
        hidden_BL = draw.hidden_BL.to(tokens_BL.device)
        logits_BLV = self.transformer.logits(class_id_B, tokens_BL.masked_fill(hidden_BL, self.config.mask))
        return masked_loss(
            logits_BLV,
            tokens_BL,
            hidden_BL,
            smoothing=objective.smoothing,
            visible=objective.visible,
            counted=draw.all_hidden_BL,
        )

    def class_embedding(self, class_id: int) -> Tensor:
        return self.transformer.words.weight[self.config.first_class + class_id]

    def low_rank_targets(self, method: str) -> dict[str, tuple[int, int]]:
        """The linears of attention and MLP; a class is an input here, and modulates nothing."""
        if method == "adaln":
            return {}
        shapes = {}
        for name, block in self.transformer.blocks():
            for linear_name in self.transformer.linears:
                weight = cast("nn.Linear", block.get_submodule(linear_name)).weight
                shapes[f"{name}.{linear_name}"] = (weight.shape[0], weight.shape[1])
        return shapes

    def one_class_network(self, row_C: nn.Parameter) -> MaskedTransformer:
        with torch.device("meta"):
            twin = type(self.transformer)(replace(self.config, num_classes=1))
        tensors, first, table = self.transformer.state_dict(), self.config.first_class, self.transformer.table
        tensors[table] = torch.cat([tensors[table][: first + 1], tensors[table][-1:]])
        twin.load_state_dict(tensors, assign=True)
        twin.eval().requires_grad_(False)
        parametrize.register_parametrization(twin.words, "weight", FirstRow(row_C, before=first))
        return twin

    def finish_network(self, network: nn.Module) -> MaskedTransformer:
        return finished(cast("MaskedTransformer", network), self.transformer)

    def with_more_classes(self, count: int) -> MaskGITLikelihood:
        tensors = plain_state(self.transformer)
        table = self.transformer.table
        of_tokens, of_classes = tensors[table].tensor_split([self.config.first_class])
        tensors[table] = torch.cat([of_tokens, with_mean_rows(of_classes, count)])
        grown = type(self.transformer)(replace(self.config, num_classes=self.num_classes + count))
        grown.to(of_tokens.device).load_state_dict(tensors)
        return self.with_network(grown)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        return {f"{self.transformer.prefix}{key}": value for key, value in plain_state(self.transformer).items()}

    def checkpoint_metadata(self) -> dict[str, str]:
        """The number of attention heads, which the tensors do not tell."""
        return {"num_attention_heads": str(self.config.heads)}

    @property
    def pass_bytes_per_position(self) -> int:
        c, item = self.config, self.precision.activations.itemsize
        # Residual stream, its sum and the outputs that a UViT keeps for its second half, in float32; normed input,
        # queries, keys and values, or twice the MLP's hidden vector.
        stream = (3 + c.depth // 2) * c.width * 4
        return stream + c.width * item + max(4 * c.width * item, 2 * c.hidden * item)

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights."""
        return stored_bytes(self.transformer)


class MaskGITBertLikelihood(MaskGITLikelihood):
    """The same of a MaskGIT whose transformer is a BERT."""

    family = "maskgit-bert"
    trained_with = MaskGITLikelihood.trained_with | {"dropout"}
