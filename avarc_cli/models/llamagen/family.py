"""The LlamaGen family as the registry sees it: reading a configuration, building a model, starting a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.family import GeneratorFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.precision import Precision
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.llamagen.benchmark import LlamaGenWorkload
from avarc_cli.models.llamagen.config import Config, LlamaGenConfig, default_heads, ffn_width, read_config
from avarc_cli.models.llamagen.initialize import initialize
from avarc_cli.models.llamagen.likelihood import LlamaGenLikelihood
from avarc_cli.models.llamagen.network import LlamaGen, Network
from avarc_cli.settings import check_heads
from avarc_cli.tokenizer import TokenizerNetwork


class LlamaGenFamily(GeneratorFamily):
    """Also of models with the same transformer, which name their own classes."""

    name = LlamaGenLikelihood.family
    title = LlamaGenConfig.title
    signature: ClassVar[tuple[str, ...]] = (
        "tok_embeddings.weight",
        "layers.0.attention.wqkv.weight",
        "layers.0.feed_forward.w3.weight",
    )
    config: ClassVar[type[LlamaGenConfig]] = LlamaGenConfig
    network: ClassVar[type[LlamaGen]] = LlamaGen
    likelihood: ClassVar[type[LlamaGenLikelihood]] = LlamaGenLikelihood
    workload: ClassVar[type[LlamaGenWorkload]] = LlamaGenWorkload

    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> LlamaGenConfig:
        return read_config(tensors, stated, source, self.config)

    def build(
        self,
        config: LlamaGenConfig,
        tensors: Mapping[str, Tensor],
        tokenizer: TokenizerNetwork,
        *,
        precision: Precision,
        kernels: str,
        device: torch.device,
        source: str,
    ) -> LlamaGenLikelihood:
        gpt = network_of(self.network, config, tensors, tokenizer, source=source).to(device)
        return self.likelihood(gpt.set_precision(precision).set_kernels(kernels))

    def new(self, tokenizer: TokenizerNetwork, num_classes: int, **shape: Any) -> LlamaGenLikelihood:
        """An initialized model; `shape` is depth, width and, where not the default, heads."""
        config = new_config(self.config, tokenizer, shape, num_classes=num_classes)
        return self.likelihood(self.initialized(self.network(config)).to(next(tokenizer.parameters()).device))

    def initialized(self, network: LlamaGen) -> LlamaGen:
        """The network with the weights that training starts from."""
        return initialize(network)

    def random_workload(self, shape: str, scales: Sequence[int] | None, device: torch.device) -> LlamaGenWorkload:
        return self.workload.random(shape, scales, device)

    def model_workload(self, model: LikelihoodModel, device: torch.device) -> LlamaGenWorkload:
        assert isinstance(model, LlamaGenLikelihood)
        return self.workload(model.gpt, device)


def new_config(kind: type[Config], tokenizer: TokenizerNetwork, shape: Mapping[str, Any], **condition: Any) -> Config:
    """The shape of a new model of that tokenizer's tokens.

    Args:
        shape: depth, width and, where not the default, heads. condition: the fields that say what it is conditioned on.
    """
    width = shape["width"]
    heads = shape.get("heads") or default_heads(width)
    check_heads(width, heads, f"a {kind.title}")
    config = kind(
        depth=shape["depth"],
        width=width,
        heads=heads,
        kv_heads=heads,
        ffn=ffn_width(width),
        vocab_size=tokenizer.vocab_size,
        **condition,
    )
    return config.on_grid(tokenizer.layout, f"a new {kind.title}")


def network_of(
    kind: type[Network],
    config: LlamaGenConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: TokenizerNetwork,
    *,
    source: str,
) -> Network:
    """The network of a checkpoint, on the tokenizer's grid. Raises: as `GeneratorFamily.build`."""
    if config.vocab_size != tokenizer.vocab_size:
        raise CheckpointError(
            f"{source} reads the tokens of another tokenizer",
            f"it has {config.vocab_size} codes, the tokenizer {tokenizer.vocab_size}",
            "pass the tokenizer that it was trained with",
        )
    return kind.from_state_dict(config.on_grid(tokenizer.layout, source), tensors, source=source)


FAMILY = LlamaGenFamily()
