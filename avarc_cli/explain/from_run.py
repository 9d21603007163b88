"""Explanations of a finished run's images: from its saved likelihoods, or scored again from its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from avarc_cli.cache_classifier import CacheClassifier
from avarc_cli.errors import UsageError
from avarc_cli.explain.comparison import Comparison, classes_to_score
from avarc_cli.explain.explain import describe, explain_predictions
from avarc_cli.explain.explanation import Explanation
from avarc_cli.explain.maps import require_grids
from avarc_cli.explain.pixels import pixels_of_cache, source_pixels
from avarc_cli.explain.predictions import ImagePrediction
from avarc_cli.explain.token_scores import ScoringWork, TokenScoring
from avarc_cli.loaded import LoadedModel
from avarc_cli.results.read_run import SavedRun
from avarc_cli.results.recorded import check_model, own_images
from avarc_cli.scoring.estimator import recorded_estimator
from avarc_cli.scoring.orders import recorded_orders
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.verify import read_verified


def from_likelihoods(
    run: SavedRun, predictions: Sequence[ImagePrediction], within: Path | None = None
) -> Iterator[Explanation]:
    """Explanations of a run with --save-likelihood: predictions against their rivals. It saved no p(x).

    Args:
        within: as in `source_pixels`.
    Raises: UsageError when the run saved no likelihoods, or its tokens have no position in the image; AvarcError for a
        corrupt file.
    """
    classes, layout = run.classes, run.layout
    if layout is None:
        fix = "classify again into another folder"
        raise UsageError(f"'{run.path}' does not record where its tokens lie", "it was made by an older avarc", fix)
    require_grids(layout)
    tokens = run.protocol["tokens"]
    for prediction in predictions:
        target, contrast = Comparison().of(prediction)
        saved, log_prob_nL = run.saved_tokens(prediction.row)
        row = {class_id: i for i, class_id in enumerate(saved.tolist())}
        if dropped := [classes.names[c] for c in (target, contrast) if c is not None and c not in row]:
            why = f"its plan {run.protocol['plan']} did not score {' and '.join(dropped)} on all tokens"
            fix = f"avarc report {run.path} --tokens CACHE, or classify with --plan exhaustive"
            raise UsageError(f"'{run.path}' lacks likelihoods of '{prediction.path}'", why, fix)
        ids = [class_id for class_id in classes_to_score(prediction, target, contrast) if class_id in row]
        yield describe(
            prediction,
            classes,
            ids,
            log_prob_nL[[row[c] for c in ids], None],
            None,
            target=target,
            contrast=contrast,
            layout=layout,
            pixels=source_pixels(
                tokens["source"], prediction.path, tokens["preprocess"], tokens.get("dataset", ""), within
            ),
        )


def again(
    run: SavedRun,
    predictions: Sequence[ImagePrediction],
    cache: Path,
    load: Callable[[], CacheClassifier],
    within: Path | None = None,
    compare: Callable[[LoadedModel], Comparison] = lambda model: Comparison(),
    work: ScoringWork = ScoringWork(),  # noqa: B008  # frozen
    orders: Path | None = None,
) -> Iterator[Explanation]:
    """Explanations scored again, by the run's own model on the run's own tokens.

    Args:
        cache: the token cache. load: loads the model. within: as in `source_pixels`.
        compare: which classes, given the model. work: who scores.
        orders: as in `recorded_orders`.
    Raises: as `recorded_orders`, `from_tokens` and `load`.
    """
    ordered, estimator = recorded_orders(run.protocol, orders), recorded_estimator(run.protocol)
    classifier, tokens = load(), read_verified(cache)
    how = TokenScoring(classifier.request(tokens.header).tokens_per_batch, ordered, ordered.count, estimator)
    yield from from_tokens(run, predictions, tokens, classifier.model, how, within, compare(classifier.model), work)


def from_tokens(
    run: SavedRun,
    predictions: Sequence[ImagePrediction],
    cache: TokenCache,
    model: LoadedModel,
    how: TokenScoring,
    within: Path | None = None,
    comparison: Comparison = Comparison(),  # noqa: B008  # frozen
    work: ScoringWork = ScoringWork(),  # noqa: B008  # frozen
) -> Iterator[Explanation]:
    """Explanations scored again by the run's own model on the run's own tokens.

    Args:
        within: as in `source_pixels`. work: who scores.
    Raises: UsageError when model or cache are not those of the run; CacheError for another tokenizer's tokens.
    """
    check_model(run, model)
    cache.check(model.tokenizer)
    cache = own_images(run, cache, [(prediction.row, prediction.path) for prediction in predictions])
    pixels = pixels_of_cache(cache, model.tokenizer, within)
    model = replace(model, likelihood=how.estimator.applied(model.likelihood, model.name))
    yield from explain_predictions(model, cache, predictions, comparison, pixels, how, work)
