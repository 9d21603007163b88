"""A finished run as the input of a command, with the files that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from avarc_cli import console
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from avarc_cli.explain import ExplainOptions, ExplainResult, Weighting
    from avarc_cli.results.read_run import SavedRun
    from avarc_cli.work.workers import Workers

DECIDED = {
    *("plan", "classes", "offset", "batch_size", "orders", "order_seed", "steps", "bound", "unsmooth"),
    *("preprocess", "flip", "ten_crop", "crop_range", "workers"),
}
"""Options that say what a run has decided already."""


def open_if_run(context: typer.Context, data: Sequence[Path], tokens: Path | None) -> SavedRun | None:
    """The run that is named; None for any other input.

    Raises: UsageError for options that change nothing for this input, and as `open_run`.
    """
    if len(data) == 1 and (data[0] / "run.json").is_file():
        from avarc_cli.results.read_run import open_run

        opt.check_not_given(context, DECIDED, f"with '{data[0]}'", "it is a run, classified already")
        return open_run(data[0])
    check_no_tokens(tokens)
    return None


def check_no_tokens(tokens: Path | None) -> None:
    """Raises: UsageError for --tokens, of an input that is no run."""
    if tokens is not None:
        raise UsageError("no use for --tokens", "it says where the token cache of a run is", "leave it out")


@dataclass(frozen=True)
class Found:
    """The files of a run."""

    model: groups.ModelOptions
    """Its model."""
    cache: Path
    """Its token cache."""
    within: Path | None
    """The folder that images must be in to be read; None for anywhere."""
    orders: Path | None
    """The file that its orders came from, if they came from one."""

    def explain(self, run: SavedRun, options: ExplainOptions, how: Weighting, maps: Path, on: Workers) -> ExplainResult:
        """Explain the run's predictions; maps, on: as in `explain_run`."""
        spec = self.model.fetch()
        from avarc_cli.classifier import Classifier, load_classifier  # imports torch
        from avarc_cli.explain import explain_run

        def load() -> Classifier:
            classifier = load_classifier(spec, progress=opt.captions_bar)
            how.of_grids(classifier.model.tokenizer.layout)
            return classifier

        return explain_run(
            run,
            self.cache,
            load,
            options,
            within=self.within,
            orders=self.orders,
            maps=maps,
            on=on,
            progress=console.progress,
            say=console.warn,
        )


def find(
    context: typer.Context, run: SavedRun, tokens: Path | None, model: groups.ModelOptions, *, allow_outside: bool
) -> Found:
    """What run.json says, or else the user.

    Raises: UsageError for what is not where it was.
    """
    from avarc_cli.results.places import Places

    places = Places(run.path, run.protocol, allow_outside=allow_outside)
    cache = places.cache(tokens)
    if cache is None:
        raise UsageError(f"where is the token cache of '{run.path}'?", places.why_no_cache, "name it: --tokens FILE")
    given = {name: value for name, value in vars(model).items() if opt.is_given(context, name)}
    return Found(replace(model, **places.model(given)), cache, places.within, places.orders)
