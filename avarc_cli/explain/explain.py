"""From images or a token cache to explanations: classify, choose images, score a few classes token by token.

Example:
    classifier = load_classifier("digits")
    result = explain_images(classifier, open_images([Path("seven.png")]))
    print(result.explanations[0].panels(Weighting())[-1].log_likelihood_ratio)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avarc_cli.cache_classifier import CacheClassifier
from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.labels import LabelSpace
from avarc_cli.data.views import SINGLE_VIEW, Views
from avarc_cli.errors import CacheError
from avarc_cli.explain.comparison import Comparison, classes_to_score, parse_comparison
from avarc_cli.explain.explanation import Explanation
from avarc_cli.explain.options import DEFAULTS, ExplainOptions
from avarc_cli.explain.pixels import PixelLoader, pixels_of_cache, pixels_of_images
from avarc_cli.explain.predictions import ImagePrediction, of_folder, of_result, parse_rows, select
from avarc_cli.explain.token_scores import ScoringWork, TokenScorer, TokenScoring, Wanted, score
from avarc_cli.layout import TokenLayout
from avarc_cli.loaded import LoadedModel
from avarc_cli.progress import Notify, ProgressBar, StartProgress, no_message, silent
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.run import Run, accuracy_note, classify
from avarc_cli.settings import check_one_precision
from avarc_cli.tokens.cache import TokenCache, read
from avarc_cli.work.workers import HERE, Workers


@dataclass(frozen=True, kw_only=True)
class ExplainResult:
    """What `explain_images` made."""

    explanations: list[Explanation]
    """One per chosen image."""

    num_images: int
    """Images that were classified to choose from."""

    unreadable: list[tuple[str, str]]
    """(name, reason) of the images that could not be read."""


def explain_images(
    classifier: CacheClassifier,
    data: ImageSet | TokenCache,
    options: ExplainOptions = DEFAULTS,
    *,
    preprocess: str | None = None,
    views: Views = SINGLE_VIEW,
    workers: int | None = None,
    scores: RunFolder | None = None,
    maps: Path | None = None,
    on: Workers = HERE,
    overwrite: bool = False,
    progress: StartProgress = silent,
    say: Notify = no_message,
) -> ExplainResult:
    """Explain the classifier's predictions for some of these images.

    Maps are of the image itself, view 0, also where the prediction is an average over samples or crops.

    Args:
        preprocess, views, workers: for images that are not encoded yet (`CacheClassifier.encode`).
        scores: for a token cache: keep its predictions in this run folder, and continue what an interrupted call left
            there. The caller removes it. None keeps them in memory.
        maps: keep the scores that maps are made from in this folder, in the same way.
        on: who scores the images; others than this process need `scores` and `maps`.
        overwrite: replace predictions of another request in `scores`.
        progress: opens the bars "encoding", "classifying" and "explaining".
        say: called with messages about batches that had to shrink.
    Raises: UsageError for options that do not fit the model or the images; CacheError for a cache of another tokenizer;
        as `results.run.classify` and `token_scores.score`.
    """
    model = classifier.model
    comparison = parse_comparison(options.target, options.contrast, model.classes)
    with _opened(classifier, data, preprocess, views, workers, progress) as opened:
        cache = opened.cache
        rows = list(range(len(cache))) if options.rows is None else parse_rows(options.rows, len(cache))
        count = options.count(len(rows))
        with progress("classifying", len(rows)) as bar:
            predictions = _predict(classifier, cache, rows, scores, overwrite, _Classifying(on, bar, say))
        chosen = select(predictions, options.only, count, sort=not options.keep_order)
        request = classifier.request(cache.header)
        how = TokenScoring(request.tokens_per_batch, classifier.orders, request.plan.orders, classifier.estimator)
        with progress("explaining", len(chosen)) as bar:
            work = ScoringWork(on, maps, bar.update, say)
            explanations = list(explain_predictions(model, cache, chosen, comparison, opened.pixels, how, work))
    return ExplainResult(explanations=explanations, num_images=len(rows), unreadable=opened.unreadable)


@dataclass(frozen=True)
class _Opened:
    cache: TokenCache
    pixels: PixelLoader
    unreadable: list[tuple[str, str]]  # (name, reason) of images that were left out


@contextmanager
def _opened(
    classifier: CacheClassifier,
    data: ImageSet | TokenCache,
    preprocess: str | None,
    views: Views,
    workers: int | None,
    progress: StartProgress,
) -> Iterator[_Opened]:
    """The data as a token cache; one that is made here lasts as long as the `with` block."""
    if isinstance(data, TokenCache):
        if not len(data):
            raise CacheError(f"'{data.path}' holds no images", "there is nothing to explain")
        yield _Opened(data, pixels_of_cache(data, classifier.model.tokenizer), [])
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokens.h5"
        with progress("encoding", len(data)) as bar:
            encoded = classifier.encode(
                data, path, preprocess=preprocess, views=views, workers=workers, progress=bar.update
            )
        cache = read(path)
        yield _Opened(cache, pixels_of_images(data, cache), encoded.unreadable)


@dataclass(frozen=True)
class _Classifying:
    """Who classifies, and what hears of it."""

    on: Workers
    bar: ProgressBar
    say: Notify

    def report(self, done: int, numbers: dict[str, float]) -> None:
        self.bar.update(done, None, accuracy_note(numbers))


def _predict(
    classifier: CacheClassifier,
    cache: TokenCache,
    rows: list[int],
    folder: RunFolder | None,
    overwrite: bool,
    how: _Classifying,
) -> Iterable[ImagePrediction]:
    """The classifier's predictions for these rows of the cache."""

    def make(tokens_per_batch: int | None) -> Run:
        request = classifier.request(cache.header, tokens_per_batch=tokens_per_batch)
        return replace(classifier.run(cache.take(rows), request), save_ranking=folder is not None)

    run = make(folder.recorded("tokens_per_batch") if folder else None)
    if folder is None:
        result = classify(run, None, workers=how.on, keep_scores=True, progress=how.report, say=how.say)
        return of_result(result, run.request.candidates, rows)
    if overwrite and folder.has_another(run.protocol):
        run = make(None)
        folder.replace(run.protocol)
    result = classify(run, folder, workers=how.on, progress=how.report, say=how.say)
    return of_folder(folder, result, run.request.candidates, rows)


