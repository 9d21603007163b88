"""avarc export: likelihoods for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _summary, _weights

if TYPE_CHECKING:
    from avarc_cli.results.read_run import SavedRun

OF_A_CACHE = {"model", "tokenizer", "class_names", "bank", "lora", "precision", "device", "batch_size", "limit"}


def export(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A token cache, which is scored, or the folder of a finished run.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="FILE.npz, FILE.h5 or FILE.parquet; a folder gets one npz an image.")
    ],
    classes: Annotated[
        str | None, typer.Option("--classes", help="Only these classes: a file, a known subset, or a list like 0,5,7.")
    ] = None,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="The log-probability of every token instead of their sum.")
    ] = False,
    model: opt.ModelOpt = "digits",
    tokenizer: opt.TokenizerOpt = None,
    class_names: opt.ClassNamesOpt = None,
    bank: opt.BankOpt = None,
    lora: opt.LoraOpt = None,
    precision: opt.PrecisionOpt = "fp32",
    device: opt.DeviceOpt = "auto",
    yes: _weights.YesOpt = False,
    batch_size: opt.BatchSizeOpt = "auto",
    limit: opt.LimitOpt = None,
    as_json: opt.JsonOpt = False,
) -> None:
    """Write log p(image | class) of every image and class to a file that plain numpy, HDF5 or Parquet readers load.

    A token cache is scored first, with the model named here; interrupted, it goes on where it stopped. A run must
    have been made with --save-json or --save-likelihood, and its own model counts.

    Example: avarc export runs/val --out val.npz
    """
    from avarc_cli.results import export as library
    from avarc_cli.results.read_run import open_run

    library.writer(out)  # a wrong name is told before anything is scored
    if not _summary.is_cache([source]):
        opt.check_not_given(context, OF_A_CACHE, f"with '{source}'", "it is a run, scored already by its own model")
        _write(open_run(source), classes, per_token, out)
        return
    from avarc_cli.classifier import load_classifier
    from avarc_cli.loading import ModelSpec
    from avarc_cli.options import Options
    from avarc_cli.results.folder import RunFolder
    from avarc_cli.results.run import classify
    from avarc_cli.tokens.cache import read

    _weights.ensure(model, tokenizer, yes=yes)
    cache = read(source).first(limit)
    spec = ModelSpec(
        model, tokenizer, class_names=class_names, precision=precision, device=device, bank=bank, lora=lora
    )
    dataset = cache.header.dataset
    options = Options(classes=classes, dataset=dataset, batch_size=batch_size)
    classifier = load_classifier(spec, options)
    folder = RunFolder(out.with_name(out.name + ".run"))
    request = classifier.request(
        cache.header.samples, keep_tokens=per_token, tokens_per_batch=folder.recorded("tokens_per_batch")
    )
    run = classifier.run(cache, request, save_json=not per_token, save_likelihood=per_token)
    _summary.announce(classifier, run)
    with console.progress("scoring", len(cache)) as bar:
        classify(run, folder, progress=lambda done, numbers: bar.update(done), say=console.warn)
    _write(open_run(folder.path), None, per_token, out)
    folder.remove()


def _write(run: SavedRun, classes: str | None, per_token: bool, out: Path) -> None:
    from avarc_cli.results.export import Table, export

    table = Table(run, run.columns(classes), per_token)
    with console.progress("writing", len(run.records)) as bar:
        export(table, out, bar.update)
    shape = " x ".join(map(str, table.shape))
    what = "images x classes x tokens" if per_token else "images x classes"
    console.result({"out": out, "shape": table.shape}, f"{out}: log_likelihood {shape} ({what})", brief=str(out))
