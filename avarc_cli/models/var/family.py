"""The VAR family as the registry sees it: reading a configuration, building a model, starting a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.family import GeneratorFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.precision import Precision
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.var import config as configs
from avarc_cli.models.var.benchmark import VARWorkload, random_workload
from avarc_cli.models.var.config import VARConfig
from avarc_cli.models.var.initialize import GATES, initialize
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.network import VAR
from avarc_cli.settings import check_width
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.vqvae.network import VQVAE


class VARFamily(GeneratorFamily):
    name = VARLikelihood.family
    title = configs.TITLE
    signature = ("blocks.0.attn.mat_qkv.weight", "lvl_embed.weight", "pos_1LC")

    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> VARConfig:
        return configs.read_config(tensors, stated, source)

    def build(
        self,
        config: VARConfig,
        tensors: Mapping[str, Tensor],
        tokenizer: TokenizerNetwork,
        *,
        precision: Precision,
        kernels: str,
        device: torch.device,
        source: str,
    ) -> VARLikelihood:
        vqvae = _vqvae(tokenizer, source)
        ours, theirs = config, vqvae.config
        if (ours.vocab_size, ours.z_channels) != (theirs.vocab_size, theirs.z_channels):
            raise CheckpointError(
                f"{source} reads the tokens of another tokenizer",
                f"it has {ours.vocab_size} codes of {ours.z_channels} channels, "
                f"the tokenizer {theirs.vocab_size} of {theirs.z_channels}",
                "pass the tokenizer that it was trained with",
            )
        var = VAR.from_state_dict(config, tensors, source=source).to(device)
        return VARLikelihood(var.set_precision(precision).set_kernels(kernels), vqvae.quantize)

    def new(
        self, tokenizer: TokenizerNetwork, num_classes: int, *, gates: float = GATES, **shape: Any
    ) -> VARLikelihood:
        """An initialized VAR; `shape` is depth, width (a multiple of 64), and optionally shared_aln.

        Args:
            gates: as for `initialize`.
        """
        vqvae = _vqvae(tokenizer, "a new VAR")
        check_width(shape["width"], "a VAR")
        config = VARConfig(
            **shape,
            heads=shape["width"] // configs.HEAD_WIDTH,
            num_classes=num_classes,
            patch_nums=vqvae.config.patch_nums,
            vocab_size=vqvae.config.vocab_size,
            z_channels=vqvae.config.z_channels,
        )
        var = initialize(VAR(config), gates).to(vqvae.quantize.embedding.weight.device)
        return VARLikelihood(var, vqvae.quantize)

    def random_workload(self, shape: str, scales: Sequence[int] | None, device: torch.device) -> VARWorkload:
        return random_workload(shape, scales, device)

    def model_workload(self, model: LikelihoodModel, device: torch.device) -> VARWorkload:
        assert isinstance(model, VARLikelihood)
        return VARWorkload(model.var, device)


def _vqvae(tokenizer: TokenizerNetwork, source: str) -> VQVAE:
    if not isinstance(tokenizer, VQVAE):
        raise CheckpointError(
            f"{source} reads the tokens of another tokenizer",
            f"a {configs.TITLE} needs a multi-scale VQ-VAE, not a {type(tokenizer).__name__}",
            "pass the tokenizer that it was trained with",
        )
    return tokenizer


FAMILY = VARFamily()
