"""Score a token cache and export the likelihoods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from avarc_cli.progress import Notify, StartProgress, no_message, silent
from avarc_cli.results.export import export_run, writer
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.read_run import open_run
from avarc_cli.storage import beside
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.work.workers import HERE, Workers

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.results.run import Run


def export_cache(
    classifier: Classifier,
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
    Raises: as `export_run`, `Classifier.run` and `results.run.classify`.
    """
    overwrite = overwrite or is_unfinished(out)
    writer(out, overwrite=overwrite)  # a wrong name is an error before anything is scored
    folder = _run_folder(out)
    request = classifier.request(
        cache.header, keep_tokens=per_token, tokens_per_batch=folder.recorded("tokens_per_batch")
    )
    run = classifier.run(cache, request, save_json=not per_token, save_likelihood=per_token)
    on_start(run)
    from avarc_cli.results.run import classify  # imports torch

    with progress("scoring", len(cache)) as bar:
        classify(run, folder, workers=workers, progress=lambda done, numbers: bar.update(done), say=say)
    shape = export_run(open_run(folder.path), out, per_token=per_token, overwrite=overwrite, progress=progress)
    folder.remove()
    return shape


def is_unfinished(out: Path) -> bool:
    """Whether an interrupted call of `export_cache` left scores beside `out`, which the same call continues."""
    return _run_folder(out).exists


def _run_folder(out: Path) -> RunFolder:
    return RunFolder(beside(out, ".run"))
