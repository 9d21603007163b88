"""The MaskGen families as the registry sees them: reading a configuration, building a model, timing one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.family import GeneratorFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.precision import Precision
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.maskgen.benchmark import MaskGenWorkload, random_workload
from avarc_cli.models.maskgen.config import MaskGenConfig, MaskGenKLConfig, read_config, read_kl_config
from avarc_cli.models.maskgen.latent_likelihood import MaskGenKLLikelihood
from avarc_cli.models.maskgen.latent_network import MaskGenKL
from avarc_cli.models.maskgen.likelihood import MaskGenLikelihood
from avarc_cli.models.maskgen.network import MaskGen
from avarc_cli.tokenizer import TokenizerNetwork


class MaskGenFamily(GeneratorFamily):
    """MaskGens of the codes of a TA-TiTok VQ."""

    name = MaskGenLikelihood.family
    title = MaskGenConfig.title
    signature = ("text_embed_proj.weight", "cond_pooled_proj.weight", "embeddings.weight")

    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> MaskGenConfig:
        return read_config(tensors, stated, source)

    def build(
        self,
        config: MaskGenConfig,
        tensors: Mapping[str, Tensor],
        tokenizer: TokenizerNetwork,
        *,
        precision: Precision,
        kernels: str,
        device: torch.device,
        source: str,
    ) -> MaskGenLikelihood:
        if (config.vocab_size, config.num_tokens) != (tokenizer.vocab_size, tokenizer.layout.num_tokens):
            raise CheckpointError(
                f"{source} reads the tokens of another tokenizer",
                f"it has {config.num_tokens} tokens of {config.vocab_size} codes, the tokenizer "
                f"{tokenizer.layout.num_tokens} of {tokenizer.vocab_size}",
                "pass the tokenizer that it was trained with",
            )
        network = MaskGen.from_state_dict(config, tensors, source=source).to(device)
        return MaskGenLikelihood(network.set_precision(precision).set_kernels(kernels))

    def random_workload(self, shape: str, scales: Sequence[int] | None, device: torch.device) -> MaskGenWorkload:
        return random_workload(shape, scales, device)

    def model_workload(self, model: LikelihoodModel, device: torch.device) -> MaskGenWorkload:
        assert isinstance(model, MaskGenLikelihood)
        return MaskGenWorkload(model.transformer, device)


class MaskGenKLFamily(GeneratorFamily):
    """MaskGens of the continuous tokens of a TA-TiTok VAE."""

    name = MaskGenKLLikelihood.family
    title = MaskGenKLConfig.title
    continuous = True
    signature = ("text_emb.weight", "text_pooled_emb.weight", "decoder_pos_embed_learned", "z_proj.weight")

    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> MaskGenKLConfig:
        return read_kl_config(tensors, stated, source)

    def build(
        self,
        config: MaskGenKLConfig,
        tensors: Mapping[str, Tensor],
        tokenizer: TokenizerNetwork,
        *,
        precision: Precision,
        kernels: str,
        device: torch.device,
        source: str,
    ) -> MaskGenKLLikelihood:
        if (config.channels, config.num_tokens) != (tokenizer.channels, tokenizer.layout.num_tokens):
            raise CheckpointError(
                f"{source} reads the tokens of another tokenizer",
                f"it has {config.num_tokens} tokens of {config.channels} channels, the tokenizer "
                f"{tokenizer.layout.num_tokens} of {tokenizer.channels}",
                "pass the tokenizer that it was trained with",
            )
        network = MaskGenKL.from_state_dict(config, tensors, source=source).to(device)
        return MaskGenKLLikelihood(network.set_precision(precision).set_kernels(kernels))


VQ, KL = MaskGenFamily(), MaskGenKLFamily()
