"""avarc explain: which parts of an image speak for which class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _images, _of_run, _shards, _summary
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.errors import EXIT_UNREADABLE
from avarc_cli.options import Options
from avarc_cli.storage import beside
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.data.labels import LabelSpace
    from avarc_cli.explain import ExplainOptions, ExplainResult, Explanation, Weighting
    from avarc_cli.results.read_run import SavedRun
    from avarc_cli.tokens.cache import TokenCache


@dataclass(frozen=True, kw_only=True)
class _ScoringOptions(groups.CandidateOptions):
    plan: Annotated[
        str,
        opt.scoring_option(
            "--plan",
            autocompletion=complete.plans,
            callback=opt.read_plan,
            help="How to find the prediction and the contrast class (avarc classify).",
        ),
    ] = "exhaustive"

    def __post_init__(self) -> None:
        super().__post_init__()
        opt.check_plan(self.plan)

    def check(self, space: LabelSpace | None, dataset: str) -> int | None:
        candidates = super().check(space, dataset)
        opt.check_plan(self.plan, candidates)
        return candidates

    def options(self, dataset: str) -> Options:
        return replace(super().options(dataset), plan=self.plan)


@with_option_groups
def explain(
    context: typer.Context,
    data: Annotated[
        list[Path], typer.Argument(help=f"A run, a token cache, a folder of images, image files, or {opt.A_LIST}.")
    ],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="What to write: a picture (.png, .svg), or a page with values (.html).")
    ] = Path("explanation.png"),
    npz: Annotated[Path | None, typer.Option("--npz", help="Also write the raw arrays to this file.")] = None,
    target: Annotated[
        str,
        typer.Option(
            "--class",
            help="The class to explain: prediction, label, or a class's name.",
            autocompletion=complete.one_class("prediction", "label"),
        ),
    ] = "prediction",
    contrast: Annotated[
        str,
        typer.Option(
            "--vs",
            help="The class to compare it with: rival (the strongest other), label, or a name.",
            autocompletion=complete.one_class("rival", "label", "prediction"),
        ),
    ] = "rival",
    weighting: Annotated[
        str,
        typer.Option(
            "--weighting",
            help="paper: every token counts once; uniform: once for each cell that it covers.",
            autocompletion=complete.one_of("paper", "uniform"),
        ),
    ] = "paper",
    scales: Annotated[str | None, typer.Option("--scales", help="Only these scales, counted from 1: 4-10.")] = None,
    upsample: Annotated[
        str,
        typer.Option(
            "--upsample",
            help="area: exact sums; nearest: cell by cell, as in the paper's figures.",
            autocompletion=complete.one_of("area", "nearest"),
        ),
    ] = "area",
    rows: Annotated[str | None, typer.Option("--rows", help="Only these rows, counted from 0: 3,10-12.")] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            help="Only images that are wrong, right or unsure.",
            autocompletion=complete.one_of("wrong", "right", "unsure"),
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", help="At most N images, the least likely first. Default: as many as are legible."),
    ] = None,
    tokens: opt.TokensOfRunOpt = None,
    overwrite: opt.OverwriteOpt = False,
    work: groups.WorkersOptions,
    as_json: opt.JsonOpt = False,
    model: groups.ModelOptions,
    scoring: _ScoringOptions,
    pixels: groups.PixelOptions,
    workers: opt.WorkersOpt = None,
    allow_outside: opt.AllowOutsideOpt = False,
) -> None:
    """Show which parts of an image speak for a class, and which against it, in nats.

    Maps of log p(x|class) - log p(x), for the prediction and its strongest rival, and of one against the other.

    Of a run (avarc classify --out) the predictions are explained, with its own model.

    Example: avarc explain val.h5 --model var-d16 --only wrong --limit 12 --out wrong.html
    """
    from avarc_cli import outputs
    from avarc_cli.explain import write
    from avarc_cli.explain.maps import Weighting, parse_scales
    from avarc_cli.explain.options import ExplainOptions
    from avarc_cli.explain.predictions import check_subset, parse_rows
    from avarc_cli.tokens.cache import read

    how = Weighting(weights=weighting, scales=parse_scales(scales), upsample=upsample)
    check_subset(only)
    run = _of_run.open_if_run(context, data, tokens)
    _summary.check_request(data, None, False, images_only=[*pixels.given, workers])
    encoded, on = run is not None or _summary.is_cache(data), work.workers
    if on.elsewhere and not encoded:
        raise _shards.not_encoded(on.elsewhere, data[0])
    images = None if encoded else _images.select(data, None, None, allow_outside=allow_outside)
    out.parent.mkdir(parents=True, exist_ok=True)
    inputs = data if images is None else images.paths
    with (
        outputs.reserved(out, *write.KINDS, overwrite=overwrite, inputs=inputs),
        outputs.reserved(npz, outputs.NPZ, overwrite=overwrite),
    ):
        listed = rows is not None or (images is not None and len(images) == len(data))
        options = ExplainOptions(
            target=target,
            contrast=contrast,
            rows=rows,
            only=only,
            limit=limit if limit is not None or listed else write.default_images(out),
            max_images=write.max_images(out),
            keep_order=listed,
        )
        task = _Task(context, options, how, out, npz, work)
        if run is not None:
            _explain_run(task, run, _of_run.find(context, run, tokens, model, allow_outside=allow_outside))
            return
        source = read(data[0]) if images is None else images
        if rows is not None:
            parse_rows(rows, len(source))
        classifier = _load(task, source, model, scoring, pixels)
        title = f"Why? {', '.join(str(d) for d in data[:3])}"
        result = _explain_source(task, source, classifier, pixels, title, workers=workers, overwrite=overwrite)
        if result.unreadable:
            raise typer.Exit(EXIT_UNREADABLE)


@dataclass(frozen=True)
class _Task:
    """What is to be explained and how, and where it is written."""

    context: typer.Context
    options: ExplainOptions
    how: Weighting
    out: Path
    npz: Path | None
    work: groups.WorkersOptions

    @property
    def maps(self) -> Path:
        """Folder of the maps that are finished, until all are."""
        return beside(self.out, ".maps")

    def finish(self, result: ExplainResult, title: str, model: str) -> None:
        """Write and show the explanations by a model of this name."""
        from avarc_cli.explain import write

        about = _about(result, self.options.only, model, self.how)
        write.write_explanations(result.explanations, self.how, self.out, title=title, about=about, npz=self.npz)
        _show(result, self.how, self.out, self.npz, about)

    def delete_maps(self) -> None:
        """Delete what a kill would have left."""
        from avarc_cli.work import chunks

        chunks.delete(self.maps)


def _explain_run(task: _Task, run: SavedRun, found: _of_run.Found) -> None:
    """Explain the predictions of a run, by its own model."""
    placed = replace(found, model=task.work.place(task.context, found.model))
    explained = placed.explain(run, task.options, task.how, task.maps, task.work.workers)
    task.finish(explained, f"Why? {run.path}", placed.model.model)
    task.delete_maps()


def _load(
    task: _Task,
    source: ImageSet | TokenCache,
    model: groups.ModelOptions,
    scoring: _ScoringOptions,
    pixels: groups.PixelOptions,
) -> Classifier:
    """The classifier for these images; what is wrong with the request is reported before it is loaded."""
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.explain.comparison import parse_comparison

    about_images = source if isinstance(source, ImageSet) else source.header
    model = model.naming(about_images.class_names, scoring.classes, model.class_names)
    if (space := model.known_classes()) is not None:
        scoring.check(space, about_images.dataset)
        parse_comparison(task.options.target, task.options.contrast, space)
    spec = task.work.place(task.context, model).fetch()
    from avarc_cli.classifier import load_classifier  # imports torch: only now, after all that may be wrong

    chosen = pixels.average(task.context, scoring.options(about_images.dataset))
    classifier = load_classifier(spec, chosen, progress=opt.captions_bar)
    opt.note_inferred(classifier.model)
    if isinstance(source, ImageSet):
        _images.warn_of_photos(source, classifier.model.name)
    _images.note_numbers(about_images.class_names, classifier.model.classes)
    task.how.of_grids(classifier.model.tokenizer.layout)  # wrong scales are an error before images are scored
    return classifier


def _explain_source(
    task: _Task,
    source: ImageSet | TokenCache,
    classifier: Classifier,
    pixels: groups.PixelOptions,
    title: str,
    *,
    workers: int | None,
    overwrite: bool,
) -> ExplainResult:
    """Score images or a token cache, and explain them; scores and maps of a cache survive a kill."""
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.explain import explain_images
    from avarc_cli.results.folder import RunFolder

    scores = None if isinstance(source, ImageSet) else RunFolder(beside(task.out, ".run"))
    result = explain_images(
        classifier,
        source,
        task.options,
        preprocess=pixels.preprocess,
        views=pixels.views,
        workers=workers,
        scores=scores,
        maps=task.maps if scores is not None else None,
        on=task.work.workers,
        overwrite=overwrite,
        progress=console.progress,
        say=console.warn,
    )
    _images.list_unreadable(result.unreadable)
    task.finish(result, title, classifier.model.name)
    if scores is not None:
        scores.remove()
        task.delete_maps()
    return result


def _about(result: ExplainResult, only: str | None, model: str, weighting: Weighting) -> str:
    what = f"{len(result.explanations)} of {counted(result.num_images, 'image')}" + (
        f", {only} ones only" if only else ""
    )
    scales = "" if weighting.scales is None else f", scales {weighting.scales[0]} to {weighting.scales[1]}"
    return f"{what}; model {model}; {weighting.weights} weights{scales}"


def _show(result: ExplainResult, weighting: Weighting, out: Path, npz: Path | None, about: str) -> None:
    from avarc_cli.explain.explanation import signed

    rows = []
    for e in result.explanations:
        ratios = [f"{p.title}: {signed(p.log_likelihood_ratio)}" for p in e.panels(weighting)]
        rows.append([e.path, e.names[0], e.label_name or "unknown", "; ".join(ratios)])
    listed = [_entry(e, weighting) for e in result.explanations]
    data = {"out": out, "npz": npz, "explained": listed, "unreadable": dict(result.unreadable)}
    table = console.table("", ["image", "prediction", "label", "log-likelihood ratios (nats)"], rows)
    written = [console.path_and(out, about)] + ([console.path_and(npz, "the raw arrays")] if npz else [])
    console.result(data, console.stack(table, *written), brief=str(out))


def _entry(e: Explanation, weighting: Weighting) -> dict[str, Any]:
    """One image in --json."""
    return {
        "row": e.row,
        "path": e.path,
        "prediction": e.names[0],
        "posterior": e.posterior[0],
        "label": e.label_name or None,
        "surprise": e.negative_log_likelihood,
        "comparisons": [
            {"maps": p.title, "log_likelihood_ratio": p.log_likelihood_ratio, "map_sum": p.map_sum}
            for p in e.panels(weighting)
        ],
    }
