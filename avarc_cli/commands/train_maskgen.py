"""avarc train maskgen: a generator of hidden tokens that reads captions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli.commands import _options as opt
from avarc_cli.commands import _training as common
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.commands._recipe_options import HiddenOptions
from avarc_cli.commands.train_captions import CaptionsOpt, EncoderOpt, checked, train_opened
from avarc_cli.settings import check_file, check_heads

if TYPE_CHECKING:
    from avarc_cli.loaded import LoadedTokenizer

HEAD = ("head_width", "head_depth")


@dataclass(frozen=True, kw_only=True)
class _ShapeOptions(common.TransformerOptions):
    """The shape of a MaskGen."""

    head_width: Annotated[
        int | None,
        opt.model_option("--head-width", min=1, help="Channels of the head of continuous tokens. Default: --width."),
    ] = None
    head_depth: Annotated[int, opt.model_option("--head-depth", min=1, help="Blocks of that head.")] = 3

    def of_network(self, context: typer.Context, reader: LoadedTokenizer) -> tuple[str, dict[str, Any]]:
        """The family that reads these tokens, and the shape in its own terms.

        Raises: UsageError for options of a head where tokens are codes.
        """
        transformer = {"depth": self.depth, "width": self.width, "heads": self.heads}
        if reader.channels:
            head = {"head_width": self.head_width or self.width, "head_depth": self.head_depth}
            return "maskgen-kl", {**transformer, **head}
        opt.check_not_given(context, HEAD, "here", f"the tokens of {reader.name} are codes, which need no such head")
        return "maskgen", transformer


SHAPE = tuple(field.name for field in fields(_ShapeOptions))


@with_option_groups
def maskgen(
    context: typer.Context,
    data: common.TokensArg,
    *,
    out: common.OutOpt,
    captions: CaptionsOpt,
    text_encoder: EncoderOpt = "clip-vit-l-14-336",
    start_from: Annotated[
        Path | None, opt.model_option("--start-from", help="Weights of a MaskGen to begin with, as its second stage.")
    ] = None,
    reads: common.TokenizerOptions,
    shape: _ShapeOptions,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: HiddenOptions,
    aesthetic_scores: Annotated[
        Path | None,
        opt.training_option(
            "--aesthetic-scores", help="CSV with columns image, score (0 to 10), which the model reads."
        ),
    ] = None,
) -> None:
    """Train a MaskGen, which predicts hidden tokens from visible ones and a caption.

    Tokens are codes, or those of a VAE, as the tokenizer gives them. DATA has one sub-folder a class; at every step, an
    image has one of the captions of its class, drawn at random.

    Example: avarc train maskgen photos/ --captions captions.json --tokenizer titok.safetensors --out out.safetensors
    """
    check_heads(shape.width, shape.heads, "a MaskGen")
    check_file(start_from, "--start-from")
    if start_from is not None:
        opt.check_not_given(context, SHAPE, "with --start-from", "the file has decided the shape")
    chosen = checked(captions, text_encoder)
    reads = reads.of(data)
    with common.reserved(out, overwrite, reads.tokenizer, start_from):
        from avarc_cli.data import image_scores

        scores = None if aesthetic_scores is None else image_scores.read(aesthetic_scores)
        source, held_out = training.open_source(data)
        reader = reads.load(text_encoder=text_encoder)
        from avarc_cli.train.start import Start  # imports torch: only now, after all that may be wrong

        family, of_network = shape.of_network(context, reader)
        train_opened(
            source,
            held_out,
            out,
            reader,
            of_network,
            training,
            chosen,
            text_encoder,
            command="maskgen",
            family=family,
            start=None if start_from is None else Start.of(start_from),
            scores=scores,
        )
    common.show(out, training)
