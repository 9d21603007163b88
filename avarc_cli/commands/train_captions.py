"""avarc train text-encoder and llamagen-t2i: a small text encoder, and a generator that reads captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _training as common
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.commands._recipe_options import DropoutOptions, GeneratorOptions
from avarc_cli.settings import check_heads, check_width

if TYPE_CHECKING:
    import torch

    from avarc_cli.data.image_scores import ImageScores
    from avarc_cli.loaded import LoadedTokenizer
    from avarc_cli.text.captions import Captions
    from avarc_cli.text.features import TextInput
    from avarc_cli.tokens.source import Source
    from avarc_cli.train.class_captions import ClassCaptions
    from avarc_cli.train.start import Start

NAMED_CAPTIONS = "Captions by name: .json or .csv."
HEAD_WIDTH = 16  # of the text encoder
CaptionsOpt = Annotated[Path, opt.model_option("--captions", help=f"{NAMED_CAPTIONS} The names are the classes'.")]
EncoderOpt = Annotated[
    str, opt.model_option("--text-encoder", help="A name or folder.", autocompletion=complete.text_encoders)
]


@with_option_groups
def text_encoder(
    captions: Annotated[Path, typer.Argument(help=NAMED_CAPTIONS)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; OUT.ckpt resumes training.")],
    positions: Annotated[int, opt.model_option("--positions", min=2, help="Words of a caption, and its end.")] = 32,
    pieces: Annotated[int, opt.model_option("--pieces", min=3, help="Rows for the pieces of words.")] = 512,
    width: Annotated[int, opt.model_option("--width", min=16, help="Channels, a multiple of 16.")] = 64,
    depth: common.DepthOpt = 1,
    steps: Annotated[int, opt.training_option("--steps", min=1, help="Optimizer steps.")] = 1500,
    batch_size: Annotated[int, opt.training_option("--batch-size", min=1, help="Captions in a step.")] = 64,
    lr: Annotated[float, opt.training_option("--lr", help="Peak learning rate.")] = 1e-3,
    seed: opt.SeedOpt = 0,
    as_json: opt.JsonOpt = False,
) -> None:
    """Train a small text encoder, which tells captions of different names apart, on the CPU.

    It serves models that are trained on a few kinds of captions, and knows no other words than theirs.

    Example: avarc train text-encoder captions.json --out text/
    """
    from avarc_cli.text import captions as caption_sets

    check_width(width, "a text encoder", multiple=HEAD_WIDTH)
    chosen = caption_sets.read(captions)
    with common.reserved(out, False, folder=True):
        from avarc_cli.text.small import SmallTextConfig  # imports torch: only now, after all that may be wrong
        from avarc_cli.train.recipe import Recipe
        from avarc_cli.train.text import train_text_encoder

        config = SmallTextConfig(positions=positions, pieces=pieces, width=width, depth=depth)
        recipe = Recipe(steps=steps, batch_size=batch_size, lr=lr, seed=seed)
        with common.progress("training text encoder", steps) as report:
            train_text_encoder(chosen.by_name, out, config, recipe, progress=report, say=console.warn)
    common.show(out)


@with_option_groups
def llamagen_t2i(
    data: common.TokensArg,
    *,
    out: common.OutOpt,
    captions: CaptionsOpt,
    text_encoder: EncoderOpt = "flan-t5-xl",
    reads: common.TokenizerOptions,
    shape: common.TransformerOptions,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: DropoutOptions,
) -> None:
    """Train a LlamaGen that reads captions, on the tokens of a folder with one sub-folder a class.

    At every step, an image has one of the captions of its class, drawn at random.

    Example: avarc train llamagen-t2i photos/ --captions captions.json --tokenizer vq.safetensors --out t2i.safetensors
    """
    check_heads(shape.width, shape.heads, "a LlamaGen")
    chosen = checked(captions, text_encoder)
    reads = reads.of(data)
    with common.reserved(out, overwrite, reads.tokenizer):
        source, held_out = training.open_source(data)
        reader = reads.load(text_encoder=text_encoder)
        train_opened(
            source,
            held_out,
            out,
            reader,
            vars(shape),
            training,
            chosen,
            text_encoder,
            command="llamagen-t2i",
            family="llamagen-t2i",
        )
    common.show(out, training)


def checked(captions: Path, text_encoder: str) -> Captions:
    """The captions of a file. Raises: UsageError for what is wrong with them, or with the name of the encoder."""
    from avarc_cli.text import captions as caption_sets

    caption_sets.check_options(captions, (), text_encoder)
    return caption_sets.read(captions)


def train_opened(
    source: Source,
    held_out: Source | None,
    out: Path,
    reader: LoadedTokenizer,
    shape: Mapping[str, Any],
    training: GeneratorOptions,
    chosen: Captions,
    text_encoder: str,
    *,
    command: str,
    family: str,
    start: Start | None = None,
    scores: ImageScores | None = None,
) -> None:
    """Train a generator of this family on images that are open already and captions that are not encoded yet.

    Args:
        command: named beside the progress.
        start, scores: as for `train_on_captions`.
    """
    from avarc_cli.layers import collectives
    from avarc_cli.train.captions import train_on_captions

    given, text = encoded(chosen, source, text_encoder, reader.device)
    recipe = training.recipe(len(source))
    with collectives.joined(reader.device), common.progress(f"training {command}", recipe.steps) as report:
        train_on_captions(
            source,
            out,
            reader,
            shape,
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


def encoded(
    chosen: Captions, source: Source, text_encoder: str, device: torch.device
) -> tuple[ClassCaptions, TextInput]:
    """The captions of the images' classes, encoded, and what a model reads of them; notes captions that were cut.

    Raises: UsageError as `ClassCaptions.of`, AvarcError as `encoders.find`.
    """
    from avarc_cli.text import encoders
    from avarc_cli.train.class_captions import ClassCaptions

    found = encoders.find(text_encoder)
    features = encoders.encode_once(found, chosen.texts, device)
    if note := features.note(found.positions):
        console.warn(note)
    return ClassCaptions.of(source, chosen, features.features), found.text_input(features.features)
