"""The MaskGen families as the registry sees them: reading a configuration, building a model, timing one."""

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
from avarc_cli.models.masked.tokens import check_sequence
from avarc_cli.models.maskgen.benchmark import MaskGenWorkload, random_workload
from avarc_cli.models.maskgen.config import (
    DEFAULT_SCORE,
    MaskGenConfig,
    MaskGenKLConfig,
    read_config,
    read_kl_config,
)
from avarc_cli.models.maskgen.initialize import initialize
from avarc_cli.models.maskgen.latent_likelihood import MaskGenKLLikelihood
from avarc_cli.models.maskgen.latent_network import MaskGenKL
from avarc_cli.models.maskgen.likelihood import MaskGenLikelihood
from avarc_cli.models.maskgen.network import MaskGen
from avarc_cli.settings import check_heads
from avarc_cli.text.features import TextInput
from avarc_cli.tokenizer import TokenizerNetwork

HEAD_WIDTH = 64  # channels of an attention head of a new model
HIDDEN = 4  # hidden width of a new model's MLPs, in widths
SCORE_WIDTH = 256  # sinusoids of an aesthetic score, as in the published models
OF_JOINT = ("depth", "width", "heads", "hidden", "score_width", "aesthetic_score")
OF_HEAD = ("head_width", "head_depth", "scale_factor")


class MaskGenFamily(GeneratorFamily):
    """MaskGens of the codes of a TA-TiTok VQ."""

    name = MaskGenLikelihood.family
    title = MaskGenConfig.title
    signature = ("text_embed_proj.weight", "cond_pooled_proj.weight", "embeddings.weight")
    of_captions = ("text_embed_proj.weight", "cond_pooled_proj.weight")

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
        _check_codes(config, tokenizer, source)
        network = MaskGen.from_state_dict(config, tensors, source=source).to(device)
        return MaskGenLikelihood(network.set_precision(precision).set_kernels(kernels))

    def new_of_captions(self, tokenizer: TokenizerNetwork, text: TextInput, **shape: Any) -> MaskGenLikelihood:
        """An initialized model; `shape` is depth, width and, where not the default, heads.

        With an aesthetic_score there, it is given the scores of images, by default that one.
        """
        # Beside the codes the mask, and in the reference "no class", which nothing reads.
        rows = shape.pop("rows", tokenizer.vocab_size + 2)
        joint = _new_joint(tokenizer, text, self.title, **shape)
        config = MaskGenConfig(**joint, vocab_size=tokenizer.vocab_size, rows=rows)
        return MaskGenLikelihood(initialize(MaskGen(config)).to(_device(tokenizer)))

    def shape_of(self, config: MaskGenConfig, tokenizer: TokenizerNetwork, source: str) -> dict[str, Any]:
        _check_codes(config, tokenizer, source)
        return {name: getattr(config, name) for name in (*OF_JOINT, "rows")}

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
    of_captions = ("text_emb.weight", "text_pooled_emb.weight")

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
        _check_latents(config, tokenizer, source)
        network = MaskGenKL.from_state_dict(config, tensors, source=source).to(device)
        return MaskGenKLLikelihood(network.set_precision(precision).set_kernels(kernels))

    def new_of_captions(self, tokenizer: TokenizerNetwork, text: TextInput, **shape: Any) -> MaskGenKLLikelihood:
        """An initialized model; `shape` is as for codes, head_width and head_depth, and scale_factor."""
        of_head = {name: shape.pop(name) for name in OF_HEAD}
        joint = _new_joint(tokenizer, text, self.title, **shape)
        config = MaskGenKLConfig(**joint, channels=tokenizer.channels, **of_head)
        return MaskGenKLLikelihood(initialize(MaskGenKL(config)).to(_device(tokenizer)))

    def shape_of(self, config: MaskGenKLConfig, tokenizer: TokenizerNetwork, source: str) -> dict[str, Any]:
        _check_latents(config, tokenizer, source)
        return {name: getattr(config, name) for name in (*OF_JOINT, *OF_HEAD)}


def _check_codes(config: MaskGenConfig, tokenizer: TokenizerNetwork, source: str) -> None:
    """Raises: CheckpointError for a model of other codes than this tokenizer's."""
    if (config.vocab_size, config.num_tokens) != (tokenizer.vocab_size, tokenizer.layout.num_tokens):
        raise CheckpointError(
            f"{source} reads the tokens of another tokenizer",
            f"it has {config.num_tokens} tokens of {config.vocab_size} codes, the tokenizer "
            f"{tokenizer.layout.num_tokens} of {tokenizer.vocab_size}",
            "pass the tokenizer that it was trained with",
        )


def _check_latents(config: MaskGenKLConfig, tokenizer: TokenizerNetwork, source: str) -> None:
    """Raises: CheckpointError for a model of other continuous tokens than this tokenizer's."""
    if (config.channels, config.num_tokens) != (tokenizer.channels, tokenizer.layout.num_tokens):
        raise CheckpointError(
            f"{source} reads the tokens of another tokenizer",
            f"it has {config.num_tokens} tokens of {config.channels} channels, the tokenizer "
            f"{tokenizer.layout.num_tokens} of {tokenizer.channels}",
            "pass the tokenizer that it was trained with",
        )


def _new_joint(
    tokenizer: TokenizerNetwork,
    text: TextInput,
    title: str,
    *,
    depth: int,
    width: int,
    heads: int | None = None,
    hidden: int | None = None,
    score_width: int | None = None,
    aesthetic_score: float | None = None,
) -> dict[str, Any]:
    """The fields of a `JointConfig`.

    Args:
        aesthetic_score: that it is given by default. A new model is given none unless there is a default.
    Raises: UsageError for heads that do not divide the width, for tokens on a grid, and for a text encoder that gives
        no vector of a whole caption, or one of another width.
    """
    heads = heads or max(width // HEAD_WIDTH, 1)
    if score_width is None:
        score_width = 0 if aesthetic_score is None else SCORE_WIDTH
    check_heads(width, heads, f"a {title}")
    if text.pooled_width != text.width:
        gives = f"one of {text.pooled_width} channels" if text.pooled_width else "none"
        raise UsageError(
            f"a {title} cannot read what {text.encoder} makes of captions",
            f"it reads {text.width} channels of positions, and as many of the whole caption; the encoder gives {gives}",
            "name a CLIP, or an encoder of avarc train text-encoder, with --text-encoder",
        )
    check_sequence(tokenizer, title)
    return {
        "depth": depth,
        "width": width,
        "heads": heads,
        "hidden": hidden or HIDDEN * width,
        "num_tokens": tokenizer.layout.num_tokens,
        "text_width": text.width,
        "text_positions": text.positions,
        "score_width": score_width,
        "aesthetic_score": DEFAULT_SCORE if aesthetic_score is None else aesthetic_score,
        "text_encoder": text.encoder,
    }


def _device(tokenizer: TokenizerNetwork) -> torch.device:
    return next(tokenizer.parameters()).device


VQ, KL = MaskGenFamily(), MaskGenKLFamily()
