"""The family of text-conditional LlamaGens as the registry sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from avarc_cli.family import GeneratorFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.precision import Precision
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.llamagen.config import read_config
from avarc_cli.models.llamagen.family import LlamaGenFamily, network_of, new_config
from avarc_cli.models.llamagen.initialize import initialize
from avarc_cli.models.llamagen_t2i.benchmark import CaptionLlamaGenWorkload
from avarc_cli.models.llamagen_t2i.config import NULL, PROJECTION, CaptionLlamaGenConfig
from avarc_cli.models.llamagen_t2i.likelihood import CaptionLlamaGenLikelihood
from avarc_cli.models.llamagen_t2i.network import CaptionLlamaGen
from avarc_cli.text.features import TextInput
from avarc_cli.tokenizer import TokenizerNetwork


class CaptionLlamaGenFamily(GeneratorFamily):
    name = CaptionLlamaGenLikelihood.family
    title = CaptionLlamaGenConfig.title
    signature = (*LlamaGenFamily.signature, PROJECTION, NULL)

    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> CaptionLlamaGenConfig:
        config, found = read_config(tensors, stated, source, CaptionLlamaGenConfig), stated.find("text_encoder")
        return config if found is None else replace(config, text_encoder=str(found[0]))

    def build(
        self,
        config: CaptionLlamaGenConfig,
        tensors: Mapping[str, Tensor],
        tokenizer: TokenizerNetwork,
        *,
        precision: Precision,
        kernels: str,
        device: torch.device,
        source: str,
    ) -> CaptionLlamaGenLikelihood:
        gpt = network_of(CaptionLlamaGen, config, tensors, tokenizer, source=source).to(device)
        gpt.set_precision(precision).set_kernels(kernels)
        return CaptionLlamaGenLikelihood(gpt)

    def new_of_captions(self, tokenizer: TokenizerNetwork, text: TextInput, **shape: Any) -> CaptionLlamaGenLikelihood:
        """An initialized model; `shape` is depth, width and, where not the default, heads."""
        condition = {
            "num_classes": 0,
            "caption_width": text.width,
            "positions": text.positions,
            "text_encoder": text.encoder,
        }
        config = new_config(CaptionLlamaGenConfig, tokenizer, shape, **condition)
        network = CaptionLlamaGen(config)
        initialize(network)
        nn.init.normal_(network.cls_embedding.uncond_embedding, std=text.width**-0.5)
        return CaptionLlamaGenLikelihood(network.to(next(tokenizer.parameters()).device))

    def random_workload(
        self, shape: str, scales: Sequence[int] | None, device: torch.device
    ) -> CaptionLlamaGenWorkload:
        return CaptionLlamaGenWorkload.random(shape, scales, device)

    def model_workload(self, model: LikelihoodModel, device: torch.device) -> CaptionLlamaGenWorkload:
        assert isinstance(model, CaptionLlamaGenLikelihood)
        return CaptionLlamaGenWorkload(model.gpt, device)


FAMILY = CaptionLlamaGenFamily()
