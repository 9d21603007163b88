"""avarc report: a finished run as one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.settings import check_device, check_exists, check_file
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.loading import ModelSpec


@dataclass(frozen=True, kw_only=True)
class _ModelOfRun:
    """The model of a run and what belongs to it, as far as run.json does not say where they are now."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="The run's model, if it is not where it was.", autocompletion=complete.models
        ),
    ] = None
    tokenizer: opt.TokenizerOpt = None
    model_config: opt.ModelConfigOpt = None
    tokenizer_config: opt.TokenizerConfigOpt = None
    class_names: opt.ClassNamesOpt = None
    class_order: opt.ClassOrderOpt = None
    bank: opt.BankOpt = None
    captions: opt.CaptionsOpt = None
    text_encoder: opt.TextEncoderOpt = None
    lora: opt.LoraOpt = None
    lora_alpha: opt.LoraAlphaOpt = None
    weight_set: opt.WeightSetOpt = None
    tokenizer_weight_set: opt.TokenizerWeightSetOpt = None
    image_size: opt.ImageSizeOpt = None
    device: opt.DeviceOpt = "auto"

    def check(self) -> None:
        """Raises: UsageError, CheckpointError for values that no model could make sense of."""
        from avarc_cli import bank as banks
        from avarc_cli.data.class_names import check_order
        from avarc_cli.text.captions import check_options
        from avarc_cli.zoo.cards import check_weights
        from avarc_cli.zoo.lora import check_alpha, find_adapter

        for name in filter(None, (self.model, self.tokenizer)):
            check_weights(name)
        check_device(self.device)
        check_file(self.model_config, "--model-config")
        check_file(self.tokenizer_config, "--tokenizer-config")
        check_exists(self.class_names, "--class-names")
        check_order(self.class_order)
        check_options(self.captions, (), self.text_encoder)
        if self.lora is not None:
            find_adapter(self.lora)
        check_alpha(self.lora_alpha)
        if self.bank is not None:
            banks.read(self.bank)


@with_option_groups
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
    *,
    model: _ModelOfRun,
    allow_outside: opt.AllowOutsideOpt = False,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Write a run's numbers, confusions, calibration and hardest images into one HTML page.

    The page needs nothing else: no network, no other file.

    Example: avarc report runs/val --out val.html
    """
    from avarc_cli import outputs
    from avarc_cli.results.read_run import check_finished
    from avarc_cli.tokens.cache import read

    check_finished(run)
    model.check()
    if tokens is not None:
        read(tokens)
    page = out or run / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    with outputs.reserved(page, outputs.HTML, overwrite=overwrite):
        from avarc_cli.explain import write_report  # imports torch: only now, after all that may be wrong

        written = write_report(
            run,
            page,
            _load,
            hardest=hardest,
            tokens=tokens,
            rescore=tokens is not None or model.model is not None,
            given=vars(model),
            allow_outside=allow_outside,
            progress=console.progress,
        )
        if written.note:
            console.note(written.note)
        text = console.path_and(written.page, f"{counted(written.images, 'image')}, {written.explained} explained")
        console.result(written, text, brief=str(written.page))


def _load(spec: ModelSpec) -> Classifier:
    from avarc_cli.classifier import load_classifier  # imports torch

    return load_classifier(spec, progress=opt.captions_bar)
