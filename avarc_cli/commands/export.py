"""avarc export: likelihoods for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _dry_run, _images, _summary
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.options import Options, parse_batch_size

OF_A_CACHE = {
    *("model", "tokenizer", "model_config", "tokenizer_config", "class_names", "class_order", "bank"),
    *("captions", "templates", "text_encoder", "aesthetic_score", "lora", "lora_alpha", "image_size"),
    *("weight_set", "tokenizer_weight_set", "precision", "device"),
    *("batch_size", "limit", "sample", "seed", "devices", "engine"),
}


@with_option_groups
def export(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A token cache, which is scored, or the folder of a finished run.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="FILE.npz, FILE.h5 or FILE.parquet; a folder gets one npz per image.")
    ],
    classes: Annotated[
        str | None, typer.Option("--classes", help="Only these classes: a file, a known subset, or a list like 0,5,7.")
    ] = None,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="The log-probability of every token instead of their sum.")
    ] = False,
    limit: opt.LimitOpt = None,
    sample: opt.SampleOpt = None,
    seed: opt.SeedOpt = 0,
    overwrite: opt.OverwriteOpt = False,
    dry_run: _dry_run.DryRunOpt = False,
    work: groups.WorkersOptions,
    as_json: opt.JsonOpt = False,
    model: groups.ModelOptions,
    batch_size: opt.BatchSizeOpt = "auto",
) -> None:
    """Write log p(image | class) of every image and class to a file that plain numpy, HDF5 or Parquet readers load.

    A token cache is scored first, with the model named here; if it is interrupted, the same command resumes it. A run
    must have been made with --save-json or --save-likelihood, and keeps its own model.

    Example: avarc export runs/val --out val.npz
    """
    from avarc_cli.candidates import candidates
    from avarc_cli.export_cache import export_cache, is_unfinished
    from avarc_cli.results import export as library
    from avarc_cli.results.read_run import open_run

    library.writer(out, overwrite=overwrite or is_unfinished(out))  # a wrong name is an error before anything is done
    if not _summary.is_cache([source]):
        opt.check_not_given(context, OF_A_CACHE, f"with '{source}'", "it is a run, scored already by its own model")
        run = open_run(source)
        if dry_run:
            _dry_run.show({out: None})
            return
        shape = library.export_run(
            run, out, classes=classes, per_token=per_token, overwrite=overwrite, progress=console.progress
        )
        _show(out, shape)
        return
    from avarc_cli.tokens.cache import read

    workers = work.workers
    parse_batch_size(batch_size)
    part = _images.Part(limit, sample, seed)
    part.check()
    cache = part.of(read(source))
    options = Options(classes=classes, dataset=cache.header.dataset, batch_size=batch_size)
    model = model.naming(cache.header.class_names, classes, model.class_names)
    if (space := model.known_classes()) is not None:
        candidates(space, classes, cache.header.dataset)
    spec = work.place(context, model).fetch()
    from avarc_cli.classifier import load_classifier  # imports torch: only now, after all that may be wrong

    classifier = load_classifier(spec, options, progress=opt.captions_bar)
    opt.note_inferred(classifier.model)
    if dry_run:
        from avarc_cli.forecast import forecast_scoring

        forecast = forecast_scoring(classifier, cache.header, len(cache), keep_tokens=per_token)
        _dry_run.show({out: None}, scoring=forecast, classifier=classifier)
        return
    shape = export_cache(
        classifier,
        cache,
        out,
        per_token=per_token,
        overwrite=overwrite,
        workers=workers,
        progress=console.progress,
        say=console.warn,
        on_start=lambda run: _summary.announce(classifier, run),
    )
    _show(out, shape)


def _show(out: Path, shape: tuple[int, ...]) -> None:
    what = " x ".join(("images", "classes", "tokens")[: len(shape)])
    sizes = " x ".join(map(str, shape))
    console.result(
        {"out": out, "shape": shape}, console.path_and(out, f"log_likelihood {sizes} ({what})"), brief=str(out)
    )
