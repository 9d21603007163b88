"""Running a protocol: each cell of its table is a run folder, which an interrupted evaluation continues.

DIR/protocol.json               title and file of the protocol: marks the folder as ours
DIR/tokens/COLUMN-*.h5          token caches, shared by the rows that read the same tokens
DIR/cells/ROW/COLUMN/           run folders
DIR/table.csv, .md, .html       the table
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from avarc_cli.data.datasets import ImageSet, open_images
from avarc_cli.data.labels import subset
from avarc_cli.data.views import SINGLE_VIEW
from avarc_cli.errors import AvarcError, Interrupted, UsageError
from avarc_cli.evaluation.protocol import PROTOCOLS, Column, Protocol, Row
from avarc_cli.names import to_json
from avarc_cli.options import Options
from avarc_cli.progress import Notify, StartProgress, no_message, silent
from avarc_cli.settings import precision_for
from avarc_cli.storage import new_folder, remove_leftovers_of, write_bytes
from avarc_cli.text.captions import needed_encoder, template_names
from avarc_cli.work.locks import only_writer
from avarc_cli.zoo import local_files
from avarc_cli.zoo.cards import ModelCard, any_card, check_weights, is_path, text_encoder_card

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.loaded import LoadedModel, LoadedTokenizer

Value = TypeVar("Value")

Loaded: TypeAlias = "LoadedModel | LoadedTokenizer"
MARK = "protocol.json"
INCLUDED = {"digits": PROTOCOLS.parent / "digits" / "test"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row's result on a column."""

    row: Row
    column: Column
    metrics: Mapping[str, Any] | None
    """metrics.json; None for a cell that was not run."""

    not_run: tuple[AvarcError, ...] = ()
    """Why, and what to do."""

    unreadable: int = 0
    """Images that could not be read."""

    run: Path | None = None
    """The run folder."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a protocol is run on this machine."""

    out: Path
    data: Path | None = None
    """Root of the data; None if all images are included in avarc."""

    device: str = "auto"
    per_class: int | None = None
    """Images of each class at most, for a trial; None for as many as the protocol says."""

    allow_outside: bool = False
    """As of `open_images`."""

    progress: StartProgress = silent
    """Of images."""

    training: StartProgress = silent
    """Of the steps of a training."""

    say: Notify = no_message
    """Called with messages for the user."""


