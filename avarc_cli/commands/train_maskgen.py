"""avarc train maskgen: a generator of hidden tokens that reads captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _training as common
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.commands._recipe_options import HiddenOptions
from avarc_cli.commands.train_captions import CaptionsOpt, EncoderOpt, checked, encoded
from avarc_cli.settings import check_file, check_heads

HEAD = ("head_width", "head_depth")
SHAPE = ("depth", "width", "heads", *HEAD)


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
    shape: common.TransformerOptions,
    head_width: Annotated[
        int | None,
        opt.model_option("--head-width", min=1, help="Channels of the head of continuous tokens. Default: --width."),
    ] = None,
    head_depth: Annotated[int, opt.model_option("--head-depth", min=1, help="Blocks of that head.")] = 3,
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
    with common.reserved(out, overwrite, reads.tokenizer, None if start_from is None else str(start_from)):
        from avarc_cli.data import image_scores

        scores = None if aesthetic_scores is None else image_scores.read(aesthetic_scores)
        source, held_out = training.open_source(data)
        reader = reads.load(text_encoder=text_encoder)
        from avarc_cli.layers import collectives  # imports torch: only now, after all that may be wrong
        from avarc_cli.train.captions import train_on_captions
        from avarc_cli.train.start import Start

        family, of_network = "maskgen", dict[str, Any](vars(shape))
        if reader.channels:
            family = "maskgen-kl"
            of_network |= {"head_width": head_width or shape.width, "head_depth": head_depth}
        else:
            opt.check_not_given(
                context, HEAD, "here", f"the tokens of {reader.name} are codes, which need no such head"
            )
        start = None if start_from is None else Start.of(start_from)
        given, text = encoded(chosen, source, text_encoder, reader.device)
        recipe = training.recipe(len(source))
        with collectives.joined(reader.device), common.progress("training maskgen", recipe.steps) as report:
            train_on_captions(
                source,
                out,
                reader,
                of_network,
                recipe,
                family=family,
                captions=given,
                text=text,
                start=start,
                scores=scores,
                augment=training.augmentation(),
                held_out=held_out,
                run=training.run(out),
                progress=report,
                say=console.warn,
                note=console.note,
            )
    common.show(out, training)
