"""Score images and export the likelihoods: those of a token cache, or of a finished run that saved none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.options import Options
from avarc_cli.progress import Notify, StartProgress, no_message, silent
from avarc_cli.results import tuned
from avarc_cli.results.export import check_shape, export_run, writer
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.read_run import SavedRun, open_run
from avarc_cli.results.validate import AGAIN
from avarc_cli.scoring.estimator import recorded_estimator
from avarc_cli.scoring.orders import recorded_orders
from avarc_cli.settings import check_one_precision, precision_of_winners
from avarc_cli.storage import beside
from avarc_cli.tokens.cache import TokenCache, read
from avarc_cli.work.workers import HERE, Workers

if TYPE_CHECKING:
    from avarc_cli.cache_classifier import CacheClassifier
    from avarc_cli.loaded import LoadedModel
    from avarc_cli.results.run import Run
    from avarc_cli.scoring.request import ScoringRequest

OF_THIS_MACHINE = frozenset(
    {
        *("threads", "versions", "device", "device_name", "arithmetic", "attention", "kernels", "other_kernels"),
        *("tokens_per_batch", "prefix_tokens", "save_json", "save_likelihood", "tuned_plan"),
    }
)
"""Fields of run.json that decide about roundings at most, or about what is kept; a tuned plan names its version."""


def export_cache(
    classifier: CacheClassifier,
    cache: TokenCache,
    out: Path,
    *,
    per_token: bool = False,
    overwrite: bool = False,
    workers: Workers = HERE,
    progress: StartProgress = silent,
    say: Notify = no_message,
    on_start: Callable[[Run], None] = lambda run: None,
) -> tuple[int, ...]:
    """Score a cache with the classifier's candidates, and write the likelihoods as `export_run` does.

    Interrupted, the next call continues: until the export is complete, the scores are in the run folder `OUT.run`.

    Args:
        workers: who scores the images.
        progress: opens the bars "scoring" and "writing".
        say: called with messages about batches that had to shrink.
        on_start: called once with the run, before anything is scored.
    Returns: shape of log_likelihood, (N, K) or (N, K, L).
    Raises: as `export_run`, `CacheClassifier.run` and `results.run.classify`.
    """
    check_one_precision(classifier.model.precision, "an export")
    overwrite = overwrite or is_unfinished(out)
    writer(out, overwrite=overwrite)  # a wrong name is an error before anything is scored
    folder = _run_folder(out)
    classifier = classifier.multiplying_as(folder.recorded("arithmetic"))
    request = classifier.request(
        cache.header, keep_tokens=per_token, tokens_per_batch=folder.recorded("tokens_per_batch")
    )
    run = classifier.run(cache, request, save_json=not per_token, save_likelihood=per_token)
    _score(run, folder, workers, progress, say, on_start)
    shape = export_run(open_run(folder.path), out, per_token=per_token, overwrite=overwrite, progress=progress)
    folder.remove()
    return shape


def open_again(
    run: SavedRun, model: LoadedModel, cache: Path, orders: Path | None = None
) -> tuple[CacheClassifier, TokenCache]:
    """A classifier that scores as a finished run did, and the run's images.

    Args:
        model: the run's. cache: its token cache. orders: as in `recorded_orders`.
    Raises: UsageError where these are others; as `recorded_options`.
    """
    from avarc_cli.cache_classifier import CacheClassifier  # imports torch
    from avarc_cli.results.recorded import check_model, own_images

    check_model(run, model)
    tokens = read(cache)
    tokens.check(model.tokenizer)
    images = own_images(run, tokens, ((record["index"], record["path"]) for record in run.records))
    return CacheClassifier(model, recorded_options(run, orders)), images


def export_run_again(
    run: SavedRun,
    classifier: CacheClassifier,
    cache: TokenCache,
    out: Path,
    *,
    classes: str | None = None,
    per_token: bool = False,
    overwrite: bool = False,
    workers: Workers = HERE,
    progress: StartProgress = silent,
    say: Notify = no_message,
    on_start: Callable[[Run], None] = lambda run: None,
) -> tuple[int, ...]:
    """Score the images of a finished run as it did, and write the likelihoods as `export_run` does.

    Args:
        classifier, cache: as `open_again` gives them.
        classes: as in `export_run`. Others: as in `export_cache`.
    Returns: as `export_run`.
    Raises: as `export_cache`; UsageError where model and tokens are not those of the run.
    """
    overwrite = overwrite or is_unfinished(out)
    writer(out, overwrite=overwrite)
    run.columns(classes)
    check_shape(run, out)
    save_likelihood = needs_tokens(run, per_token)
    classifier = classifier.multiplying_as(_run_folder(out).recorded("arithmetic"))
    request = _request_again(run, classifier, cache, keep_tokens=save_likelihood)
    again = classifier.run(cache, request, save_json=not save_likelihood, save_likelihood=save_likelihood)
    _check_same(run, again)
    folder = _run_folder(out)
    _score(again, folder, workers, progress, say, on_start)
    there = replace(run, likelihoods=folder.path)
    shape = export_run(there, out, classes=classes, per_token=per_token, overwrite=overwrite, progress=progress)
    folder.remove()
    return shape


def needs_tokens(run: SavedRun, per_token: bool) -> bool:
    """Whether an export takes the log-probability of each token; sums are enough of a plan with one stage."""
    return per_token or run.drops_candidates


def recorded_options(run: SavedRun, file: Path | None = None) -> Options:
    """The options by which a classifier scores as a finished run did.

    Args:
        file: as in `recorded_orders`.
    Raises: as `recorded_orders`; AvarcError for a corrupt run.
    """
    protocol, estimator, orders = run.protocol, recorded_estimator(run.protocol), recorded_orders(run.protocol, file)
    try:
        plan = tuned.from_dict(protocol["tuned_plan"]) if protocol.get("tuned_plan") else str(protocol["plan"])
        log_prior = None if protocol.get("log_prior") is None else np.array(protocol["log_prior"], dtype=np.float64)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AvarcError(f"'{run.path / 'run.json'}' is corrupt", f"missing or invalid: {error}", AGAIN) from None
    return Options(
        plan=plan,
        classes=run.candidates.tolist(),
        priors=log_prior,
        score=run.recorded("score"),
        orders=orders.text if "orders" in protocol and not orders.bound else None,
        order_seed=orders.seed,
        steps=estimator.steps,
        bound=orders.count if orders.bound else None,
        unsmooth=estimator.unsmooth,
        combine=protocol.get("combine", Options.combine),
        deterministic=bool(protocol.get("deterministic", False)),
        offsets=protocol.get("offsets") is not False,
    )


def is_unfinished(out: Path) -> bool:
    """Whether an interrupted call of `export_cache` left scores beside `out`, which the same call continues."""
    return _run_folder(out).exists


def _run_folder(out: Path) -> RunFolder:
    return RunFolder(beside(out, ".run"))


def _score(
    run: Run,
    folder: RunFolder,
    workers: Workers,
    progress: StartProgress,
    say: Notify,
    on_start: Callable[[Run], None],
) -> None:
    on_start(run)
    from avarc_cli.results.run import classify  # imports torch

    with progress("scoring", len(run.cache)) as bar:
        classify(run, folder, workers=workers, progress=lambda done, numbers: bar.update(done), say=say)


def _request_again(
    run: SavedRun, classifier: CacheClassifier, cache: TokenCache, *, keep_tokens: bool
) -> ScoringRequest:
    """The run's own request; batches are as large as its own on the same kind of device, for the same roundings."""
    here = run.protocol.get("device_name") == classifier.model.protocol()["device_name"]
    request = classifier.request(
        cache.header, keep_tokens=keep_tokens, tokens_per_batch=run.recorded("tokens_per_batch") if here else None
    )
    return replace(request, max_cached_tokens=run.protocol.get("prefix_tokens")) if here else request


def _check_same(run: SavedRun, again: Run) -> None:
    """Raises: UsageError where the request is not that of the run."""
    from avarc_cli.results.resume import differences

    kept: dict[str, Any] = {name: value for name, value in run.protocol.items() if name not in OF_THIS_MACHINE}
    kept["precision"] = precision_of_winners(run.protocol.get("precision", again.protocol["precision"]))
    now = {name: value for name, value in again.protocol.items() if name in kept}
    if differing := differences(kept, now):
        what = f"'{run.path}' cannot be scored again as it was"
        raise UsageError(what, differing, "export from the token cache: avarc export CACHE")
