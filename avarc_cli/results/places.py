"""Where the files of a run are: its token cache and what its model was loaded from, as they were given.

run.json records them under `places`. They are notes: a run is continued whatever the same files are called. `report`,
`explain` and `export` find them there. A run folder that another person made may name any file of the reader's, so
paths are used only from runs that this user made (`results.made_here`), or if the user says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.results.made_here import was_made_here
from avarc_cli.results.validate import AGAIN
from avarc_cli.settings import precision_of_winners
from avarc_cli.zoo import model_folder
from avarc_cli.zoo.cards import is_path, text_encoder_cards

KEY = "places"
CACHE = "tokens"
ORDERS = "orders"
NAMED = ("model", "tokenizer", "text_encoder")
ONE_OF = ({"captions"}, {"templates", "template_names"})
"""Fields that exclude each other."""
FILES = {
    CACHE: "--tokens",
    "model": "--model",
    "tokenizer": "--tokenizer",
    "model_config": "--model-config",
    "tokenizer_config": "--tokenizer-config",
    "class_names": "--class-names",
    "bank": "--bank",
    "lora": "--lora",
    "captions": "--captions",
    "text_encoder": "--text-encoder",
    ORDERS: "",
}
"""Fields of `loading.ModelSpec` that name files, the cache, and the orders; each with the option that names it."""
VALUES: dict[str, Any] = {
    "class_order": str,
    "lora_alpha": (int, float),
    "weight_set": str,
    "tokenizer_weight_set": str,
    "image_size": int,
    "templates": list,
    "template_names": list,
    "aesthetic_score": (int, float),
}
"""Other fields of it that decide what is loaded, with their types."""


def record(given: Mapping[str, Any], cache: Path, run: Path, orders: str | None = None) -> dict[str, Any]:
    """What run.json records.

    Args:
        given: fields of the `ModelSpec`. cache: the run's token cache. run: its folder, which may hold the cache.
        orders: the file that they came from; None for no file.
    """
    places: dict[str, Any] = {name: given[name] for name in VALUES if given.get(name) not in (None, ())}
    files = {**given, ORDERS: orders}
    for name in FILES:
        if name != CACHE and files.get(name) is not None:
            places[name] = _place(files[name], is_file=_is_file(name, str(files[name])))
    if os.path.abspath(cache) != os.path.abspath(run / "tokens.h5"):
        places[CACHE] = _place(cache, is_file=True)
    return places


def _is_file(name: str, given: str) -> bool:
    """Whether the value of a field is a path, not a name."""
    if name == "text_encoder":
        return all(card.name != given for card in text_encoder_cards())
    return name not in NAMED or is_path(given)


def _place(given: str | Path, *, is_file: bool) -> dict[str, str]:
    return {"given": str(given)} | ({"path": os.path.abspath(given)} if is_file else {})


class Places:
    """What a finished run records; nothing where an earlier version made it."""

    def __init__(self, run: Path, protocol: Mapping[str, Any], *, allow_outside: bool = False) -> None:
        """Raises: AvarcError when the record is corrupt."""
        self.run, self.protocol = run, protocol
        self.trusted = allow_outside or was_made_here(run / "run.json")
        """Whether paths that run.json names may be used."""
        self._recorded = protocol.get(KEY, {})
        if not isinstance(self._recorded, dict) or not all(map(self._is_valid, self._recorded.items())):
            raise AvarcError(f"'{run / 'run.json'}' is corrupt", f"missing or invalid: {KEY}", AGAIN)

    @property
    def within(self) -> Path | None:
        """The folder that images must be in to be read; None for anywhere."""
        return None if self.trusted else self.run

    def _is_valid(self, item: tuple[str, Any]) -> bool:
        name, value = item
        if name in FILES:
            return isinstance(value, dict) and all(isinstance(value.get(key, ""), str) for key in ("given", "path"))
        if isinstance(value, list) and not all(isinstance(each, str) for each in value):
            return False
        return name not in VALUES or isinstance(value, VALUES[name])

    @property
    def why_no_cache(self) -> str:
        """Why `cache` found none."""
        return "run.json does not say where it is" if self.trusted else "you did not make this run here"

    def cache(self, given: Path | None = None) -> Path | None:
        """The run's token cache; None where it is unknown, or may not be used.

        Args:
            given: by the user; used in place of what is recorded.
        Raises: UsageError when it is not where it was.
        """
        own = self.run / "tokens.h5"
        leads_out = not self.trusted and not own.resolve().is_relative_to(self.run.resolve())
        if given is not None or (own.exists() and not leads_out):
            return given or own
        if CACHE not in self._recorded or not self.trusted:
            return None
        return Path(self._find(CACHE))

    @property
    def orders(self) -> Path | None:
        """The file that the run's orders came from; None where it is unknown, or they came from none.

        Raises: UsageError when it is not where it was, or may not be used.
        """
        return Path(self._find(ORDERS)) if ORDERS in self._recorded else None

    def model(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the `ModelSpec` that loads the run's model: the user's where given (not None), else as recorded.

        Raises: UsageError for a file that is not where it was, or that may not be used.
        """
        fields = {name: value for name, value in given.items() if value is not None}
        excluded = {name for ours, others in (ONE_OF, ONE_OF[::-1]) if ours & fields.keys() for name in others}
        if "model" in fields and (not is_path(fields["model"]) or model_folder.is_one(Path(fields["model"]))):
            excluded.add("tokenizer")  # which its card or its folder implies
        for name in (*FILES, *VALUES):
            if name in (CACHE, ORDERS) or name not in self._recorded or name in fields or name in excluded:
                continue
            if name in FILES:
                fields[name] = self._find(name) if name in NAMED else Path(self._find(name))
            else:
                value = self._recorded[name]
                fields[name] = tuple(value) if isinstance(value, list) else value
        if "model" not in fields:  # an earlier version; an adapter's name comes after "with"
            fields["model"] = self.protocol["model"]["name"].split(" with ")[0]
            if is_path(fields["model"]) and not self.trusted:
                raise self._not_trusted("model", fields["model"])
        return {"precision": precision_of_winners(self.protocol.get("precision", "fp32"))} | fields

    def _find(self, name: str) -> str:
        """The path or the name that is recorded."""
        place = self._recorded[name]
        path, given = place.get("path"), place.get("given", "")
        if path is None and not _is_file(name, given):
            return str(given)
        if not self.trusted:
            raise self._not_trusted(name, path or given)
        if not os.path.exists(path or given):
            option = f"{FILES[name]} {'DIR' if name in ('bank', 'lora', 'text_encoder') else 'FILE'}"
            raise UsageError(
                f"the {_called(name)} of '{self.run}' is not where it was",
                f"there is no '{path or given}'",
                f"say where it is now: {option}" if FILES[name] else "put it back there",
            )
        return str(path or given)

    def _not_trusted(self, name: str, path: str) -> UsageError:
        why = f"run.json names '{path}', and you did not make this run here"
        name_it = f"name it with {FILES[name]}, or add" if FILES[name] else "add"
        return UsageError(f"the {_called(name)} of the run is a file", why, f"{name_it} --allow-outside")


def _called(name: str) -> str:
    called = {
        CACHE: "token cache",
        ORDERS: "file of orders",
        "bank": "class bank",
        "lora": "LoRA adapter",
        "class_names": "list of class names",
        "captions": "file of captions",
        "text_encoder": "text encoder",
    }
    return called.get(name, name.replace("_", " ").replace("config", "configuration"))
