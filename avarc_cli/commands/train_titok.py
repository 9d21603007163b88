"""avarc train titok: a TiTok of one stage, or of two."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _training as common
from avarc_cli.commands import _weights
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.commands._loss_options import OF_DISCRIMINATOR, CodeOptions, LossOptions
from avarc_cli.commands._recipe_options import TokenizerRecipeOptions
from avarc_cli.errors import UsageError
from avarc_cli.settings import check_device, check_file, check_patch, check_width
from avarc_cli.zoo.cards import check_weights

LOSS = ("vgg", "lpips", "convnext", "dino", "lpips_weight", "convnext_weight", "adversarial", *OF_DISCRIMINATOR)
OF_CODES = ("vocab", "revive", "reanchor", "perturbation")
VaeOpt = Annotated[bool, opt.model_option("--vae", help="Continuous tokens, those of a VAE, in place of codes.")]


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """The shape of a TiTok."""

    patch: Annotated[int, opt.model_option("--patch", min=1, help="Side of a patch in pixels.")] = 8
    tokens: Annotated[int, opt.model_option("--tokens", min=1, help="Tokens of an image.")] = 32
    vocab: common.VocabularyOpt = 512
    channels: common.CodeChannelsOpt = 12
    width: Annotated[int, opt.model_option("--width", min=64, help="Channels, a multiple of 64.")] = 256
    depth: common.DepthOpt = 6
    decoder_width: Annotated[
        int | None, opt.model_option("--decoder-width", min=64, help="Channels of the decoder. Default: --width.")
    ] = None
    decoder_depth: Annotated[
        int | None, opt.model_option("--decoder-depth", min=1, help="Blocks of the decoder. Default: --depth.")
    ] = None

    def check(self, title: str) -> None:
        """Raises: UsageError for a width that the network cannot have. title: "a TiTok"."""
        check_width(self.width, title)
        check_width(self.decoder_width or self.width, f"{title}'s decoder")

    def of_network(self, *, vae: bool) -> dict[str, Any]:
        """The same in the family's own terms. vae: whether the tokens are continuous."""
        return {
            "patch": self.patch,
            "num_tokens": self.tokens,
            "vocab_size": 0 if vae else self.vocab,
            "code_channels": self.channels,
            "width": self.width,
            "depth": self.depth,
            "decoder_width": self.decoder_width,
            "decoder_depth": self.decoder_depth,
        }


SHAPE = tuple(field.name for field in fields(ShapeOptions))


@with_option_groups
def titok(
    context: typer.Context,
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    codes_of: Annotated[
        str | None,
        opt.model_option(
            "--codes-of",
            help="A MaskGIT-VQGAN's name or file: train in two stages, the first on its tokens.",
            autocompletion=complete.tokenizers,
        ),
    ] = None,
    start_from: Annotated[
        Path | None, opt.model_option("--start-from", help="File of a first stage: train the second, on pixels.")
    ] = None,
    image_size: common.ImageSizeOpt = 64,
    vae: VaeOpt = False,
    shape: ShapeOptions,
    device: opt.DeviceOpt = "auto",
    yes: opt.YesOpt = False,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: TokenizerRecipeOptions,
    loss: LossOptions,
    codes: CodeOptions,
) -> None:
    """Train a TiTok, whose tokens describe the image as a whole, for a MaskGIT.

    In a single stage on pixels; or in two: with --codes-of on the tokens of a MaskGIT-VQGAN, which decides image size
    and patches, then with --start-from as well on pixels.

    Example: avarc train titok photos/ --image-size 64 --out titok.safetensors
    """
    shape.check("a TiTok")
    check_vae(context, vae)
    _check_stage(context, codes_of, start_from)
    of_network = shape.of_network(vae=vae)
    if codes_of is None:
        check_patch(image_size, shape.patch)
        common.train_tokenizer(
            data,
            out,
            of_network,
            training,
            loss,
            codes,
            family="titok",
            image_size=image_size,
            device=device,
            overwrite=overwrite,
        )
        return
    if not opt.is_given(context, "patch"):
        of_network["patch"] = None  # the teacher decides
    _train_stage(
        data,
        out,
        of_network,
        training,
        loss,
        codes_of,
        start_from,
        image_size=image_size if opt.is_given(context, "image_size") else None,
        device=device,
        yes=yes,
        overwrite=overwrite,
    )


def check_vae(context: typer.Context, vae: bool) -> None:
    """Raises: UsageError for options about codes, where there are none."""
    if vae:
        opt.check_not_given(context, OF_CODES, "with --vae", "it is about codes, and a VAE has none")


def _check_stage(context: typer.Context, codes_of: str | None, start_from: Path | None) -> None:
    """Raises: UsageError for options that the training in one stage, or this one of two, does not have."""
    if start_from is not None:
        if codes_of is None:
            raise UsageError(
                "--start-from needs --codes-of",
                "the second stage begins with the decoder of the tokenizer whose codes the first one predicts",
                "add --codes-of with the same tokenizer as in the first stage",
            )
        opt.check_not_given(context, SHAPE, "with --start-from", "the first stage has decided the shape")
    elif codes_of is not None:
        opt.check_not_given(context, LOSS, "in the first stage", "it is trained on tokens, not on pixels")
    if codes_of is not None:
        one_stage = ("revive", "reanchor", "perturbation", "vae")
        opt.check_not_given(context, one_stage, "in two stages", "it is for the training in one")


def _train_stage(
    data: list[Path],
    out: Path,
    shape: dict[str, Any],
    training: TokenizerRecipeOptions,
    loss: LossOptions,
    codes_of: str,
    start_from: Path | None,
    *,
    image_size: int | None,
    device: str,
    yes: bool,
    overwrite: bool,
) -> None:
    """Train one of two stages: the second where there is a file to start from. Shows where the result is."""
    check_device(device)
    check_weights(codes_of)
    check_file(start_from, "--start-from")
    with common.reserved(out, overwrite, codes_of, start_from):
        images, held_out = training.open(data)
        _weights.ensure(codes_of, yes=yes)
        from avarc_cli.layers import collectives  # imports torch: only now, after all that may be wrong
        from avarc_cli.loading import ModelSpec, load_tokenizer
        from avarc_cli.train import stages

        teacher = load_tokenizer(ModelSpec(codes_of, image_size=image_size, device=device))
        opt.note_inferred(teacher)
        recipe, augment = training.recipe(len(images)), training.augmentation()
        which = "first" if start_from is None else "second"
        with collectives.joined(teacher.device), common.progress(f"training {which} stage", recipe.steps) as report:
            how: dict[str, Any] = {
                "family": "titok",
                "augment": augment,
                "held_out": held_out,
                "run": training.run(out),
                "progress": report,
                "say": console.warn,
            }
            if start_from is None:
                stages.train_first_stage(images, out, teacher, shape, recipe, **how)
            else:
                how |= {"terms": loss.terms(), "note": console.note}
                stages.train_second_stage(images, out, start_from, teacher, recipe, **how)
    common.show(out, training)
