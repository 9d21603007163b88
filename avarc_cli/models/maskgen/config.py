"""The shapes of MaskGens, and how they are read off a checkpoint's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.config_sources import ConfigSources, check_shape
from avarc_cli.layers.state_dict import count_layers, shape_of
from avarc_cli.layout import TokenLayout
from avarc_cli.text.features import TextInput

ENCODER = "clip-vit-l-14-336"
DEFAULT_HEADS = 16  # of all published models; no tensor tells it
DEFAULT_SCORE = 6.5  # aesthetic score of the published models of the second stage
DEFAULT_CLASSES = 1000  # rows of the published tables of embeddings that nothing reads
DEFAULT_SCALE = 0.7525  # of the published models of latents
TEXT_POSITIONS = 77  # of CLIP


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """What both kinds of MaskGen have."""

    depth: int  # blocks
    width: int  # C, channels of both residual streams
    heads: int  # H
    hidden: int  # F, hidden width of the MLPs
    num_tokens: int  # L
    text_width: int  # D, of both the sequence and the pooled vector of a caption
    text_positions: int  # T
    score_width: int  # sinusoids of the aesthetic score; 0 where the model is given none
    aesthetic_score: float  # that it is given by default
    text_encoder: str = ENCODER  # name of the one that it was trained with
    inferred: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # see GeneratorConfig

    @property
    def layout(self) -> TokenLayout:
        """Tokens without a position."""
        return TokenLayout.sequence(self.num_tokens)

    @property
    def text(self) -> TextInput:
        """What it reads of a caption."""
        return TextInput(
            encoder=self.text_encoder,
            positions=self.text_positions,
            width=self.text_width,
            pooled_width=self.text_width,
        )

    @property
    def positions(self) -> int:
        """Of the transformer: the tokens, and the caption."""
        return self.num_tokens + self.text_positions

    @property
    def pass_flops(self) -> int:
        """Operations of one pass over all positions of one pair, without the head; a multiply-add counts as 2.

        Without what is computed once per caption, and without what the last block does not compute of the caption.
        """
        width, mlp = self.width**2, 2 * self.width * self.hidden
        of_tokens = self.depth * (4 * width + mlp)
        of_text = (self.depth - 1) * (4 * width + mlp) + 2 * width - 3 * width
        attention = 2 * self.width * self.positions * ((self.depth - 1) * self.positions + self.num_tokens)
        return 2 * (self.num_tokens * of_tokens + self.text_positions * of_text + attention)


@dataclass(frozen=True, kw_only=True)
class MaskGenConfig(JointConfig):
    """Shape of a MaskGen whose tokens are codes."""

    title: ClassVar[str] = "MaskGen VQ transformer"

    vocab_size: int  # V
    rows: int  # of the table of embeddings: of codes, the mask, and others that nothing reads

    @property
    def mask(self) -> int:
        """The id that stands for a hidden token."""
        return self.vocab_size


@dataclass(frozen=True, kw_only=True)
class MaskGenKLConfig(JointConfig):
    """Shape of a MaskGen whose tokens are the latents of a VAE."""

    title: ClassVar[str] = "MaskGen KL transformer"

    channels: int  # Z, of a token
    head_width: int
    head_depth: int  # blocks
    scale_factor: float  # what tokens are multiplied by


def read_config(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> MaskGenConfig:
    """The shape of the MaskGen VQ that these tensors make up.

    Raises: CheckpointError when they make up none, or contradict what is stated.
    """
    title = MaskGenConfig.title
    rows = shape_of(tensors, "embeddings.weight", 2, source=source, expected=title)[0]
    num_tokens = shape_of(tensors, "pos_embed", 3, source=source, expected=title)[1]
    inferred: dict[str, str] = {}
    vocab_size = stated.whole_number("codebook_size", "model.vq_model.codebook_size")
    if vocab_size is None:
        classes = stated.whole_number("condition_num_classes", "model.maskgen.condition_num_classes")
        if classes is None:
            inferred["codes"] = f"{rows} embeddings without {DEFAULT_CLASSES + 2}, as in all published models"
        vocab_size = rows - (classes or DEFAULT_CLASSES) - 2
    if not 0 < vocab_size < rows:
        raise CheckpointError(
            f"the codes of {source} are unknown",
            f"it has {rows} embeddings, of codes, the mask and rows that are not used",
            'state their number in a file {"codebook_size": 8192} given with --model-config',
        )
    joint = read_joint(
        tensors, stated, source, title=title, text="text_embed_proj", pooled="cond_pooled_proj", blocks="blocks"
    )
    inferred |= joint.pop("inferred")
    config = MaskGenConfig(**joint, num_tokens=num_tokens, vocab_size=vocab_size, rows=rows, inferred=inferred)
    check_shape(
        stated, {"condition_num_classes": rows - vocab_size - 2}, config.layout, source, inside="model.maskgen."
    )
    check_joint(config, stated, source)
    return config


def read_kl_config(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> MaskGenKLConfig:
    """The shape of the MaskGen KL that these tensors make up. Raises: as `read_config`."""
    title = MaskGenKLConfig.title
    head = "diffloss.net."
    joint = read_joint(
        tensors, stated, source, title=title, text="text_emb", pooled="text_pooled_emb", blocks="decoder_blocks"
    )
    inferred = joint.pop("inferred")
    scale = real_number(stated, "scale_factor", "model.vq_model.scale_factor")
    if scale is None:
        inferred["scale factor"] = f"{DEFAULT_SCALE}, as in all published models"
    width, channels = shape_of(tensors, f"{head}input_proj.weight", 2, source=source, expected=title)
    config = MaskGenKLConfig(
        **joint,
        num_tokens=shape_of(tensors, "decoder_pos_embed_learned", 3, source=source, expected=title)[1],
        channels=channels,
        head_width=width,
        head_depth=count_layers(tensors, head + "res_blocks.{}.in_ln.weight"),
        scale_factor=DEFAULT_SCALE if scale is None else scale,
        inferred=inferred,
    )
    check_joint(config, stated, source)
    check_shape(stated, {"token_size": channels}, config.layout, source, inside="model.vq_model.")
    of_head = {"diffloss_w": width, "diffloss_d": config.head_depth}
    check_shape(stated, of_head, config.layout, source, inside="losses.")
    return config


def read_joint(
    tensors: Mapping[str, Tensor],
    stated: ConfigSources,
    source: str,
    *,
    title: str,
    text: str,
    pooled: str,
    blocks: str,
) -> dict[str, Any]:
    """The fields of a `JointConfig`, but for the tokens.

    Args:
        text, pooled: names of the linears that read a caption's sequence, and its pooled vector with the score.
        blocks: name of the list of blocks.
    Raises: CheckpointError for tensors that do not fit together, and for heads that do not divide the width.
    """
    width, text_width = shape_of(tensors, f"{text}.weight", 2, source=source, expected=title)
    score_width = shape_of(tensors, f"{pooled}.weight", 2, source=source, expected=title)[1] - text_width
    hidden = shape_of(tensors, f"{blocks}.0.ff.net.0.proj.weight", 2, source=source, expected=title)[0]
    if score_width < 0 or score_width % 2:
        raise CheckpointError(
            f"{source} does not fit a {title}",
            f"its captions have {text_width} channels, and {score_width} are left for the aesthetic score",
            "pass the file of a MaskGen here",
        )
    heads = stated.whole_number("decoder_num_heads", "model.maskgen.decoder_num_heads")
    if width % (heads or DEFAULT_HEADS):
        raise CheckpointError(
            f"the attention heads of {source} are unknown",
            f"its {width} channels do not divide among {heads or DEFAULT_HEADS}",
            'state them in a file {"decoder_num_heads": 8} given with --model-config',
        )
    inferred = {} if heads else {"heads": f"{DEFAULT_HEADS}, as in all published models"}
    score = real_number(stated, "sample_aesthetic_score", "model.maskgen.sample_aesthetic_score")
    if score is None and score_width:
        inferred["aesthetic score"] = f"{DEFAULT_SCORE}, as in the published models of the second stage"
    length, encoder = "text_context_length", stated.find("text_encoder")
    return {
        "depth": count_layers(tensors, blocks + ".{}.attn.to_q.weight"),
        "width": width,
        "heads": heads or DEFAULT_HEADS,
        "hidden": hidden,
        "text_width": text_width,
        "text_positions": stated.whole_number(length, f"model.vq_model.{length}") or TEXT_POSITIONS,
        "score_width": score_width,
        "aesthetic_score": DEFAULT_SCORE if score is None else score,
        "text_encoder": ENCODER if encoder is None else str(encoder[0]),
        "inferred": inferred,
    }


def check_joint(config: JointConfig, stated: ConfigSources, source: str, **own: int) -> None:
    """Check what was read off the tensors against what files state; own: of one kind. Raises: CheckpointError."""
    of_network = {"decoder_embed_dim": config.width, "decoder_depth": config.depth, **own}
    if config.score_width:
        of_network["micro_condition_embed_dim"] = config.score_width
    of_tokens = {"num_latent_tokens": config.num_tokens, "text_embed_dim": config.text_width}
    check_shape(stated, of_network, config.layout, source, inside="model.maskgen.")
    check_shape(stated, of_tokens, config.layout, source, inside="model.vq_model.")


def real_number(stated: ConfigSources, *names: str) -> float | None:
    """A positive number; None where none of these names is stated. Raises: CheckpointError for anything else."""
    found = stated.find(*names)
    if found is None:
        return None
    try:
        value = float(found[0])
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(found[0], bool) or not 0 < value < math.inf:
        raise CheckpointError(
            f"'{names[0]}' in {found[1]} cannot be read",
            f"it is {str(found[0])[:60]!r}; expected is a positive number",
            "correct it, or state the value with --model-config",
        )
    return value
