"""A model as one folder: weights of a generator and of its tokenizer, and `model.json`, which says what they are.

`avarc train classifier` makes such folders. Wherever a model is named, the folder stands for both files; a tuned plan
in it is what `--plan auto` uses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avarc_cli import strict_json
from avarc_cli.errors import CheckpointError, UsageError, shorten_list
from avarc_cli.zoo import sharded

FILE = "model.json"
FORMAT = 1
GENERATOR, TOKENIZER = "generator", "tokenizer"
"""Keys of the names of the files."""
AGAIN = "copy the folder again, or make it again: avarc train classifier"


@dataclass(frozen=True)
class ModelFolder:
    """What `model.json` of a folder says."""

    path: Path
    """The folder."""
    facts: Mapping[str, Any]
    """All of `model.json` (docs/train-classifier.md)."""

    @property
    def generator(self) -> Path:
        """File of the generator's weights."""
        return self.path / str(self.facts[GENERATOR])

    @property
    def tokenizer(self) -> Path:
        """File of its tokenizer's weights."""
        return self.path / str(self.facts[TOKENIZER])

    def details(self) -> dict[str, str]:
        """What `facts` say, for people; facts that are not there, or are no text or number, are left out."""
        held_out, made, classes = (self.facts.get(key) for key in ("held_out", "made", "classes"))
        shown = {key: self.facts.get(key) for key in ("family", "tokenizer_family", "tokens", "generator", "tokenizer")}
        shown |= {"plan": self.facts.get("plan") or "none"}
        if isinstance(classes, list):
            names = [str(each.get("name")) for each in classes if isinstance(each, dict)]
            shown["classes"] = f"{len(names):,}: {shorten_list(names)}"
        if isinstance(held_out, dict):
            shown["accuracy"] = f"{held_out.get('accuracy'):.1%} of {held_out.get('images'):,} held-out images"
        if isinstance(made, dict):
            shown["made"] = f"{made.get('date')} by avarc {made.get('avarc')}"
        return {key.replace("_", " "): str(value) for key, value in shown.items() if isinstance(value, (str, int))}


def is_one(path: Path) -> bool:
    """Whether this is the path of a model folder, complete or not."""
    return path.is_dir() and (path / FILE).is_file()


def find(name: str | Path | None) -> ModelFolder | None:
    """The model folder that a --model or --tokenizer value is the path of; None for anything else.

    Raises: CheckpointError for one that is damaged.
    """
    if name is None or not is_one(Path(name)):
        return None
    path = Path(name)
    try:
        facts = strict_json.parse_object((path / FILE).read_bytes())
        if facts.get("format") != FORMAT:
            raise ValueError(f"its format is {facts.get('format')!r}, this avarc reads {FORMAT}")
        for key in (GENERATOR, TOKENIZER):
            file = facts.get(key)
            if not isinstance(file, str) or not file or os.path.basename(file) != file:
                raise ValueError(f"it names no file in this folder as its {key}")
            if not (path / file).is_file():
                raise ValueError(f"there is no file {file}, which {FILE} names as its {key}")
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"the model folder '{path}' is damaged", str(problem), AGAIN) from None
    return ModelFolder(path, facts)


def check(path: Path) -> None:
    """Raises: UsageError for a folder that has no weights, CheckpointError for one that is damaged."""
    if find(path) is None and sharded.find_index(path) is None:
        raise UsageError(
            f"there is no model in the folder '{path}'",
            f"it has neither {FILE} nor *{sharded.SUFFIX}",
            "name a folder that `avarc train classifier` made, or the file of a checkpoint",
        )


def name_of(path: Path) -> str:
    """What a model is called that was given by its path: its file's name, or that of the folder that holds it."""
    path = Path(os.path.abspath(path))
    if path.is_dir() or not is_one(path.parent):
        return path.name
    folder = find(path.parent)
    return path.parent.name if folder is not None and folder.generator.name == path.name else path.name
