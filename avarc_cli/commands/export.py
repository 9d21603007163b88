"""avarc export: likelihoods for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _dry_run, _images, _of_run, _summary
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.options import Options, parse_batch_size

if TYPE_CHECKING:
    from avarc_cli.cache_classifier import CacheClassifier
    from avarc_cli.results.read_run import SavedRun
    from avarc_cli.tokens.cache import TokenCache
    from avarc_cli.work.workers import Workers

OF_SCORING = {
    *("model", "tokenizer", "model_config", "tokenizer_config", "class_names", "class_order", "bank"),
    *("captions", "templates", "text_encoder", "aesthetic_score", "lora", "lora_alpha", "image_size"),
    *("weight_set", "tokenizer_weight_set", "precision", "device", "devices", "engine", "tokens", "allow_outside"),
}
DECIDED = {"batch_size", "limit", "sample", "seed"}
"""Options that say what a run has decided already."""


@with_option_groups
def export(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A token cache, which is scored, or the folder of a finished run.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="FILE.npz, FILE.h5 or FILE.parquet; a folder gets one npz per image.")
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="Only these classes: a file, a known subset, or a list like 0,5,7.",
            autocompletion=complete.candidates,
        ),
    ] = None,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="The log-probability of every token instead of their sum.")
    ] = False,
    limit: opt.LimitOpt = None,
    sample: opt.SampleOpt = None,
    seed: opt.SeedOpt = 0,
    tokens: opt.TokensOfRunOpt = None,
    overwrite: opt.OverwriteOpt = False,
    dry_run: _dry_run.DryRunOpt = False,
    work: groups.WorkersOptions,
    as_json: opt.JsonOpt = False,
    model: groups.ModelOptions,
    batch_size: opt.BatchSizeOpt = "auto",
    allow_outside: opt.AllowOutsideOpt = False,
) -> None:
    """Write log p(image | class) of every image and class to a file that plain numpy, HDF5 or Parquet readers load.

    A token cache is scored first, with the model named here; if it is interrupted, the same command resumes it. A run
    that did not save its likelihoods (--save-json, --save-likelihood) is scored again, by its own model.

    Example: avarc export runs/val --out val.npz
    """
    from avarc_cli.export_cache import is_unfinished
    from avarc_cli.results import export as library

    library.writer(out, overwrite=overwrite or is_unfinished(out))  # a wrong name is an error before anything is done
    ask = _Request(out, classes, per_token, overwrite, dry_run, work.workers)
    if not _summary.is_cache([source]):
        from avarc_cli.results.read_run import open_run

        run = open_run(source)
        if run.saves(per_token=per_token):
            opt.check_not_given(context, OF_SCORING | DECIDED, f"with '{source}'", "it saved its likelihoods")
            ask.export_saved(run)
            return
        opt.check_not_given(context, DECIDED, f"with '{source}'", "it is a run, classified already")
        found = _of_run.find(context, run, tokens, model, allow_outside=allow_outside)
        ask.export_again(run, found, work.place(context, found.model))
        return
    _of_run.check_no_tokens(tokens)
    from avarc_cli.candidates import candidates
    from avarc_cli.tokens.cache import read

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
    from avarc_cli.export_cache import export_cache

    classifier = load_classifier(spec, options, progress=opt.captions_bar)
    opt.note_inferred(classifier.model)
    if not ask.is_answered_by_forecast(classifier, cache, keep_tokens=per_token):
        _show(out, export_cache(classifier, cache, out, per_token=per_token, **ask.how(classifier)))


@dataclass(frozen=True)
class _Request:
    """What is asked for, of a cache or of a run."""

    out: Path
    classes: str | None
    per_token: bool
    overwrite: bool
    dry_run: bool
    workers: Workers

    def export_saved(self, run: SavedRun) -> None:
        """Export what the run saved."""
        from avarc_cli.results.export import export_run

        if self.dry_run:
            _dry_run.show({self.out: None})
            return
        choice: dict[str, Any] = {"classes": self.classes, "per_token": self.per_token, "overwrite": self.overwrite}
        _show(self.out, export_run(run, self.out, **choice, progress=console.progress))

    def export_again(self, run: SavedRun, found: _of_run.Found, model: groups.ModelOptions) -> None:
        """Score the run's images again, and export that."""
        from avarc_cli.export_cache import export_run_again, needs_tokens, open_again
        from avarc_cli.results.export import check_shape

        run.columns(self.classes)
        check_shape(run, self.out)
        spec = model.fetch()
        from avarc_cli.loading import load_model  # imports torch

        classifier, cache = open_again(run, load_model(spec), found.cache, found.orders)
        if self.is_answered_by_forecast(classifier, cache, keep_tokens=needs_tokens(run, self.per_token)):
            return
        choice: dict[str, Any] = {"classes": self.classes, "per_token": self.per_token}
        _show(self.out, export_run_again(run, classifier, cache, self.out, **choice, **self.how(classifier)))

    def is_answered_by_forecast(self, classifier: CacheClassifier, cache: TokenCache, *, keep_tokens: bool) -> bool:
        """Print what scoring takes, if that is all that is asked for."""
        if self.dry_run:
            from avarc_cli.forecast import forecast_scoring

            forecast = forecast_scoring(classifier, cache.header, len(cache), keep_tokens=keep_tokens)
            _dry_run.show({self.out: None}, scoring=forecast, classifier=classifier)
        return self.dry_run

    def how(self, classifier: CacheClassifier) -> dict[str, Any]:
        """Who scores, and what is reported."""
        announce = partial(_summary.announce, classifier)
        shown = {"progress": console.progress, "say": console.warn, "on_start": announce}
        return {"overwrite": self.overwrite, "workers": self.workers, **shown}


def _show(out: Path, shape: tuple[int, ...]) -> None:
    what = " x ".join(("images", "classes", "tokens")[: len(shape)])
    sizes = " x ".join(map(str, shape))
    console.result(
        {"out": out, "shape": shape}, console.path_and(out, f"log_likelihood {sizes} ({what})"), brief=str(out)
    )
