"""avarc train var, llamagen, randar, rar and maskgit: generators of classes."""

from __future__ import annotations

from typing import Annotated

from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _recipe_options as recipes
from avarc_cli.commands import _training as common
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.settings import MASKED_NETWORKS, check_fraction, check_heads, check_masked_network, check_width


@with_option_groups
def var(
    data: common.TokensArg,
    *,
    out: common.OutOpt,
    reads: common.TokenizerOptions,
    depth: common.DepthOpt = 8,
    width: Annotated[int, opt.model_option("--width", min=64, help="Channels, a multiple of 64.")] = 512,
    shared_aln: Annotated[
        bool, opt.model_option("--shared-aln", help="One class modulation for all blocks: fewer parameters.")
    ] = False,
    gates: Annotated[
        float, opt.model_option("--gates", help="Factor of the first gates of the branches: smaller for deeper models.")
    ] = 1e-5,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: recipes.ScalesOptions,
) -> None:
    """Train a VAR on the tokens of a folder with one sub-folder a class.

    Example: avarc train var photos/ --tokenizer tokenizer.safetensors --out var.safetensors
    """
    check_width(width, "a VAR")
    check_fraction(gates, "--gates")
    shape = {"depth": depth, "width": width, "shared_aln": shared_aln, "gates": gates}
    common.train_generator(data, out, shape, training, reads, family="var", overwrite=overwrite)


@with_option_groups
def llamagen(
    data: common.TokensArg,
    *,
    out: common.OutOpt,
    reads: common.TokenizerOptions,
    shape: common.TransformerOptions,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: recipes.DropoutOptions,
) -> None:
    """Train a LlamaGen on the tokens of a folder with one sub-folder a class.

    Example: avarc train llamagen photos/ --tokenizer vq.safetensors --out llamagen.safetensors
    """
    check_heads(shape.width, shape.heads, "a LlamaGen")
    common.train_generator(data, out, vars(shape), training, reads, family="llamagen", overwrite=overwrite)


@with_option_groups
def randar(
    data: common.TokensArg,
    *,
    out: common.OutOpt,
    reads: common.TokenizerOptions,
    shape: common.TransformerOptions,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: recipes.SkippingOptions,
) -> None:
    """Train a RandAR, which models the tokens in any order, each image in a new random one at every step.

    Example: avarc train randar photos/ --tokenizer vq.safetensors --out randar.safetensors
    """
    check_heads(shape.width, shape.heads, "a RandAR")
    common.train_generator(data, out, vars(shape), training, reads, family="randar", overwrite=overwrite)


@with_option_groups
def rar(
    data: common.TokensArg,
    *,
    out: common.OutOpt,
    reads: common.TokenizerOptions,
    shape: common.TransformerOptions,
    hidden: Annotated[
        int | None, opt.model_option("--hidden", min=1, help="Channels inside of the MLPs. Default: 4 times the width.")
    ] = None,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: recipes.OrdersOptions,
) -> None:
    """Train a RAR on the tokens of a folder with one sub-folder a class: in random orders, in the end in raster order.

    Example: avarc train rar photos/ --tokenizer vq.safetensors --out rar.safetensors
    """
    common.train_generator(
        data, out, {**vars(shape), "hidden": hidden}, training, reads, family="rar", overwrite=overwrite
    )


@with_option_groups
def maskgit(
    data: common.TokensArg,
    *,
    out: common.OutOpt,
    reads: common.TokenizerOptions,
    shape: common.TransformerOptions,
    network: Annotated[
        str,
        opt.model_option(
            "--network",
            help="uvit, or bert: as the published ones of TiTok L-32 and B-64.",
            autocompletion=complete.one_of("uvit", "bert"),
        ),
    ] = "uvit",
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: recipes.MaskGITOptions,
) -> None:
    """Train a MaskGIT, which predicts hidden tokens from visible ones.

    Example: avarc train maskgit photos/ --tokenizer titok.safetensors --out maskgit.safetensors
    """
    check_heads(shape.width, shape.heads, "a MaskGIT")
    check_masked_network(network, training.dropout)
    family = MASKED_NETWORKS[network]
    common.train_generator(data, out, vars(shape), training, reads, family=family, overwrite=overwrite)
