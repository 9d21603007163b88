"""Explanations of a finished run's images: from its saved likelihoods, or scored again from its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from avarc_cli.classifier import Classifier
from avarc_cli.errors import UsageError, describe_differences
from avarc_cli.explain.comparison import Comparison, classes_to_score
from avarc_cli.explain.explain import TokenScoring, describe, explain_predictions
from avarc_cli.explain.explanation import Explanation
from avarc_cli.explain.maps import require_grids
from avarc_cli.explain.pixels import pixels_of_cache, source_pixels
from avarc_cli.explain.predictions import ImagePrediction
from avarc_cli.loaded import LoadedModel
from avarc_cli.results.read_run import SavedRun
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
    load: Callable[[], Classifier],
    within: Path | None = None,
    compare: Callable[[LoadedModel], Comparison] = lambda model: Comparison(),
) -> Iterator[Explanation]:
    """Explanations scored again, by the run's own model on the run's own tokens.

    Args:
        cache: the token cache. load: loads the model. within: as in `source_pixels`.
        compare: which classes, given the model.
    Raises: as `from_tokens` and `load`.
    """
    orders = recorded_orders(run.protocol)
    classifier, tokens = load(), read_verified(cache)
    how = TokenScoring(classifier.request(tokens.header).tokens_per_batch, orders, orders.count)
    yield from from_tokens(run, predictions, tokens, classifier.model, how, within, compare(classifier.model))


def from_tokens(
    run: SavedRun,
    predictions: Sequence[ImagePrediction],
    cache: TokenCache,
    model: LoadedModel,
    how: TokenScoring,
    within: Path | None = None,
    comparison: Comparison = Comparison(),  # noqa: B008  # frozen
) -> Iterator[Explanation]:
    """Explanations scored again by the run's own model on the run's own tokens.

    Args:
        within: as in `source_pixels`.
    Raises: UsageError when model or cache are not those of the run; CacheError for another tokenizer's tokens.
    """
    check_model(run, model)
    cache.check(model.tokenizer)
    there = {"images_sha256": run.protocol["tokens"].get("images_sha256")}
    here = {"images_sha256": cache.header.images_sha256}
    fix = "name the run's token cache: --tokens FILE"
    if differences := describe_differences(there, here, sides=("in the run", "in the cache")):
        raise UsageError(f"'{cache.path}' holds other images than the run", differences, fix)
    if sample := run.protocol["tokens"].get("sample"):
        cache = cache.sample(sample["images"], sample["seed"])
    if beyond := [prediction.row for prediction in predictions if prediction.row >= len(cache)]:
        raise UsageError(f"'{cache.path}' is not the cache of the run", f"it has no row {beyond[0]}", fix)
    if others := [p.path for p in predictions if p.path != cache.paths[p.row]]:
        raise UsageError(f"'{cache.path}' is not the cache of the run", f"its rows are not those of '{others[0]}'", fix)
    pixels = pixels_of_cache(cache, model.tokenizer, within)
    model = replace(model, likelihood=recorded_estimator(run.protocol).applied(model.likelihood, model.name))
    yield from explain_predictions(model, cache, predictions, comparison, pixels, how)


def check_model(run: SavedRun, model: LoadedModel) -> None:
    """Raises UsageError when the weights, their configuration, or the classes that a bank added are not the run's."""
    there: dict[str, Any] = {"sha256": run.protocol["model"].get("sha256"), "stated": run.protocol.get("stated", {})}
    here: dict[str, Any] = {"sha256": model.sha256, "stated": dict(model.stated)}
    there["captions"] = run.protocol.get("captions")
    here["captions"] = model.captions.protocol() if model.captions else None
    if differences := describe_differences(there, here, sides=("in the run", f"for {model.name}")):
        adapted = " with " in run.protocol["model"]["name"] and " with " not in model.name
        fix = "add the adapter of the run: --lora DIR" if adapted else "name the run's: --model FILE"
        fix = "put back the run's captions" if there["captions"] != here["captions"] else fix
        raise UsageError(f"{model.name} is not the model of the run", differences, fix)
    made_with = run.protocol.get("bank") or {}  # an empty bank adds nothing
    given = (model.bank.protocol() if model.bank else None) or {}
    named = zip(run.candidates.tolist(), run.recorded("candidate_ids"), strict=True)
    first = len(model.classes) - len(given)  # of the added classes, whose order decides their ids
    if made_with != given or any(model.classes.ids[c : c + 1] != (own,) for c, own in named if c >= first):
        what = f"the run was made {'with another' if made_with and given else 'with a' if made_with else 'without a'}"
        why = f"it added {', '.join(made_with) or 'no class'} to the model"
        raise UsageError(f"{what} class bank", why, "add --bank DIR" if made_with else "leave out --bank")
