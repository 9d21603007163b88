"""The report of a finished run: its page, with explanations of its hardest images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from avarc_cli.classifier import Classifier
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.explain import gallery
from avarc_cli.explain.explanation import Explanation
from avarc_cli.explain.from_run import from_likelihoods, from_tokens
from avarc_cli.explain.maps import Weighting
from avarc_cli.explain.predictions import ImagePrediction, of_saved_run, select
from avarc_cli.progress import StartProgress, silent
from avarc_cli.results.read_run import SavedRun, open_run
from avarc_cli.results.report import HardestImages, read_metrics, render
from avarc_cli.storage import write_bytes
from avarc_cli.tokens.cache import read

MAX_IMAGES = 200  # with more, browsers get slow
NOTE = "Orange is evidence for the first class of a pair, purple for the second; point at a map for its values."

LoadClassifier = Callable[[str, str], Classifier]
"""(the run's name of its model, its precision) -> a classifier with that model."""


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """What `write_report` wrote."""

    page: Path
    """The HTML file."""

    images: int
    """Images of the run."""

    explained: int
    """Images that are shown with maps."""

    note: str
    """What stands above the hardest images; says why there are no maps when there are none."""


def write_report(
    run_path: Path,
    page: Path,
    load: LoadClassifier,
    *,
    hardest: int = 8,
    tokens: Path | None = None,
    rescore: bool = False,
    progress: StartProgress = silent,
) -> WrittenReport:
    """Write a run's page. Where the hardest images cannot be explained, it shows them without maps and says why.

    Args:
        load: called when images are scored again.
        hardest: number of images to explain, those with the highest negative log-likelihood.
        tokens: the token cache that was classified; None for tokens.h5 in the run folder.
        rescore: score these images again even if the run saved likelihoods, and fail where that is impossible.
        progress: opens the bar "explaining".
    Raises: UsageError for a wrong request or an unfinished run; AvarcError for a corrupt run; OSError.
    """
    if not 0 <= hardest <= MAX_IMAGES:
        raise UsageError(f"cannot show {hardest} images", f"a page holds at most {MAX_IMAGES}")
    run = open_run(run_path)
    metrics = read_metrics(run)
    shown = _hardest_images(run, hardest, tokens, load, rescore, progress)
    write_bytes(page, render(run, metrics, shown).encode())
    return WrittenReport(page=page, images=len(run.records), explained=shown.explained, note=shown.note)


def _hardest_images(
    run: SavedRun, count: int, tokens: Path | None, load: LoadClassifier, rescore: bool, progress: StartProgress
) -> HardestImages:
    predictions = of_saved_run(run)
    if not predictions or not count:
        return HardestImages(cards=[], note="")
    chosen = select(predictions, None, count, sort=True)
    saved = bool(run.protocol.get("save_likelihood")) and not rescore
    cards: list[str] = []
    try:
        with progress("explaining", len(chosen)) as bar:
            for explanation in from_likelihoods(run, chosen) if saved else _score_again(run, chosen, tokens, load):
                cards.append(gallery.card(explanation, Weighting()))
                bar.update(len(cards))
    except AvarcError as problem:
        if rescore:
            raise
        note = f"No maps of the hardest images: {problem.what}; {problem.why}."
        note += f" To have them: {problem.fix}." if problem.fix else ""
        cards = [gallery.plain_card(prediction, run.protocol) for prediction in chosen]
        return HardestImages(cards=cards, note=note, style=gallery.STYLE, script=gallery.SCRIPT)
    return HardestImages(cards=cards, note=NOTE, style=gallery.STYLE, script=gallery.SCRIPT, explained=len(cards))


def _score_again(
    run: SavedRun, predictions: Sequence[ImagePrediction], tokens: Path | None, load: LoadClassifier
) -> Iterator[Explanation]:
    """For a run without saved likelihoods, when its tokens and its model are available."""
    path = tokens or run.path / "tokens.h5"
    if not path.exists():
        raise UsageError(
            f"'{run.path}' saved no likelihoods",
            "and the token cache that it was made from is not in the run folder",
            f"avarc report {run.path} --tokens CACHE, or classify with --save-likelihood",
        )
    name = run.protocol["model"]["name"].split(" with ")[0]  # an adapter's name comes after "with"
    classifier = load(name, run.protocol.get("precision", "fp32"))
    cache = read(path)
    batch = classifier.request(cache.header.samples).tokens_per_batch
    yield from from_tokens(run, predictions, cache, classifier.model, batch)
