"""The MaskGIT families as the registry sees them: reading a configuration, building a model, starting a new one."""

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
from avarc_cli.models.masked.tokens import check_no_scales
from avarc_cli.models.maskgit.benchmark import MaskGITWorkload, random_workload
from avarc_cli.models.maskgit.bert import Bert
from avarc_cli.models.maskgit.config import MaskGITBertConfig, MaskGITConfig, read_bert, read_uvit
from avarc_cli.models.maskgit.initialize import initialize_bert, initialize_uvit
from avarc_cli.models.maskgit.likelihood import MaskGITBertLikelihood, MaskGITLikelihood
from avarc_cli.models.maskgit.network import MaskedTransformer
from avarc_cli.models.maskgit.uvit import UViT
from avarc_cli.settings import check_heads
from avarc_cli.tokenizer import TokenizerNetwork

HEAD_WIDTH = 64  # channels of a head of a new model
HIDDEN = 4  # hidden width of a new model's MLPs, in widths


class MaskGITFamily(GeneratorFamily):
    """MaskGITs whose transformer is a UViT."""

    name = MaskGITLikelihood.family
    title = MaskGITConfig.title
    signature: ClassVar[tuple[str, ...]] = (
        "embeddings.weight",
        "pos_embed",
        "mid_block.attn.qkv.weight",
        "lm_head.weight",
    )
    config: ClassVar[type[MaskGITConfig]] = MaskGITConfig
    network: ClassVar[type[MaskedTransformer]] = UViT
    likelihood: ClassVar[type[MaskGITLikelihood]] = MaskGITLikelihood

    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> MaskGITConfig:
        return read_uvit(tensors, stated, source)

    def build(
        self,
        config: MaskGITConfig,
        tensors: Mapping[str, Tensor],
        tokenizer: TokenizerNetwork,
        *,
        precision: Precision,
        kernels: str,
        device: torch.device,
        source: str,
    ) -> MaskGITLikelihood:
        layout, same = tokenizer.layout, (config.vocab_size, config.num_tokens)
        if same != (tokenizer.vocab_size, layout.num_tokens) or len(layout.grids) > 1:
            raise CheckpointError(
                f"{source} reads the tokens of another tokenizer",
                f"it has {config.num_tokens} tokens of {config.vocab_size} codes, the tokenizer "
                f"{layout.num_tokens} of {tokenizer.vocab_size} ({layout})",
                "pass the tokenizer that it was trained with",
            )
        network = self.network.from_state_dict(config, tensors, source=source).to(device)
        return self.likelihood(network.set_precision(precision).set_kernels(kernels))

    def new(self, tokenizer: TokenizerNetwork, num_classes: int, **shape: Any) -> MaskGITLikelihood:
        """An initialized model; `shape` is depth (a UViT's is made even), width and, where not the default, heads."""
        width = shape["width"]
        heads = shape.get("heads") or max(width // HEAD_WIDTH, 1)
        check_heads(width, heads, f"a {self.title}")
        check_no_scales(tokenizer, self.title)
        config = self.config(
            depth=self.depth(shape["depth"]),
            width=width,
            heads=heads,
            hidden=HIDDEN * width,
            num_classes=num_classes,
            vocab_size=tokenizer.vocab_size,
            num_tokens=tokenizer.layout.num_tokens,
        )
        device = next(tokenizer.parameters()).device
        return self.likelihood(self.begin(config).to(device))

    def depth(self, asked: int) -> int:
        """Of a new network: as many blocks before the middle one as behind it."""
        return asked // 2 * 2

    def begin(self, config: MaskGITConfig) -> MaskedTransformer:
        """An initialized network of that shape."""
        return initialize_uvit(UViT(config))

    def random_workload(self, shape: str, scales: Sequence[int] | None, device: torch.device) -> MaskGITWorkload:
        return random_workload(shape, scales, device)

    def model_workload(self, model: LikelihoodModel, device: torch.device) -> MaskGITWorkload:
        assert isinstance(model, MaskGITLikelihood)
        return MaskGITWorkload(model.transformer, device)


class MaskGITBertFamily(MaskGITFamily):
    """MaskGITs whose transformer is a BERT."""

    name = MaskGITBertLikelihood.family
    title = MaskGITBertConfig.title
    signature = ("embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight")
    config = MaskGITBertConfig
    network = Bert
    likelihood = MaskGITBertLikelihood

    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> MaskGITConfig:
        return read_bert(tensors, stated, source)

    def depth(self, asked: int) -> int:
        return asked

    def begin(self, config: MaskGITConfig) -> MaskedTransformer:
        return initialize_bert(Bert(config))


UVIT, BERT = MaskGITFamily(), MaskGITBertFamily()
