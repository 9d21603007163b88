"""Weights in several safetensors files with an index, as Hugging Face libraries save large models.

The index, `model.safetensors.index.json`, has under "weight_map" the file of each tensor. Such a checkpoint is
identified by what `sha256sum INDEX SHARDS... | sha256sum` prints in its folder, the shards in order of their names: it
changes with any byte of any of the files, and not with where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avarc_cli.errors import CheckpointError, shorten_list

SUFFIX = ".safetensors.index.json"  # of the names that the libraries give
INDEX_SUFFIX = ".json"  # of every name that is taken for an index
AGAIN = "download or copy the index and all of its shards again"
_SHARD = re.compile(r".+-\d+-of-0*(?P<count>\d+)\.(safetensors|bin)")


@dataclass(frozen=True)
class Index:
    """The content of an index file."""

    path: Path  # of the index
    tensors: dict[str, list[str]]  # name of a shard, relative to the index -> names of its tensors
    metadata: dict[str, str]  # what else it states, as text

    @property
    def shards(self) -> list[Path]:
        """In order of their names."""
        return [self.path.parent / name for name in sorted(self.tensors)]


def find_index(path: Path) -> Path | None:
    """The index that a path stands for: the file itself, or the one in a folder. None if it stands for none.

    Raises: CheckpointError for a folder with several.
    """
    if not path.is_dir():
        return path if path.suffix == INDEX_SUFFIX and path.is_file() else None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        names = shorten_list([each.name for each in found])
        raise CheckpointError(f"{path} holds several checkpoints", f"it has {names}", "name the index of one")
    return found[0] if found else None


def files(path: Path) -> list[Path]:
    """The files that a checkpoint consists of: one, or an index and its shards. Raises: as find_index, read_index."""
    index = find_index(path)
    return [path] if index is None else [index, *read_index(index).shards]


def read_index(path: Path) -> Index:
    """Raises: CheckpointError for a file that is no index, or names tensors twice or shards outside of its folder."""
    try:
        values = json.loads(path.read_bytes(), object_pairs_hook=_unique)
        places = values["weight_map"]
        if not (isinstance(places, dict) and places and all(isinstance(name, str) for name in places.values())):
            raise ValueError("its weight_map does not give a file for each tensor")
        stated = values.get("metadata") or {}
        metadata = {key: str(value) for key, value in stated.items() if isinstance(value, (str, int, float))}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as problem:
        raise CheckpointError(f"{path} is not an index of shards", str(problem), AGAIN) from None
    except KeyError:
        raise CheckpointError(f"{path} is not an index of shards", "it has no weight_map", AGAIN) from None
    tensors: dict[str, list[str]] = {}
    for tensor, shard in places.items():
        tensors.setdefault(shard, []).append(tensor)
    for shard in tensors:
        if not _is_beside(shard):
            why = f"it names the shard {shard!r}; shards are in the folder of the index"
            raise CheckpointError(f"{path} points outside of its folder", why, "use an index that you trust")
        if not shard.endswith(".safetensors"):
            why = f"it names the shard {shard!r}"
            raise CheckpointError(f"{path} is an index of other files than safetensors", why, "convert the checkpoint")
    return Index(path, tensors, metadata)


def check_present(shards: list[Path]) -> None:
    """Raises: CheckpointError naming the first shard that is missing."""
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"the shard {shard} is missing", "the index beside it names it", AGAIN)


def check_shard(index: Index, name: str, found: Collection[str]) -> None:
    """Raises: CheckpointError unless a shard contains the tensors that the index expects in it, and no others."""
    shard, expected = index.path.parent / name, set(index.tensors[name])
    if missing := sorted(expected - set(found)):
        raise CheckpointError(
            f"{shard} lacks tensors that {index.path.name} expects in it", shorten_list(missing), AGAIN
        )
    if extra := sorted(set(found) - expected):
        elsewhere = {tensor for others in index.tensors.values() for tensor in others}
        twice = [tensor for tensor in extra if tensor in elsewhere]
        what = "belong to other shards" if twice else f"{index.path.name} does not name"
        raise CheckpointError(f"{shard} has tensors that {what}", shorten_list(twice or extra), AGAIN)


def check_not_a_shard(path: Path) -> None:
    """Raises: CheckpointError for one of several shards, by its name or because an index beside it names it."""
    match = _SHARD.fullmatch(path.name)
    count, index = (int(match["count"]) if match else 1), ""
    for beside in sorted(path.parent.glob(f"*{SUFFIX}")):
        try:
            shards = read_index(beside).tensors
        except CheckpointError:
            continue  # it is not asked for
        if path.name in shards:
            count, index = len(shards), str(beside)
    if count > 1:
        fix = f"name the index: {index}" if index else f"put all shards and their index (*{SUFFIX}) into one folder"
        raise CheckpointError(f"{path} is one of {count} shards", "it has a part of the tensors", fix)


def sha256(index: Index, sha256_of: Callable[[Path], str]) -> str:
    """The digest that identifies the checkpoint, from those of its files."""
    names = [index.path.name, *sorted(index.tensors)]
    lines = [f"{sha256_of(index.path.parent / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _is_beside(name: str) -> bool:
    """Whether a name leads to a file in or below the folder that it is relative to, on every system."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return bool(name) and not name.startswith("/") and not set(name) & set("\\\0") and ".." not in name.split("/")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these members. Raises: ValueError if two have one name."""
    if twice := [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]:
        raise ValueError(f"it names {shorten_list(twice)} twice")
    return dict(pairs)
