"""The class bank on disk: the classes that were added to a model, with one safetensors file each.

    BANK/bank.json                      base model, and the classes in the order of their ids
    BANK/<name>-<digest>.safetensors    tensors of one class

This module only reads; `incremental.editing` changes banks. The file of the base model is never changed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from avarc_cli.data.labels import LabelSpace, close_names, normalize
from avarc_cli.errors import CheckpointError, UsageError, describe_differences
from avarc_cli.names import from_json, to_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
FILE = "bank.json"


@dataclass(frozen=True, kw_only=True)
class Addition:
    """One added class."""

    name: str  # of the class
    file: str  # name of its safetensors file in the bank
    sha256: str  # of that file, in hex
    method: str  # "embedding", "adaln" or "lora"
    scale: float  # of the low-rank changes: alpha / rank
    offset: float  # nats added to its score
    facts: Mapping[str, Any] = field(default_factory=dict)  # how it was fitted, for `avarc classes show`


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that the classes were added to."""

    name: str  # for messages; the digests identify the model
    sha256: str  # of the model's file, in hex
    tokenizer_sha256: str  # of the tokenizer's file, in hex


@dataclass(frozen=True)
class Bank:
    """The contents of bank.json. The tensors are read when they are needed."""

    path: Path  # of the folder
    base: Base  # the model that it was made for
    additions: tuple[Addition, ...] = ()  # in the order of their class ids

    def check(self, base: Base) -> None:
        """Raises: UsageError, with both digests, unless the bank was made for this model and tokenizer."""
        digests = [{"sha256": one.sha256, "tokenizer sha256": one.tokenizer_sha256} for one in (self.base, base)]
        if differences := describe_differences(*digests):
            raise UsageError(
                f"the bank '{self.path}' was made for another model: {self.base.name}, not {base.name}",
                differences,
                f"use --model {self.base.name} (the very file), or another --bank",
            )

    def find(self, name: str) -> Addition:
        """The added class with this name, ignoring case. Raises: UsageError with the closest names."""
        by_name = {normalize(a.name): a for a in self.additions}
        if normalize(name) in by_name:
            return by_name[normalize(name)]
        close = close_names(name, (a.name for a in self.additions))
        known = ", ".join(a.name for a in self.additions) or "none yet"
        raise UsageError(
            f"the bank '{self.path}' has no class '{name}'"
            + (f"; did you mean {' or '.join(close)}?" if close else ""),
            f"its classes are: {known}",
            f"avarc classes list --bank {self.path}",
        )

    def tensors(self, addition: Addition) -> dict[str, Tensor]:
        """The tensors of an added class. Raises: CheckpointError with the file if it is missing or corrupt."""
        from safetensors.torch import load

        path = self.path / addition.file
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != addition.sha256:
                raise ValueError(f"its sha256 is not {addition.sha256}, as {FILE} says")
            return load(data)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"'{path}' is corrupt or missing, so class '{addition.name}' cannot be scored",
                str(error),
                f"restore the file, or: avarc classes remove '{addition.name}' --bank {self.path}",
            ) from None

    def state(self, addition: Addition) -> str:
        """The state of an added class's file, for `avarc classes`: "whole", "damaged" or "missing"."""
        try:
            data = (self.path / addition.file).read_bytes()
        except OSError:
            return "missing"
        return "whole" if hashlib.sha256(data).hexdigest() == addition.sha256 else "damaged"

    def extend(self, classes: LabelSpace) -> LabelSpace:
        """The base's classes followed by the added ones. Raises: UsageError if a name occurs in both."""
        known = {normalize(name) for name in (*classes.ids, *classes.names)}
        names = tuple(a.name for a in self.additions)
        if twice := [name for name in names if normalize(name) in known]:
            raise UsageError(
                f"class '{twice[0]}' of the bank '{self.path}' is also a class of {classes.name}",
                fix=f"avarc classes rename '{twice[0]}' NEW --bank {self.path}",
            )
        if not names:
            return classes
        title = f"{classes.name} and {len(names)} added"
        return replace(classes, name=title, ids=classes.ids + names, names=classes.names + names, long_names=())

    def offsets(self, base_classes: int) -> np.ndarray:
        """Nats to add to the score of every class, (N,) float64; zero for the base's own."""
        return np.array([0.0] * base_classes + [a.offset for a in self.additions])

    def protocol(self) -> dict[str, Any]:
        """What results of a model with this bank depend on, for run.json."""
        return {a.name: {"sha256": a.sha256, "offset": a.offset} for a in self.additions}

    def to_json(self) -> str:
        """The text of bank.json."""
        values = {"format": FORMAT, "base": asdict(self.base), "classes": [asdict(a) for a in self.additions]}
        return to_json(values, indent=1)


def read(path: Path) -> Bank:
    """Read a bank.

    Raises: UsageError if there is none; CheckpointError if its bank.json is corrupt or has another format.
    """
    file = path / FILE
    if not file.is_file():
        why = f"there is no '{file}'" if path.is_dir() else f"there is no folder '{path}'"
        raise UsageError(f"'{path}' is not a class bank", why, "avarc add-class creates one")
    try:
        values = from_json(file.read_bytes())
        if values["format"] != FORMAT:
            raise CheckpointError(
                f"'{file}' has another format", f"it is {values['format']}, this avarc reads {FORMAT}"
            )
        bank = Bank(path, Base(**values["base"]), tuple(Addition(**entry) for entry in values["classes"]))
        _check(bank)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        has_reason = isinstance(error, (OSError, ValueError))
        why = str(error) if has_reason else "it does not have the entries of a class bank"
        fix = "restore it from a copy; the files of the added classes are not affected"
        raise CheckpointError(f"'{file}' is corrupt", why, fix) from None
    return bank


def _check(bank: Bank) -> None:
    """Raises: ValueError, TypeError for values that are not valid in a bank."""
    texts = [t for a in bank.additions for t in (a.name, a.file, a.sha256, a.method)]
    texts += [bank.base.name, bank.base.sha256, bank.base.tokenizer_sha256]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name or a digest is not text")
    if not all(math.isfinite(a.offset) and math.isfinite(a.scale) for a in bank.additions):
        raise ValueError("an offset or a scale is not a finite number")
    if any(Path(a.file).name != a.file for a in bank.additions):
        raise ValueError("a file is outside the bank")
    if len({normalize(a.name) for a in bank.additions}) != len(bank.additions):
        raise ValueError("two classes have the same name")
