"""The RAR family as the registry sees it: reading a configuration, building a model, starting a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.family import GeneratorFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.precision import Precision
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.rar import config as configs
from avarc_cli.models.rar.benchmark import RARWorkload, random_workload
from avarc_cli.models.rar.config import RARConfig
from avarc_cli.models.rar.initialize import initialize
from avarc_cli.models.rar.likelihood import RARLikelihood
from avarc_cli.models.rar.network import RAR
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.words import counted

HEAD_WIDTH = 64  # channels of a head of a new model; those of the published ones have 48 to 88
HIDDEN = 4  # hidden width of a new model's MLPs, in widths


class RARFamily(GeneratorFamily):
    name = RARLikelihood.family
    title = configs.TITLE
    signature = ("target_aware_pos_embed", "blocks.0.adaLN_modulation.1.weight", "blocks.0.attn.q_norm.weight")

    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> RARConfig:
        return configs.read_config(tensors, stated, source)

    def build(
        self,
        config: RARConfig,
        tensors: Mapping[str, Tensor],
        tokenizer: TokenizerNetwork,
        *,
        precision: Precision,
        kernels: str,
        device: torch.device,
        source: str,
    ) -> RARLikelihood:
        if (config.vocab_size, config.layout) != (tokenizer.vocab_size, tokenizer.layout):
            theirs = f"{tokenizer.vocab_size} on a {tokenizer.layout}"
            raise CheckpointError(
                f"{source} reads the tokens of another tokenizer",
                f"it has {config.vocab_size} codes on a {config.layout}, the tokenizer {theirs}",
                "pass the tokenizer that it was trained with",
            )
        rar = RAR.from_state_dict(config, tensors, source=source).to(device)
        return RARLikelihood(rar.set_precision(precision).set_kernels(kernels))

    def new(self, tokenizer: TokenizerNetwork, num_classes: int, **shape: Any) -> RARLikelihood:
        """An initialized RAR; `shape` is depth, width and, where not the default, heads and hidden."""
        width = shape["width"]
        heads = shape.get("heads") or max(width // HEAD_WIDTH, 1)
        if width % heads:
            raise UsageError(
                f"a RAR of width {width} cannot have {counted(heads, 'head')}",
                "each takes the same number of channels",
                f"choose a width that {heads} divides, or other heads",
            )
        grids = tokenizer.layout.grids
        if len(grids) != 1 or len(set(grids[0])) != 1:
            raise CheckpointError(
                "a new RAR cannot read the tokens of this tokenizer",
                f"a {self.title} models one square grid, the tokenizer gives {tokenizer.layout}",
                "pass a tokenizer of one grid, such as one of avarc train maskgit-vq",
            )
        config = RARConfig(
            depth=shape["depth"],
            width=width,
            heads=heads,
            hidden=shape.get("hidden") or HIDDEN * width,
            num_classes=num_classes,
            vocab_size=tokenizer.vocab_size,
            side=grids[0][0],
        )
        return RARLikelihood(initialize(RAR(config)).to(next(tokenizer.parameters()).device))

    def random_workload(self, shape: str, scales: Sequence[int] | None, device: torch.device) -> RARWorkload:
        return random_workload(shape, scales, device)

    def model_workload(self, model: LikelihoodModel, device: torch.device) -> RARWorkload:
        assert isinstance(model, RARLikelihood)
        return RARWorkload(model.rar, device)


FAMILY = RARFamily()
