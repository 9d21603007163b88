"""avarc classify: the class under which each image is most likely."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _config, _dry_run, _images, _predictions, _shards, _summary
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.errors import EXIT_UNREADABLE, CacheError, UsageError
from avarc_cli.options import Options, parse_bytes
from avarc_cli.settings import (
    check_kernels,
    check_kernels_compute,
    check_one_precision,
    check_scoring_precision,
    precision_for,
)

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.data.labels import LabelSpace
    from avarc_cli.loading import ModelSpec
    from avarc_cli.results.run import Run, RunResult
    from avarc_cli.tokens.cache import TokenCache
    from avarc_cli.tokens.encode import EncodeResult
    from avarc_cli.work.shards import Shard
    from avarc_cli.work.workers import Workers


@dataclass(frozen=True, kw_only=True)
class _ModelOptions(groups.ModelOptions):
    precision: Annotated[
        str,
        opt.model_option(
            "--precision",
            help="fp32, tf32 (CUDA), bf16, fp16, int16 (CPU), int8 or fp8 (CUDA). cascade: a fast one that suits the "
            "machine, and fp32 for what it cannot decide; the predictions are those of fp32. bf16+fp32: the same with "
            "this one. auto: a cascade where its first precision is at least 1.5 times as fast as fp32, else fp32.",
            autocompletion=complete.scoring_precisions,
        ),
    ] = "fp32"
    kernels: Annotated[
        str,
        opt.model_option(
            "--kernels",
            help="torch: plain PyTorch; triton: avarc's own, for NVIDIA GPUs; flash: flash-attn's attention in half "
            "precision, the rest as triton or torch; auto: triton on an NVIDIA GPU in half and 8-bit precisions, else "
            "torch.",
            autocompletion=complete.one_of("auto", "torch", "triton", "flash"),
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kernels(self.kernels)
        check_kernels_compute(self.kernels, self.precision)

    def _check_precision(self) -> None:
        check_scoring_precision(self.precision)

    def _spec(self) -> ModelSpec:
        return replace(super()._spec(), kernels=self.kernels)


@dataclass(frozen=True, kw_only=True)
class _ScoringOptions(groups.ScoringOptions):
    plan: Annotated[
        str,
        opt.scoring_option(
            "--plan",
            callback=opt.read_plan,
            help="exhaustive, paper, segments:keep[:samples][@orders] per stage (6:10,10:3,10:1:3), FILE.json of avarc "
            "tune, or auto for the tuned plan that comes with the model. Also the reference's lists: "
            "'10,3,1 / 1,1,3 / 6,10,10'.",
            autocompletion=complete.plans,
        ),
    ] = "exhaustive"
    score: Annotated[
        str,
        opt.scoring_option(
            "--score",
            help="log-likelihood: log p(x|y); pmi: log p(x|y) - log p(x).",
            autocompletion=complete.one_of("log-likelihood", "pmi"),
        ),
    ] = "log-likelihood"
    combine: Annotated[
        str,
        opt.scoring_option(
            "--combine",
            help="How several orders become one score: mean, posterior, log-mean-exp.",
            autocompletion=complete.one_of("mean", "posterior", "log-mean-exp"),
        ),
    ] = "mean"
    memory: Annotated[
        str | None, opt.scoring_option("--memory", help="Stay within this much memory, weights included: 8GiB, 500MiB.")
    ] = None
    deterministic: Annotated[
        bool, opt.scoring_option("--deterministic", help="Fixed batch shapes: reruns agree bit for bit.")
    ] = False

    def __post_init__(self) -> None:
        from avarc_cli.scoring.combining import check_rule
        from avarc_cli.scoring.scores import score_function

        super().__post_init__()
        score_function(self.score)
        check_rule(self.combine)
        if self.memory is not None:
            parse_bytes(self.memory)
        opt.check_plan(self.plan)

    def check(self, space: LabelSpace | None, dataset: str) -> int | None:
        candidates = super().check(space, dataset)
        opt.check_plan(self.plan, candidates)
        return candidates

    def options(self, dataset: str) -> Options:
        return replace(
            super().options(dataset),
            plan=self.plan,
            score=self.score,
            combine=self.combine,
            memory=self.memory,
            deterministic=self.deterministic,
        )


@dataclass(frozen=True, kw_only=True)
class _OutputOptions:
    """What is written, and where."""

    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Run folder for predictions and metrics; continues an earlier run."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of another request in OUT.")] = False
    save_json: Annotated[bool, typer.Option("--save-json", help="Write each image's stages to OUT/json/.")] = False
    save_likelihood: Annotated[
        bool, typer.Option("--save-likelihood", help="Write each image's token log-probabilities to OUT/likelihood/.")
    ] = False
    results_file: Annotated[
        Path | None,
        typer.Option("--results-file", help="Also write the predictions to this file: .csv, .json or .parquet."),
    ] = None

    def check(self, data: list[Path]) -> None:
        """Raises: UsageError for what is not allowed, or is there already."""
        from avarc_cli.results.folder import RunFolder

        if self.overwrite and self.out is None and self.results_file is None:
            raise UsageError(
                "nothing to overwrite", "without --out, no run is written", "add --out, or omit --overwrite"
            )
        _predictions.check_file(self.results_file, self.out, overwrite=self.overwrite, inputs=data)
        if self.out is not None:
            RunFolder(self.out).check_contents()


@with_option_groups
def classify(
    context: typer.Context,
    data: Annotated[
        list[Path], typer.Argument(help=f"A token cache, a folder of images, image files, or {opt.A_LIST}.")
    ],
    *,
    output: _OutputOptions,
    dry_run: _dry_run.DryRunOpt = False,
    work: groups.WorkOptions,
    as_json: opt.JsonOpt = False,
    model: _ModelOptions,
    scoring: _ScoringOptions,
    encoding: groups.ImageOptions,
) -> None:
    """Classify images by their likelihood under each class.

    Images are encoded first, into OUT/tokens.h5 if OUT is given; a token cache is scored as it is. Several processes,
    on one machine or many, can each do a --shard of a cache; the run is the same.

    Example: avarc classify val.h5 --model var-d16 --plan paper --classes imagenet100 --out runs/val
    """
    from avarc_cli.tokens.cache import read

    own, workers = _shards.of_cache(data, output.out, work, overwrite=output.overwrite)
    _check_inputs(context, data, encoding, output)
    output.check(data)
    model = _with_precision(model, scoring, output)
    images = None if _summary.is_cache(data) else encoding.select(data)
    about = read(data[0]).header if images is None else images
    dataset = about.dataset
    model = model.naming(about.class_names, scoring.classes, model.class_names)
    scoring.check(model.known_classes(), dataset)
    spec = work.place(context, model).fetch()
    from avarc_cli.classifier import load_classifier  # imports torch: only now, after all that may be wrong

    options = encoding.average(context, scoring.options(dataset))
    classifier = load_classifier(spec, options, progress=opt.captions_bar)
    opt.note_inferred(classifier.model)
    if images is not None:
        opt.note_sigma(context, classifier.model.tokenizer)
        classifier.smoothing_samples(encoding.views)  # a wrong plan is an error before OUT is made
    _check_out(classifier, output, write=not dry_run)
    if dry_run:
        source = encoding.part.of(read(data[0])) if images is None else images
        _forecast(classifier, source, output, encoding)
        return
    if images is not None:
        _images.warn_of_photos(images, classifier.model.name)
    with (
        _predictions.reserved_file(output.results_file, overwrite=output.overwrite, inputs=data),
        tempfile.TemporaryDirectory() as scratch,
    ):
        folder = output.out or Path(scratch)
        encoded = None if images is None else _encode(classifier, images, folder, encoding, output.overwrite)
        classifier.model.tokenizer.free_memory()  # scoring encodes nothing
        unreadable = encoded.unreadable if encoded else []
        cache = read(encoded.path) if encoded else encoding.part.of(read(data[0]))
        run, result = _score(classifier, cache, output, _config.recorded(context), own, workers)
        _images.list_unreadable(unreadable)
        if result.complete:
            _summary.show(run, result, unreadable, out=output.out, results_file=output.results_file)
        elif output.out is not None:
            _shards.show(result, own, output.out)
    if unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def _check_inputs(
    context: typer.Context, data: list[Path], encoding: groups.ImageOptions, output: _OutputOptions
) -> None:
    images_only = [encoding.dataset, encoding.subset, encoding.per_class, *encoding.given]
    saves = output.save_json or output.save_likelihood
    _summary.check_request(data, output.out, saves, images_only=images_only)
    if _summary.is_cache(data):
        of_images = {"sigma", "workers"} | ({"seed"} if encoding.sample is None else set())
        opt.check_not_given(context, of_images, f"with '{data[0]}'", "it is encoded already")


def _with_precision(model: _ModelOptions, scoring: _ScoringOptions, output: _OutputOptions) -> _ModelOptions:
    """The model in the precision that is asked for; `auto` is fp32 where the other options rule out a cascade.

    Raises: UsageError for a cascade with --save-likelihood.
    """
    if output.save_likelihood:
        check_one_precision(model.precision, "--save-likelihood")
    suits_cascade = not output.save_likelihood and scoring.bound is None and scoring.combine == "mean"
    return replace(model, precision=precision_for(model.precision, cascade=suits_cascade))


def _check_out(classifier: Classifier, output: _OutputOptions, *, write: bool) -> None:
    """Find out before images are encoded whether the plan, and a run that OUT holds, allow this run."""
    from avarc_cli.results.folder import RunFolder

    plan = classifier.plan(keep_tokens=output.save_likelihood)
    if output.out is not None:
        folder = RunFolder(output.out)
        if write:
            folder.prepare()
        if output.overwrite:
            folder.check_own()
        else:
            _summary.check_same_plan(folder, str(plan))


def _forecast(
    classifier: Classifier, source: ImageSet | TokenCache, output: _OutputOptions, encoding: groups.ImageOptions
) -> None:
    """Print what classifying would take and write."""
    from avarc_cli.forecast import forecast_encoding, forecast_scoring
    from avarc_cli.tokens.cache import TokenCache

    out, first = output.out, None
    if isinstance(source, TokenCache):
        source.check(classifier.model.tokenizer)
        header = source.header
    else:
        how = {name: getattr(encoding, name) for name in ("preprocess", "views", "sigma", "seed")}
        first = forecast_encoding(source, lambda few, path: classifier.encode(few, path, workers=0, **how))
        header = first.header
    scoring = forecast_scoring(classifier, header, len(source), keep_tokens=output.save_likelihood)
    files: _dry_run.Files = {} if first is None or out is None else {out / "tokens.h5": first.token_bytes}
    files |= _dry_run.run_files(
        out,
        scoring,
        header.layout.num_tokens,
        save_json=output.save_json,
        save_likelihood=output.save_likelihood,
    )
    files |= {} if output.results_file is None else {output.results_file: None}
    _dry_run.show(files, encoding=first, scoring=scoring, classifier=classifier)


def _encode(
    classifier: Classifier, images: ImageSet, folder: Path, encoding: groups.ImageOptions, overwrite: bool
) -> EncodeResult:
    """The images as FOLDER/tokens.h5. Raises CacheError where that was made by another request."""
    with console.progress("encoding", len(images)) as bar:

        def encode(*, overwrite: bool) -> EncodeResult:
            return classifier.encode(
                images,
                folder / "tokens.h5",
                preprocess=encoding.preprocess,
                views=encoding.views,
                sigma=encoding.sigma,
                seed=encoding.seed,
                workers=encoding.workers,
                overwrite=overwrite,
                progress=bar.update,
                say=console.warn,
            )

        try:
            return encode(overwrite=False)  # tokens of this request are kept
        except CacheError as error:
            if not overwrite:
                fix = "name another --out, or replace the run with --overwrite"
                raise CacheError(error.what, error.why, fix) from None
        return encode(overwrite=True)


def _score(
    classifier: Classifier,
    cache: TokenCache,
    output: _OutputOptions,
    options: dict[str, Any],
    shard: Shard,
    workers: Workers,
) -> tuple[Run, RunResult]:
    from avarc_cli.results.run import accuracy_note

    runs: list[Run] = []

    def on_start(run: Run) -> None:
        runs.append(run)
        _summary.announce(classifier, run)

    with console.progress("classifying", len(cache)) as bar:
        result = classifier.classify_cache(
            cache,
            output.out,
            save_json=output.save_json,
            save_likelihood=output.save_likelihood,
            shard=shard,
            workers=workers,
            overwrite=output.overwrite,
            options=options,
            on_start=on_start,
            progress=lambda done, numbers: bar.update(done, note=accuracy_note(numbers), numbers=numbers),
            say=console.warn,
        )
    return runs[0], result
