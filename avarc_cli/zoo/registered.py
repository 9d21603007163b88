"""The user's own names: checkpoints that were registered, and revisions that published ones were downloaded at.

They are kept in one small file, `models.json` in the configuration folder. It is always written whole, by one process
at a time; one that cannot be understood is an error, and is not written.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.layout import TokenLayout
from avarc_cli.names import from_json, to_json
from avarc_cli.storage import remove_leftovers_of, write_bytes
from avarc_cli.zoo import paths, published
from avarc_cli.zoo.card import Card, HubFile, HubFolder, LocalFile, ModelCard, TextEncoderCard, TokenizerCard
from avarc_cli.zoo.text_encoders import TEXT_ENCODERS

FORMAT = 3
READABLE = (1, 2, FORMAT)
"""2 had no sets of weights; 1 also had the sides of scales, patch_nums, in place of a layout, and unused fields."""

# Types of the fields of cards, by their annotations.
_TYPES: Mapping[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "int | None": (int, type(None))}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Registered:
    """What `models.json` holds."""

    models: tuple[ModelCard, ...] = ()  # generators
    tokenizers: tuple[TokenizerCard, ...] = ()  # image tokenizers
    revisions: Mapping[str, str] = field(default_factory=dict)  # name of a published card -> commit

    @property
    def cards(self) -> tuple[Card, ...]:
        """The registered checkpoints."""
        return (*self.models, *self.tokenizers)

    @property
    def names(self) -> list[str]:
        """Of the registered checkpoints."""
        return [card.name for card in self.cards]


def file() -> Path:
    """Where the names are kept."""
    return paths.config_folder() / "models.json"


def load() -> Registered:
    """The user's names. Raises AvarcError when the file cannot be read."""
    try:
        text = file().read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return Registered()
    except (OSError, UnicodeDecodeError) as problem:
        raise _unreadable(str(problem)) from None
    try:
        data = from_json(text)
        if data["format"] not in READABLE:
            raise _unreadable(f"its format is {data['format']}, this avarc reads {FORMAT}")
        return Registered(
            tuple(ModelCard(**_fields(entry, ModelCard)) for entry in _list(data["models"])),
            tuple(TokenizerCard(**_fields(entry, TokenizerCard)) for entry in _list(data["tokenizers"])),
            {_text(name): _text(revision) for name, revision in data["revisions"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as problem:
        raise _unreadable(f"{type(problem).__name__}: {problem}") from None


def check_name(name: str) -> None:
    """Raises UsageError for a name that is taken, or that is not a name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be a name", "letters, digits, '.', '-' and '_', beginning with a letter or digit"
        )
    if name in load().names:
        raise UsageError(f"the name '{name}' is taken", "you registered it before", f"avarc models remove {name}")
    if any(card.name == name for card in _published()):
        raise UsageError(f"the name '{name}' is taken", "by one that avarc knows", "choose another")


def add(card: Card) -> None:
    """Register a checkpoint under its card's name. Raises: UsageError as `check_name`."""
    with _changing() as user:
        check_name(card.name)
        if isinstance(card, ModelCard):
            _save(dataclasses.replace(user, models=(*user.models, card)))
        else:
            _save(dataclasses.replace(user, tokenizers=(*user.tokenizers, card)))


def remove(name: str) -> Card:
    """Forget a registered checkpoint (its file stays) and return its card.

    Raises: UsageError for a name that is not registered, or of a tokenizer that a registered model reads.
    """
    with _changing() as user:
        gone = next((card for card in user.cards if card.name == name), None)
        if gone is None:
            known = ", ".join(user.names) or "none"
            raise UsageError(f"'{name}' is not a checkpoint that you registered", f"registered are: {known}")
        if readers := [model.name for model in user.models if model.tokenizer == name]:
            raise UsageError(f"'{name}' is needed", f"{', '.join(readers)} reads its tokens", "remove that first")
        models = tuple(card for card in user.models if card is not gone)
        tokenizers = tuple(card for card in user.tokenizers if card is not gone)
        _save(dataclasses.replace(user, models=models, tokenizers=tokenizers))
    return gone


def pin(name: str, revision: str | None) -> None:
    """From now on the published card of that name means this revision; None: what its card says."""
    with _changing() as user:
        revisions = {other: commit for other, commit in user.revisions.items() if other != name}
        if revision is not None:
            revisions[name] = revision
        if revisions != user.revisions:
            _save(dataclasses.replace(user, revisions=revisions))


def published_revision(name: str) -> str:
    """What the published card itself says: its commit, or `main`."""
    weights = next((card.weights for card in _published() if card.name == name), None)
    return (isinstance(weights, (HubFile, HubFolder)) and weights.revision) or "main"


def _published() -> tuple[Card | TextEncoderCard, ...]:
    return (*published.MODELS, *published.TOKENIZERS, *TEXT_ENCODERS)


def _fields(entry: Mapping[str, Any], kind: type[Card]) -> dict[str, Any]:
    """A card's fields; those that format 1 had beside them are left out. Raises: TypeError, KeyError, ValueError."""
    sides = entry.get("patch_nums")
    layout = TokenLayout.from_dict(entry["layout"]) if sides is None else TokenLayout.multi_scale(sides)
    known = {each.name: entry[each.name] for each in dataclasses.fields(kind) if each.name in entry}
    for each in dataclasses.fields(kind):
        types = _TYPES.get(str(each.type))
        if types and each.name in known and type(known[each.name]) not in types:
            raise TypeError(f"{each.name} is {known[each.name]!r}")
    set_name = entry.get("weight_set")
    weights = LocalFile(Path(_text(entry["weights"])), None if set_name is None else _text(set_name))
    return {**known, "layout": layout, "weights": weights}


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _entry(card: Card) -> dict[str, Any]:
    assert isinstance(card.weights, LocalFile)  # no other is registered
    place = {"weights": str(card.weights.path), "weight_set": card.weights.weight_set}
    return {**dataclasses.asdict(card), "layout": card.layout.to_dict(), **place}


@contextmanager
def _changing() -> Iterator[Registered]:
    """Be the only process that changes the file, waiting for others; yields what it holds now."""
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file().with_name(file().name + ".lock"))  # ends with its process
        lock.acquire()
    except OSError as problem:
        raise _not_writable(problem) from None
    try:
        yield load()
    finally:
        lock.release()


def _save(user: Registered) -> None:
    data = {
        "format": FORMAT,
        "models": [_entry(card) for card in user.models],
        "tokenizers": [_entry(card) for card in user.tokenizers],
        "revisions": dict(user.revisions),
    }
    try:
        remove_leftovers_of(file())  # of a process that was killed here
        write_bytes(file(), (to_json(data, indent=2) + "\n").encode())
    except OSError as problem:
        raise _not_writable(problem) from None


def _not_writable(problem: OSError) -> AvarcError:
    fix = "set AVARC_HOME to a folder that you can write"
    return AvarcError(f"cannot write {file()}", problem.strerror or str(problem), fix)


def _unreadable(why: str) -> AvarcError:
    return AvarcError(f"cannot read {file()}, which holds the names you registered", why, "fix the file or delete it")
