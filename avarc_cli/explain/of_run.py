"""Explanations of the images of a finished run, by its own model on its own tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from avarc_cli.cache_classifier import CacheClassifier
from avarc_cli.explain.comparison import parse_comparison
from avarc_cli.explain.explain import ExplainResult
from avarc_cli.explain.from_run import again
from avarc_cli.explain.options import ExplainOptions
from avarc_cli.explain.predictions import of_saved_run, parse_rows, select
from avarc_cli.explain.token_scores import ScoringWork
from avarc_cli.progress import Notify, StartProgress, no_message, silent
from avarc_cli.results.read_run import SavedRun
from avarc_cli.work.workers import HERE, Workers


def explain_run(
    run: SavedRun,
    cache: Path,
    load: Callable[[], CacheClassifier],
    options: ExplainOptions,
    *,
    within: Path | None = None,
    orders: Path | None = None,
    maps: Path | None = None,
    on: Workers = HERE,
    progress: StartProgress = silent,
    say: Notify = no_message,
) -> ExplainResult:
    """Explain the predictions of a run for some of its images; they are not classified again.

    Args:
        cache: the run's token cache. load: loads its model.
        within: as in `pixels.source_pixels`.
        orders: as in `scoring.orders.recorded_orders`.
        maps, on, say: as in `explain_images`.
        progress: opens the bar "explaining".
    Raises: as `from_run.again`, `select` and `parse_comparison`.
    """
    predictions = of_saved_run(run)
    if options.rows is not None:
        predictions = [predictions[row] for row in parse_rows(options.rows, len(predictions))]
    count = options.count(len(predictions))
    chosen = select(predictions, options.only, count, sort=not options.keep_order)
    with progress("explaining", len(chosen)) as bar:
        work = ScoringWork(on, maps, bar.update, say)
        explanations = list(
            again(
                run,
                chosen,
                cache,
                load,
                within,
                lambda model: parse_comparison(options.target, options.contrast, model.classes),
                work,
                orders,
            )
        )
    return ExplainResult(explanations=explanations, num_images=len(predictions), unreadable=[])
