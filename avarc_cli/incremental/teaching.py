"""One class, from its images to the bank, in one call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avarc_cli.incremental.adding import AddingResult, add_classes
from avarc_cli.incremental.editing import Existing, check_names, open_or_new
from avarc_cli.incremental.examples import Variation, encode
from avarc_cli.incremental.fit import FitOptions, few_images
from avarc_cli.incremental.source import Source, by_class
from avarc_cli.loaded import LoadedModel
from avarc_cli.progress import MetricsProgress, Notify, StartProgress


def teach(
    model: LoadedModel,
    path: Path,
    name: str,
    source: Source,
    fit: FitOptions,
    *,
    offset: bool,
    existing: Existing,
    progress: StartProgress,
    say: Notify,
) -> AddingResult:
    """Fit a class to images, and store it in the bank at `path`.

    Args:
        model: without a bank.
        source: its images; of a source of several classes, those of the class of this name.
        fit: how it is fitted; its seed is also that of the augmentation.
        offset: fit an offset too.
        progress: opens bars. say: called with messages for the user.
    Raises: as `check_names`, `by_class`, `examples.encode` and `add_classes`.
    """
    rows = by_class(source, name, name)[name]
    check_names([name], model.classes, open_or_new(path, model.as_base()), existing)

    @contextmanager
    def learning(what: str, steps: int) -> Iterator[MetricsProgress]:
        with progress(f"learning {what}", steps) as bar:
            yield lambda done, values: bar.update(done)

    ticks = itertools.count(1)
    with progress("encoding", len(rows)) as bar:
        examples = encode(source, rows, model.tokenizer, Variation(seed=fit.seed), lambda: bar.update(next(ticks)))
    if few := few_images(name, len(examples)):
        say(few)
    for unreadable, reason in examples.unreadable:
        say(f"cannot read '{unreadable}': {reason}")
    [added] = add_classes(
        model,
        path,
        {name: examples},
        fit,
        fit_offset=offset,
        existing=existing,
        progress_of=learning,
        searching=progress,
        say=say,
    )
    return added
