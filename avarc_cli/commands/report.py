"""avarc report: a finished run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.settings import check_device, check_exists, check_file
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.loading import ModelSpec


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, made by avarc classify --out.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write. Default: report.html in the run folder.")
    ] = None,
    hardest: Annotated[
        int, typer.Option("--hardest", min=0, help="How many of the hardest images to explain; 0 for none.")
    ] = 8,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="The token cache that was classified, if it is not where it was.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="The run's model, if it is not where it was.", autocompletion=complete.models
        ),
    ] = None,
    tokenizer: opt.TokenizerOpt = None,
    model_config: opt.ModelConfigOpt = None,
    tokenizer_config: opt.TokenizerConfigOpt = None,
    class_names: opt.ClassNamesOpt = None,
    class_order: opt.ClassOrderOpt = None,
    bank: opt.BankOpt = None,
    captions: opt.CaptionsOpt = None,
    text_encoder: opt.TextEncoderOpt = None,
    lora: opt.LoraOpt = None,
    lora_alpha: opt.LoraAlphaOpt = None,
    weight_set: opt.WeightSetOpt = None,
    tokenizer_weight_set: opt.TokenizerWeightSetOpt = None,
    image_size: opt.ImageSizeOpt = None,
    device: opt.DeviceOpt = "auto",
    allow_outside: opt.AllowOutsideOpt = False,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Write a run's numbers, confusions, calibration and hardest images into one HTML page.

    The page needs nothing else: no network, no other file.

    Example: avarc report runs/val --out val.html
    """
    from avarc_cli import bank as banks
    from avarc_cli import outputs
    from avarc_cli.data.class_names import check_order
    from avarc_cli.results.read_run import check_finished
    from avarc_cli.text.captions import check_options
    from avarc_cli.tokens.cache import read
    from avarc_cli.zoo.cards import check_weights
    from avarc_cli.zoo.lora import check_alpha, find_adapter

    check_finished(run)
    for name in filter(None, (model, tokenizer)):
        check_weights(name)
    check_device(device)
    check_file(model_config, "--model-config")
    check_file(tokenizer_config, "--tokenizer-config")
    check_exists(class_names, "--class-names")
    check_order(class_order)
    check_options(captions, (), text_encoder)
    if lora is not None:
        find_adapter(lora)
    check_alpha(lora_alpha)
    if tokens is not None:
        read(tokens)
    if bank is not None:
        banks.read(bank)

    def load(spec: ModelSpec) -> Classifier:
        from avarc_cli.classifier import load_classifier  # imports torch

        return load_classifier(spec, progress=opt.captions_bar)

    given = {
        "model": model,
        "tokenizer": tokenizer,
        "model_config": model_config,
        "tokenizer_config": tokenizer_config,
        "class_names": class_names,
        "class_order": class_order,
        "device": device,
        "bank": bank,
        "captions": captions,
        "text_encoder": text_encoder,
        "lora": lora,
        "lora_alpha": lora_alpha,
        "weight_set": weight_set,
        "tokenizer_weight_set": tokenizer_weight_set,
        "image_size": image_size,
    }
    page = out or run / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    with outputs.reserved(page, outputs.HTML, overwrite=overwrite):
        from avarc_cli.explain import write_report  # imports torch: only now, after all that may be wrong

        written = write_report(
            run,
            page,
            load,
            hardest=hardest,
            tokens=tokens,
            rescore=tokens is not None or model is not None,
            given=given,
            allow_outside=allow_outside,
            progress=console.progress,
        )
        if written.note:
            console.note(written.note)
        text = console.path_and(written.page, f"{counted(written.images, 'image')}, {written.explained} explained")
        console.result(written, text, brief=str(written.page))
