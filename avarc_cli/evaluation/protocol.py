"""Protocols: tables of models by datasets, described in a TOML file (docs/evaluation.md).

Reading one imports no torch. Everything that can be known to be wrong by then is an error that names file and key.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from avarc_cli import toml_file
from avarc_cli.data.known import NO_DATASET, get_dataset
from avarc_cli.data.labels import ASSETS, close_names, subset
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.results import tuned
from avarc_cli.scoring.combining import check_rule
from avarc_cli.scoring.orders import check_orders
from avarc_cli.scoring.plan import check_plan
from avarc_cli.scoring.scores import score_function
from avarc_cli.settings import (
    check_aesthetic_score,
    check_method,
    check_precision,
    check_scoring_precision,
    check_width,
)
from avarc_cli.text.captions import check_options
from avarc_cli.tokens.noise import check_sigma
from avarc_cli.zoo.cards import ModelCard, any_card, check_condition, is_path

PROTOCOLS = Path(str(ASSETS)) / "protocols"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST = 1000  # rows, columns and references; a mistyped loop should not begin a million runs


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model, and how it scores. Its fields, like those of the other classes here, are the keys of the file."""

    name: str
    """Of its folder."""

    model: str | None = None
    """None only where classes come task by task, and a base model is trained first (`base_depth` and the like)."""

    title: str = ""
    tokenizer: str | None = None
    weights: str | None = None
    bank: str | None = None
    lora: str | None = None
    captions: str | None = None
    """The file of captions that a model of captions chooses from, or else `template`."""

    template: Sequence[str] = ()
    """Texts like "a photo of a {}", which the names of a column's classes are put into."""

    text_encoder: str | None = None
    aesthetic_score: float | None = None
    precision: str = "fp32"
    plan: str = "exhaustive"
    score: str = "log-likelihood"
    orders: str | None = None
    order_seed: int = 0
    combine: str = "mean"
    preprocess: str | None = None
    sigma: float = 0.1
    seed: int = 0
    method: str = "lora"
    """How classes are added where they come task by task, like `steps`."""

    steps: int | None = None
    base_depth: int = 3
    base_width: int = 64
    base_steps: int = 1500
    columns: Sequence[str] = ()
    """Names of the columns that it is run on; empty for all."""

    published: Mapping[str, float] = field(default_factory=dict)
    """Column name -> published accuracy of this row, in percent."""

    source: str = ""
    """Of the published values."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Images, and the classes to choose from."""

    name: str
    """Of its folders."""

    title: str = ""
    data: str | None = None
    """Folder or file below the root of the data."""

    included: str | None = None
    """In place of `data`: "digits", the test images that are included in avarc."""

    dataset: str | None = None
    subset: str | None = None
    classes: str | None = None
    """Candidates, as --classes."""

    per_class: int | None = None
    limit: int | None = None
    sample: int | None = None
    """Images to draw evenly over the classes, from what the keys above leave."""

    seed: int | None = None
    """Of `sample`; None for 0."""

    base: str | None = None
    """Classes that are known from the start, as --base of avarc incremental: then classes come task by task."""

    tasks: str | None = None
    """Classes that are added later, as --tasks."""

    test: str | None = None
    """Test images, below the root of the data; `data` then has those to learn from. None for data's test/, or else a
    fifth of it."""

    @property
    def is_incremental(self) -> bool:
        """Whether classes come task by task."""
        return self.tasks is not None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Published accuracies of a method that is not run."""

    title: str
    published: Mapping[str, float]
    source: str


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A table of rows by columns."""

    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    references: tuple[Reference, ...] = ()
    about: str = ""

    @property
    def needs_data(self) -> bool:
        """Whether there are images that are not included in avarc."""
        return any(column.included is None for column in self.columns)