def check_folder(path: Path) -> None:
    """Raises: UsageError when there is anything but a folder that is empty or an evaluation's."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"cannot write to '{path}'", "it is not a folder", "name another --out")
    others = path.is_dir() and any(not entry.name.startswith(MARK) for entry in path.iterdir())
    if others and not (path / MARK).exists():  # in this order: another shard may begin the evaluation meanwhile
        raise UsageError(f"'{path}' is not empty, and not an evaluation", f"it has no {MARK}", "name another --out")


def evaluate(protocol: Protocol, setting: Setting) -> list[Cell]:
    """Run every cell that is not finished, row by row. What one cell lacks does not stop the others.

    Raises: UsageError for a folder that holds something else; AvarcError when another process writes to it;
        Interrupted.
    """
    check_folder(setting.out)
    setting.out.mkdir(parents=True, exist_ok=True)
    with only_writer(setting.out / MARK):
        write_bytes(setting.out / MARK, to_json({"title": protocol.title}, indent=1).encode())
        images = _Images(setting)
        return [cell for row in protocol.rows for cell in _row(protocol, row, images, setting)]


def _row(protocol: Protocol, row: Row, images: _Images, setting: Setting) -> Iterator[Cell]:
    """The cells of a row. Its model is loaded once, when the first cell needs it; where the captions are names of
    classes in templates, once for each column.
    """
    shared, lacking = _Once(lambda: _load(row, setting.device)), _problems(lambda: _check_weights(row))
    for column in protocol.columns:
        loaded = _Once(partial(_load_captions, row, column, images, setting.device)) if row.template else shared
        if not row.columns or column.name in row.columns:
            problems = lacking + _problems(partial(images.check, column))
            cell = _incremental_cell if column.is_incremental else _cell
            try:
                if not problems:
                    yield cell(row, column, images, loaded, setting)
            except Interrupted:
                raise
            except AvarcError as error:
                problems = [error]
            if problems:
                yield Cell(row=row, column=column, metrics=None, not_run=tuple(problems))


def _problems(check: Callable[[], object]) -> list[AvarcError]:
    try:
        check()
    except AvarcError as error:
        return [error]
    return []


def _check_weights(row: Row) -> None:
    """Raises: AvarcError that says how to get the weights of a model or a tokenizer that are not on this machine."""
    implied = None
    if row.model is not None and not is_path(row.model):
        card = any_card(row.model)
        local_files.require(card)
        implied = card.tokenizer if isinstance(card, ModelCard) else None
    tokenizer = row.tokenizer or implied
    if tokenizer is not None and not is_path(tokenizer):
        local_files.require(any_card(tokenizer))
    encoder = needed_encoder(row.model or "", row.captions, row.template, row.text_encoder)
    if encoder is not None and not is_path(encoder):
        local_files.require_folder(text_encoder_card(encoder))
    for name in filter(None, (row.model, tokenizer)):
        check_weights(name)


def _incremental_cell(row: Row, column: Column, images: _Images, loaded: _Once[Loaded], setting: Setting) -> Cell:
    from avarc_cli.evaluation.incremental_cell import run_incremental

    train, test = images.of_tasks(column)
    run = _run_folder(row, column, setting)
    metrics, unreadable = run_incremental(row, column, train, test, loaded.get(), run, setting)
    return Cell(row=row, column=column, metrics=metrics, unreadable=unreadable, run=run)


def _run_folder(row: Row, column: Column, setting: Setting) -> Path:
    run = setting.out / "cells" / row.name / column.name
    run.parent.mkdir(parents=True, exist_ok=True)
    return run


def _cell(row: Row, column: Column, every: _Images, loaded: _Once[Loaded], setting: Setting) -> Cell:
    from avarc_cli.classifier import Classifier
    from avarc_cli.loaded import LoadedModel
    from avarc_cli.results.run import accuracy_note
    from avarc_cli.tokens.cache import read

    images, model = every.of(column), loaded.get()
    assert isinstance(model, LoadedModel), "a row without a model has other columns only"
    classifier = Classifier(model, _options(row, column, images.dataset))
    samples = classifier.smoothing_samples(SINGLE_VIEW)  # a wrong plan is an error before anything is encoded
    tokens = setting.out / "tokens" / f"{column.name}-{_identity(row, column, classifier, samples, setting)}.h5"
    tokens.parent.mkdir(exist_ok=True)
    with setting.progress(f"{row.name}: encoding {column.name}", len(images)) as bar:
        encoded = classifier.encode(
            images,
            tokens,
            preprocess=row.preprocess,
            sigma=row.sigma,
            seed=row.seed,
            progress=bar.update,
            say=setting.say,
        )
    run = _run_folder(row, column, setting)
    cache = read(encoded.path)
    with setting.progress(f"{row.name}: classifying {column.name}", len(cache)) as bar:
        result = classifier.classify_cache(
            cache,
            run,
            progress=lambda done, numbers: bar.update(done, None, accuracy_note(numbers)),
            say=setting.say,
        )
    return Cell(row=row, column=column, metrics=result.metrics, unreadable=len(encoded.unreadable), run=run)


def _options(row: Row, column: Column, dataset: str) -> Options:
    return Options(
        plan=row.plan,
        classes=column.classes,
        dataset=dataset,
        score=row.score,
        orders=row.orders,
        order_seed=row.order_seed,
        combine=row.combine,
    )


def _identity(row: Row, column: Column, classifier: Classifier, samples: int, setting: Setting) -> str:
    """Name of the tokenizer, and a digest of what else the tokens of a column depend on."""
    tokenizer = classifier.model.tokenizer
    noise = (samples, row.sigma, row.seed) if samples > 1 else (1,)
    images = vars(replace(column, title="", classes=None))
    if column.sample is None:  # earlier versions had no such key
        images = {key: value for key, value in images.items() if key not in ("sample", "seed")}
    parts = {
        "tokenizer": (tokenizer.sha256, tokenizer.image_size, str(tokenizer.layout), row.preprocess),
        "column": images,
        "per_class": setting.per_class,
        "noise": noise,
    }
    digest = hashlib.sha256(to_json(parts, sort_keys=True).encode()).hexdigest()[:8]
    return f"{Path(tokenizer.name).stem}-{digest}"


def _load_captions(row: Row, column: Column, images: _Images, device: str) -> Loaded:
    """The row's model with the names of the column's classes in its templates."""
    return _load(row, device, template_names(None, images.of(column).class_names, column.classes))


def _load(row: Row, device: str, names: Sequence[str] = ()) -> Loaded:
    """The row's model, or its tokenizer where a base model is trained first.

    Args:
        names: of classes, which go into the templates.
    """
    from avarc_cli.loading import ModelSpec, load_model, load_tokenizer

    if row.model is None:
        return load_tokenizer(ModelSpec(str(row.tokenizer), device=device))
    spec = ModelSpec(
        row.model,
        row.tokenizer,
        weight_set=row.weights,
        bank=row.bank,
        lora=row.lora,
        captions=row.captions,
        templates=tuple(row.template),
        template_names=tuple(names),
        text_encoder=row.text_encoder,
        aesthetic_score=row.aesthetic_score,
        precision=precision_for(row.precision, cascade=row.combine == "mean"),
        device=device,
    )
    return load_model(spec)


class _Images:
    """The images of each column, opened once."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._opened: dict[str, _Once[ImageSet]] = {}

    def of(self, column: Column) -> ImageSet:
        """Raises: UsageError, each time that it is asked for images that are not there."""
        once = self._opened.setdefault(column.name, _Once(lambda: self._open(column, self._place(column))))
        return once.get()

    def check(self, column: Column) -> None:
        """Raises: UsageError when the images of a column are not there."""
        for name in filter(None, (column.data, column.test)):
            self._below_root(name, column)

    def of_tasks(self, column: Column) -> tuple[ImageSet, ImageSet | None]:
        """The images to learn from, and those to test on; None where a part of the former is held out."""
        place = self._digits() if column.included else self._place(column)
        test = self._below_root(column.test, column) if column.test else None
        if test is None and (place / "train").is_dir() and (place / "test").is_dir():
            place, test = place / "train", place / "test"
        return self._open(column, place), None if test is None else self._open(column, test)

    def _open(self, column: Column, path: Path) -> ImageSet:
        images = open_images([path], column.dataset, allow_outside=self.setting.allow_outside)
        chosen = subset(column.subset) if column.subset is not None else None
        if chosen is None and (outside := images.classes_outside_imagenet()):
            chosen = tuple(name for name in images.class_names if name not in outside)
        per_class = min(filter(None, (column.per_class, self.setting.per_class)), default=None)
        selected = images.select(chosen, per_class, column.limit)
        for note in selected.notes:
            self.setting.say(f"{column.name}: {note}")
        return selected if column.sample is None else selected.sample(column.sample, column.seed or 0)

    def _place(self, column: Column) -> Path:
        return INCLUDED[column.included] if column.included else self._below_root(str(column.data), column)

    def _below_root(self, name: str, column: Column) -> Path:
        path = (self.setting.data or Path()) / name
        if not os.path.exists(path):  # also for a name that no file can have
            what = f"there is no '{path}'"
            raise UsageError(what, f"the column '{column.name}' reads it", "put the images there, or link to them")
        return path

    def _digits(self) -> Path:
        """The digits to learn from are not included in avarc, but in scikit-learn."""
        from avarc_cli.train.digits import write_digits

        folder = self.setting.out / "digits"
        if not folder.is_dir():
            remove_leftovers_of(folder)
            with new_folder(folder) as temporary:
                write_digits(temporary)
        elif not (folder / "test").is_dir():  # an earlier version was killed while it wrote them
            write_digits(folder)
        return folder


@dataclass
class _Once(Generic[Value]):
    """A value that is made when it is first needed, or the error that this ended with."""

    make: Callable[[], Value]

    def __post_init__(self) -> None:
        self._made: list[Value] = []
        self._error: AvarcError | None = None

    def get(self) -> Value:
        if self._error is not None:
            raise self._error
        if not self._made:
            try:
                self._made.append(self.make())
            except AvarcError as error:
                self._error = error
                raise
        return self._made[0]
