"""avarc train cca: a generator that tells classes apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _images
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _training as common
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.commands._recipe_options import FineTuningOptions
from avarc_cli.settings import check_contrast


@with_option_groups
def cca(
    data: common.TokensArg,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Weights to write (safetensors), or with --rank a folder as PEFT's.")
    ],
    rank: Annotated[
        int, opt.training_option("--rank", min=0, help="Train LoRA of this rank; 0 trains every weight.")
    ] = 0,
    beta: Annotated[
        float, opt.training_option("--beta", help="How fast a gain in log-likelihood (nats) saturates.")
    ] = 0.02,
    weight: Annotated[
        float, opt.training_option("--weight", help="Weight lambda of the pairs with another class.")
    ] = 1.0,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    model: groups.WeightsOptions,
    training: FineTuningOptions,
) -> None:
    """Fine-tune a generator to tell classes apart (condition contrastive alignment), whole or as a LoRA adapter.

    Example: avarc train cca photos/ --model var-d16 --rank 16 --out adapter/
    """
    check_contrast(beta, weight, training.class_dropout)
    with common.reserved(out, overwrite, model.model, model.tokenizer, folder=rank > 0):
        source, held_out = training.open_source(data)
        from avarc_cli.layers import collectives  # imports torch: only now, after all that may be wrong
        from avarc_cli.loading import load_model
        from avarc_cli.tokens.source import class_names
        from avarc_cli.train.cca import Contrast, align

        contrast = Contrast(beta=beta, weight=weight, class_dropout=training.class_dropout)
        loaded = load_model(model.fetch(), unbound=True)  # a model of captions is refused below, with the reason
        opt.note_inferred(loaded)
        recipe = training.recipe(len(source))
        _images.note_numbers(class_names(source), loaded.classes)
        with collectives.joined(loaded.tokenizer.device), common.progress("aligning", recipe.steps) as progress:
            align(
                source,
                out,
                loaded,
                recipe,
                contrast=contrast,
                rank=rank,
                augment=training.augmentation(),
                held_out=held_out,
                run=training.run(out),
                progress=progress,
                say=console.warn,
            )
    common.show(out, training)