def included() -> dict[str, Path]:
    """The protocols that are included in avarc: name -> file."""
    return {path.stem: path for path in sorted(PROTOCOLS.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a protocol, by its name or its path. Raises: UsageError with the closest names."""
    known = included()
    if name in known:
        return known[name]
    if Path(name).suffix == ".toml" or Path(name).is_file():
        return Path(name)
    close = " or ".join(close_names(name, known))
    raise UsageError(
        f"no protocol '{name}'",
        f"there are {', '.join(known)}",
        f"did you mean {close}?" if close else "name one of these, or a .toml file",
    )


def read(path: Path) -> Protocol:
    """Read a protocol. Paths in it that exist below its folder are taken from there.

    Raises: UsageError that names file and key for everything that is wrong in it.
    """
    table = _Table(toml_file.read(path), str(path), path.parent)
    return table.read_protocol()


_OF_PROTOCOL = {"title", "about", "rows", "columns", "references"}
_FROM_1 = ("per_class", "limit", "sample", "steps", "base_depth", "base_width", "base_steps")
_TYPES: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("order_seed", "seed"), (int, "a whole number from 0")),
    **dict.fromkeys(_FROM_1, (int, "a whole number from 1")),
    **dict.fromkeys(("sigma", "aesthetic_score"), (float, "a number")),
    "published": (dict, "a table: column = percent"),
    "columns": (list, "a list of names of columns"),
    "template": (list, 'a list of texts like "a photo of a {}"'),
}
"""Type of the keys that are not text, and what messages call it."""
_FILES = ("model", "tokenizer", "bank", "lora", "captions", "text_encoder", "plan", "orders", "classes", "subset")


def _check_known(name: str) -> None:
    """Raises: UsageError for a name that no card has. A file may come later: then its cells are not run."""
    if not is_path(name):
        any_card(name)


@dataclass(frozen=True)
class _Table:
    """A part of the file, as TOML gives it."""

    values: Any
    where: str
    """File and key."""

    folder: Path

    def read_protocol(self) -> Protocol:
        self._check_keys(_OF_PROTOCOL, required=("title", "rows", "columns"))
        columns = tuple(self._each("columns", _Table._column))
        names = [column.name for column in columns]
        rows = tuple(self._each("rows", lambda table: table._row(columns)))
        references = tuple(self._each("references", lambda table: table._reference(names)))
        for kind, parts in (("rows", [row.name for row in rows]), ("columns", names)):
            if twice := sorted({name for name in parts if parts.count(name) > 1}):
                raise self._wrong(kind, f"two are called '{twice[0]}'", "give each another name")
        texts = {key: self._value(key, str, "text") for key in ("title", "about") if key in self.values}
        return Protocol(rows=rows, columns=columns, references=references, **texts)

    def _each(self, key: str, read: Callable[[_Table], Any]) -> list[Any]:
        parts = self.values.get(key, [])
        if not isinstance(parts, list) or (key != "references" and not parts) or len(parts) > MOST:
            raise self._wrong(key, f"it is not a list of 1 to {MOST} tables", f"write each as [[{key}]]")
        return [read(_Table(part, f"{self.where}: {key}[{i}]", self.folder)) for i, part in enumerate(parts)]

    def _row(self, columns: Sequence[Column]) -> Row:
        row: Row = self._as(Row, ("name",))
        names = [column.name for column in columns]
        for name in row.columns:
            if name not in names:
                raise self._wrong("columns", f"there is no column {name!r:.50}", f"there are {', '.join(names)}")
        self._check_published(row.published, row.source, names)
        used = [column for column in columns if not row.columns or column.name in row.columns]
        if row.model is None and not (row.tokenizer and all(column.is_incremental for column in used)):
            raise self._wrong("model", "it is missing", "write model = ...")
        for key, used_name in (("model", row.model), ("tokenizer", row.tokenizer)):
            if used_name is not None:
                self._checked(key, partial(_check_known, used_name))
        self._check_captions(row, used)
        self._checked("method", lambda: check_method(row.method))
        self._checked("base_width", lambda: check_width(row.base_width, "a base model"))
        adds_classes = any(column.is_incremental for column in used)  # which no cascade does
        check = check_precision if adds_classes else check_scoring_precision
        self._checked("precision", lambda: check(row.precision))
        if row.plan != tuned.AUTO and not tuned.is_file(row.plan):  # a tuned plan is read with its model
            self._checked("plan", lambda: check_plan(row.plan))
        self._checked("score", lambda: score_function(row.score))
        orders = row.orders
        if orders is not None:
            self._checked("orders", lambda: check_orders(orders))
        self._checked("combine", lambda: check_rule(row.combine))
        self._checked("sigma", lambda: check_sigma(row.sigma))
        return row

    def _check_captions(self, row: Row, columns: Sequence[Column]) -> None:
        if not all(isinstance(each, str) for each in row.template):
            raise self._wrong("template", "it has more than texts", 'write template = ["a photo of a {}"]')
        file, score = None if row.captions is None else Path(row.captions), row.aesthetic_score
        given = file is not None or bool(row.template)
        self._checked("captions", lambda: check_options(file, row.template, row.text_encoder, has_bank=bool(row.bank)))
        self._checked("aesthetic_score", lambda: check_aesthetic_score(score))
        if given and any(column.is_incremental for column in columns):
            raise self._wrong("captions", "no classes are added to a model of captions", "name other columns")
        if row.model is not None and not is_path(row.model):
            card = any_card(row.model)
            if isinstance(card, ModelCard):
                self._checked("captions", lambda: check_condition(card, captions=given))

    def _column(self) -> Column:
        column: Column = self._as(Column, ("name",))
        if (column.data is None) == (column.included is None):
            raise self._wrong("data", "a column has either 'data' or 'included'", 'write data = "folder"')
        for key, place in (("data", column.data), ("test", column.test)):
            if place is not None and (Path(place).is_absolute() or ".." in Path(place).parts):
                raise self._wrong(key, f"'{place}' leads out of the root of the data", "name a place below it")
        if column.limit is not None and column.sample is not None:
            raise self._wrong("sample", "there is 'limit' as well", "leave out one of them")
        for key, other in (("base", "tasks"), ("tasks", "base"), ("test", "tasks"), ("seed", "sample")):
            if getattr(column, key) is not None and getattr(column, other) is None:
                raise self._wrong(other, f"it is missing, and there is '{key}'", f"write {other} = ...")
        if column.included not in (None, "digits"):
            raise self._wrong("included", f"no images '{column.included}' are included", 'there are "digits"')
        if column.dataset not in (None, NO_DATASET):
            self._checked("dataset", lambda: get_dataset(str(column.dataset)))
        if column.subset is not None:
            self._checked("subset", lambda: subset(str(column.subset)))
        return column

    def _reference(self, columns: Collection[str]) -> Reference:
        reference: Reference = self._as(Reference, ("title", "published", "source"))
        self._check_published(reference.published, reference.source, columns)
        return reference

    def _as(self, kind: type[Any], required: Collection[str]) -> Any:
        """This table as an object whose fields are its keys."""
        known = {f.name for f in fields(kind)}
        self._check_keys(known, required)
        values = {key: self._value(key, *_TYPES.get(key, (str, "text"))) for key in self.values}
        if "name" in values and not _NAME.fullmatch(values["name"]):
            raise self._wrong("name", f"'{values['name']}' cannot be a folder's", "use letters, digits, . _ and -")
        located = {key: self._located(values[key]) for key in _FILES if key in values}
        return kind(**values | located)

    def _located(self, value: str) -> str:
        """A path below the folder of the protocol, if there is such a file; any other value as it is."""
        path = self.folder / value
        return str(path) if value and os.path.exists(path) else value

    def _check_keys(self, known: Collection[str], required: Collection[str]) -> None:
        if not isinstance(self.values, dict):
            raise UsageError(f"{self.where} is not a table", "", "write keys and values below [[...]]")
        for key in self.values:
            if key not in known:
                close = " or ".join(close_names(key, known))
                fix = f"did you mean {close}?" if close else f"there are {', '.join(sorted(known))}"
                raise self._wrong(key, "there is no such key", fix)
        for key in required:
            if key not in self.values:
                raise self._wrong(key, "it is missing", f"write {key} = ...")

    def _value(self, key: str, kind: type, words: str) -> Any:
        value = self.values[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        least = 1 if key in _FROM_1 else 0
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits or (kind is int and not least <= value < 2**63) or (kind is str and not value):
            raise self._wrong(key, f"it is {value!r:.50}, must be {words}", "")
        return value

    def _check_published(self, published: Mapping[str, Any], source: str, columns: Collection[str]) -> None:
        for column, value in published.items():
            if column not in columns:
                close = " or ".join(close_names(column, columns)) or ", ".join(columns)
                raise self._wrong(f"published.{column}", "there is no such column", f"did you mean {close}?")
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 <= value <= 100:
                raise self._wrong(f"published.{column}", f"it is {value!r:.50}, must be from 0 to 100 percent", "")
        if published and not source:
            raise self._wrong("source", "published values have no source", "say where they are from")

    def _checked(self, key: str, check: Callable[[], object]) -> None:
        """Run a check of one value. Raises: UsageError that names the key."""
        try:
            check()
        except AvarcError as error:
            why = "; ".join(filter(None, (error.what, error.why)))
            raise self._wrong(key, why, error.fix) from None

    def _wrong(self, key: str, why: str, fix: str) -> UsageError:
        return UsageError(f"{self.where}.{key}" if "[" in self.where else f"{self.where}: {key}", why, fix)