def explain_predictions(
    model: LoadedModel,
    cache: TokenCache,
    predictions: Sequence[ImagePrediction],
    comparison: Comparison,
    pixels: PixelLoader,
    how: TokenScoring,
    work: ScoringWork = ScoringWork(),  # noqa: B008  # frozen
) -> Iterator[Explanation]:
    """One explanation per prediction, in order, as they are made.

    Args:
        cache: holds the rows of the predictions. pixels: what to show as the input.
        work: who scores. Its progress counts images that are scored.
    Raises: UsageError when the comparison cannot be made for an image; as `token_scores.score`.
    """
    check_one_precision(model.precision, "explanations")
    likelihood = model.likelihood
    unconditional = [] if likelihood.unconditional is None else [likelihood.unconditional]
    compared = [comparison.of(prediction) for prediction in predictions]
    ids_of = [classes_to_score(each, *classes) for each, classes in zip(predictions, compared, strict=True)]
    wanted = tuple(Wanted(each.row, (*ids, *unconditional)) for each, ids in zip(predictions, ids_of, strict=True))
    each_scored = score(TokenScorer(model, cache, wanted, how), work)
    for prediction, (target, contrast), ids, scores in zip(predictions, compared, ids_of, each_scored, strict=True):
        picture, decoded = pixels(prediction.row)
        yield describe(
            prediction,
            model.classes,
            ids,
            scores.log_prob_KOL[: len(ids)],
            scores.log_prob_KOL[-1] if unconditional else None,
            target=target,
            contrast=contrast,
            layout=cache.header.layout,
            footprints=scores.footprints,
            pixels=picture,
            decoded=decoded,
        )


def describe(
    prediction: ImagePrediction,
    classes: LabelSpace,
    ids: Sequence[int],
    log_prob_NOL: np.ndarray,
    unconditional_OL: np.ndarray | None,
    *,
    target: int,
    contrast: int | None,
    layout: TokenLayout,
    pixels: np.ndarray | None,
    decoded: bool = False,
    footprints: np.ndarray | None = None,
) -> Explanation:
    """Put an explanation together from the log-probabilities of the classes `ids`, target and contrast among them."""
    posterior = dict(zip(prediction.class_ids, prediction.posterior, strict=True))
    return Explanation(
        row=prediction.row,
        path=prediction.path,
        layout=layout,
        class_ids=tuple(ids),
        names=tuple(display_name(classes, c) for c in ids),
        posterior=tuple(posterior.get(c) for c in ids),
        log_prob=_mean(log_prob_NOL),
        unconditional=None if unconditional_OL is None else _mean(unconditional_OL),
        log_prob_orders=log_prob_NOL if log_prob_NOL.shape[1] > 1 else None,
        target=ids.index(target),
        contrast=None if contrast is None else ids.index(contrast),
        label=ids.index(prediction.label) if prediction.label in ids else None,
        label_name=prediction.label_name,
        footprints=footprints,
        pixels=pixels,
        decoded=decoded,
        negative_log_likelihood=prediction.negative_log_likelihood,
    )


def _mean(log_prob_OL: np.ndarray) -> np.ndarray:
    """Over orders, the second axis from the end, in float32."""
    mean: np.ndarray = log_prob_OL.mean(-2, dtype=np.float64).astype(np.float32)
    return mean


def display_name(classes: LabelSpace, class_id: int) -> str:
    """A class's human name, with its id where two classes share the name (ImageNet has two cranes)."""
    name = classes.names[class_id]
    return name if classes.names.count(name) == 1 else f"{name} ({classes.ids[class_id]})"
