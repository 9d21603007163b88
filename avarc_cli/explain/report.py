"""The report of a finished run: its page, with explanations of its hardest images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from avarc_cli.cache_classifier import CacheClassifier
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.explain import gallery
from avarc_cli.explain.explanation import Explanation
from avarc_cli.explain.from_run import again, from_likelihoods
from avarc_cli.explain.maps import Weighting
from avarc_cli.explain.predictions import ImagePrediction, of_saved_run, select
from avarc_cli.loading import ModelSpec
from avarc_cli.progress import StartProgress, silent
from avarc_cli.results.places import Places
from avarc_cli.results.read_run import SavedRun, open_run
from avarc_cli.results.report import HardestImages, read_metrics, render
from avarc_cli.storage import write_bytes

MAX_IMAGES = 200  # with more, browsers get slow
NOTE = (
    "Orange is evidence for the first class of a pair, purple for the second; point at a map for its values, or move "
    "the arrow keys over it."
)

FROM_ELSEWHERE = (
    "You did not make this run here: images outside of its folder are not shown; --allow-outside reads them."
)

LoadClassifier = Callable[[ModelSpec], CacheClassifier]
"""Loads the run's model."""


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
    given: Mapping[str, Any] = MappingProxyType({}),
    allow_outside: bool = False,
    progress: StartProgress = silent,
) -> WrittenReport:
    """Write a run's page. Where the hardest images cannot be explained, it shows them without maps and says why.

    Args:
        load: called when images are scored again.
        hardest: number of images to explain, those with the highest negative log-likelihood.
        tokens: the token cache that was classified; None for tokens.h5 in the run folder, or the one that run.json
            names.
        rescore: score these images again even if the run saved likelihoods, and fail where that is impossible.
        given: fields of the `ModelSpec` that the user states, instead of those that run.json records.
        allow_outside: use the images and the model that run.json names wherever they are. Otherwise, unless this user
            made the run, images must be in its folder, and its model one that is known by name.
        progress: opens the bar "explaining".
    Raises: UsageError for a wrong request or an unfinished run; AvarcError for a corrupt run; OSError.
    """
    if not 0 <= hardest <= MAX_IMAGES:
        raise UsageError(f"cannot show {hardest} images", f"a page holds at most {MAX_IMAGES}")
    run = open_run(run_path)
    metrics = read_metrics(run)
    places = Places(run.path, run.protocol, allow_outside=allow_outside)

    def score_again(chosen: Sequence[ImagePrediction]) -> Iterator[Explanation]:
        path = places.cache(tokens)
        if path is None:
            what = f"'{run.path}' saved no likelihoods, and its token cache is unknown"
            fix = f"avarc report {run.path} --tokens CACHE, or classify with --save-likelihood"
            raise UsageError(what, places.why_no_cache, fix)

        def load_own() -> CacheClassifier:
            return load(ModelSpec(**places.model(given)))

        return again(run, chosen, path, load_own, places.within, orders=places.orders)

    shown = _hardest_images(run, hardest, score_again, rescore, places.within, progress)
    write_bytes(page, render(run, metrics, shown).encode())
    return WrittenReport(page=page, images=len(run.records), explained=shown.explained, note=shown.note)


def _hardest_images(
    run: SavedRun,
    count: int,
    score_again: Callable[[Sequence[ImagePrediction]], Iterator[Explanation]],
    rescore: bool,
    within: Path | None,
    progress: StartProgress,
) -> HardestImages:
    predictions = of_saved_run(run)
    if not predictions or not count:
        return HardestImages(cards=[], note="")
    chosen = select(predictions, None, count, sort=True)
    saved = bool(run.protocol.get("save_likelihood")) and not rescore
    elsewhere = f" {FROM_ELSEWHERE}" if within else ""
    cards: list[Markup] = []
    try:
        with progress("explaining", len(chosen)) as bar:
            for explanation in from_likelihoods(run, chosen, within) if saved else score_again(chosen):
                cards.append(gallery.card(explanation, Weighting()))
                bar.update(len(cards))
    except AvarcError as problem:
        if rescore:
            raise
        note = f"No maps of the hardest images: {problem.what}; {problem.why}."
        note += f" To have them: {problem.fix}." if problem.fix else ""
        cards = [gallery.plain_card(prediction, run.protocol, within) for prediction in chosen]
        return HardestImages(cards=cards, note=note + elsewhere)
    note, explained = NOTE + elsewhere, len(cards)
    return HardestImages(cards=cards, note=note, explained=explained)
