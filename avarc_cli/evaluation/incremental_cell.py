"""A cell of a protocol whose classes come task by task (`avarc incremental`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avarc_cli.data.datasets import ImageSet
from avarc_cli.evaluation.protocol import Column, Row
from avarc_cli.incremental.split import parse_split
from avarc_cli.progress import MetricsProgress, Progress

if TYPE_CHECKING:
    from avarc_cli.evaluation.evaluate import Setting
    from avarc_cli.incremental.examples import Examples, Variation
    from avarc_cli.incremental.measures import Results
    from avarc_cli.loaded import LoadedModel, LoadedTokenizer


def run_incremental(
    row: Row,
    column: Column,
    train: ImageSet,
    test: ImageSet | None,
    model: LoadedModel | LoadedTokenizer,
    folder: Path,
    setting: Setting,
) -> tuple[dict[str, Any], int]:
    """Run the class-incremental protocol in a folder, or what is left of it.

    Args:
        test: None to hold out a part of `train`.
        model: one that knows the base classes only; or a tokenizer, for whose tokens a base model is trained here.
    Returns: what the table shows, as in metrics.json: the average accuracy over tasks, and that of each task in the
        end; and the number of images that could not be read.
    Raises: as `incremental.protocol.run` and `incremental.folder.open_folder`.
    """
    from avarc_cli.incremental import protocol
    from avarc_cli.incremental.examples import Variation
    from avarc_cli.incremental.fit import FitOptions
    from avarc_cli.incremental.folder import open_folder
    from avarc_cli.loaded import LoadedModel

    given = model if isinstance(model, LoadedModel) else None
    reader = model.tokenizer if isinstance(model, LoadedModel) else model
    options = FitOptions(method=row.method, steps=row.steps, seed=row.seed)
    shape = protocol.BaseShape(depth=row.base_depth, width=row.base_width, steps=row.base_steps)
    variation = Variation(preprocess=row.preprocess, seed=row.seed)
    split = parse_split(str(column.base), str(column.tasks), train.class_names)
    train = train.select(split.classes, None, None)
    test = None if test is None else test.select(split.classes, None, None)
    asked = {
        "column": {"base": column.base, "tasks": column.tasks, "train": train.source, "images": len(train)},
        "test": None if test is None else [test.source, len(test)],
        "model": given.sha256 if given else asdict(shape),
        "tokenizer": reader.sha256,
        "fit": vars(options),
        "variation": vars(variation),
        **_chosen(row, column),
    }

    def encode() -> tuple[Examples, Examples | None]:
        trained = _encode(row, train, reader, variation, setting)
        return trained, None if test is None else _encode(row, test, reader, replace(variation, variants=0), setting)

    with open_folder(folder, asked):
        trained, tested = protocol.kept_tokens(folder, encode, variation.seed)
        testing = partial(_testing, row.name, len(tested), setting)
        reporting = protocol.Reporting(partial(_learning, row.name, setting), testing)
        results = protocol.run(
            folder,
            (trained, tested),
            split,
            tokenizer=reader,
            model=given,
            base=shape,
            options=options,
            seed=row.seed,
            reporting=reporting,
        )
    return _metrics(results, len(tested)), len(trained.unreadable) + len(tested.unreadable)


def _chosen(row: Row, column: Column) -> dict[str, Any]:
    """What else a request depends on, where it is chosen: earlier versions recorded none of it."""
    chosen: dict[str, Any] = {}
    if row.precision != Row.precision:
        chosen["precision"] = row.precision
    if column.sample is not None:
        chosen["sample"] = [column.sample, column.seed or 0]
    return chosen


def _metrics(results: Results, images: int) -> dict[str, Any]:
    """What the table shows of the results on this many test images."""
    measures = results.with_offset
    return {
        "images": images,
        "labelled": images,
        "accuracy": measures.average_accuracy,
        "tasks": measures.matrix[-1].tolist(),
        "forgetting": measures.forgetting,
    }


def _encode(row: Row, images: ImageSet, reader: LoadedTokenizer, variation: Variation, setting: Setting) -> Examples:
    from avarc_cli.incremental.examples import concatenate, encode
    from avarc_cli.incremental.source import by_class

    ticks = itertools.count(1)
    with setting.progress(f"{row.name}: encoding {images.source}", len(images)) as bar:
        chosen = by_class(images, None, images.source).values()
        return concatenate(encode(images, rows, reader, variation, lambda: bar.update(next(ticks))) for rows in chosen)


@contextmanager
def _learning(name: str, setting: Setting, what: str, steps: int) -> Iterator[MetricsProgress]:
    with setting.training(f"{name}: learning {what}", steps) as bar:
        yield lambda done, values: bar.update(done, None, f"{values['bits/token']:.3f} bits/token")


@contextmanager
def _testing(name: str, images: int, setting: Setting) -> Iterator[Progress]:
    with setting.progress(f"{name}: testing", images) as bar:
        yield bar.update
