"""Finds the weights in what a training program saved, and chooses between several sets of them.

A set is a state dict: bare, under one or more of WRAPPERS and AVERAGES, or one of several whose tensors begin with such
a name ("model.x" and "model_ema.x", as in a LightningModule). It is called by the keys that lead to it, with dots:
"ema", "state_dict.model_ema".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from avarc_cli.errors import CheckpointError, UsageError, shorten_list

WRAPPERS = (
    "trainer",
    "var_wo_ddp",
    "state_dict",
    "model",
    "module",  # DeepSpeed's
    "online_model",  # beside "ema_model", by ema-pytorch
    "current_model_state",  # beside "state_dict", in which Lightning's WeightAveraging then has the average
)
AVERAGES = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "shadow")  # moving averages of weights
OPTION = "--weights"
AVERAGE = "ema"  # names the moving average, whatever the file calls it
COUNTERS = frozenset({"initted", "step", "decay", "num_updates"})  # single numbers beside an average
READ = "weights read"  # in the metadata: which of several sets was read
CHOSEN = "weights chosen"  # in the metadata: the name of a set that would not have been read without being named


@dataclass(frozen=True)
class WeightSet:
    """A state dict in a file."""

    keys: tuple[str, ...]  # that lead to it
    entries: Mapping[str, object]  # its tensors by name, perhaps with other values beside them
    metadata: Mapping[str, str]  # numbers and text beside it and around it

    @property
    def name(self) -> str:
        return ".".join(self.keys)


def choose(loaded: Mapping[str, object], wanted: str | None, path: Path) -> tuple[Mapping[str, object], dict[str, str]]:
    """The entries of one set, without wrappers, and its metadata, in which READ and CHOSEN say which it is.

    Args:
        loaded: what the file contains.
        wanted: the name of a set, or a key that leads to it; "ema" is the moving average, whatever its key. None for
            the first in the order of WRAPPERS and AVERAGES: the trained weights, if the file has them.
        path: of the file, for messages.
    Raises: CheckpointError if there is no state dict; UsageError if none has the wanted name.
    """
    known = list(_sets(loaded, (), {}, ()))
    if wanted is not None:
        chosen = _named(wanted, known) or next(_sets_at(wanted, loaded, (), {}, ()), None)
        if chosen is None:
            raise _absent(wanted, known, path)
    elif known:
        chosen = known[0]
    else:
        raise _nothing_in(loaded, path)
    others = [each for each in known if each.keys != chosen.keys[: len(each.keys)]]  # the same, or around it
    metadata = dict(chosen.metadata)
    is_default = bool(known) and chosen.keys == known[0].keys
    if others or not is_default:
        metadata[READ] = f"'{chosen.name}'" + (f"; the file also has {_quoted(others)}" if others else "")
    if not is_default:
        metadata[CHOSEN] = chosen.name
    return _with_dots(chosen.entries, others), metadata


def _sets(
    level: Mapping[str, object], keys: tuple[str, ...], metadata: Mapping[str, str], around: tuple[int, ...]
) -> Iterator[WeightSet]:
    """The sets at and below a level of a file, the preferred one first. around: ids of the levels that contain it."""
    if id(level) in around or not all(isinstance(key, str) for key in level):
        return
    metadata = {**metadata, **_scalars(level)}
    is_average = any(key in AVERAGES for key in keys)
    order = AVERAGES + WRAPPERS if is_average else WRAPPERS + AVERAGES
    parts = {key: part for key in order if isinstance(part := level.get(key), Mapping)} or _prefixed(level, order)
    if not parts and any(isinstance(value, torch.Tensor) for value in level.values()):
        yield WeightSet(keys, _without_counters(level) if is_average else level, metadata)
    for key, part in parts.items():
        yield from _sets(part, (*keys, key), metadata, (*around, id(level)))


def _sets_at(
    wanted: str,
    level: Mapping[str, object],
    keys: tuple[str, ...],
    metadata: Mapping[str, str],
    around: tuple[int, ...],
) -> Iterator[WeightSet]:
    """The sets under a key that is not among WRAPPERS and AVERAGES, or whose tensors begin with such a name."""
    if id(level) in around or not all(isinstance(key, str) for key in level):
        return
    metadata, around = {**metadata, **_scalars(level)}, (*around, id(level))
    nested = {key: value for key, value in level.items() if isinstance(value, Mapping)}
    part = nested.get(wanted) or _under(level, wanted)
    if part:
        yield from _sets(part, (*keys, wanted), metadata, around)
    for key, value in nested.items():
        yield from _sets_at(wanted, value, (*keys, key), metadata, around)


def _prefixed(level: Mapping[str, object], order: Sequence[str]) -> dict[str, dict[str, object]]:
    """The parts of a state dict in which every name begins with one of these, one an average's; else nothing."""
    scalars = _scalars(level)
    names = [key for key in _without_counters(level) if key not in scalars]
    found = {key.partition(".")[0] for key in names}
    if not all("." in key for key in names) or not found <= set(order) or found.isdisjoint(AVERAGES):
        return {}
    return {prefix: _under(level, prefix) for prefix in order if prefix in found}


def _under(level: Mapping[str, object], prefix: str) -> dict[str, object]:
    """The entries whose names begin with a prefix and a dot, without it."""
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in level.items() if key.startswith(start)}


def _scalars(level: Mapping[str, object]) -> dict[str, str]:
    """Numbers and text, which become metadata."""
    return {k: str(v) for k, v in level.items() if isinstance(v, (bool, int, float, str)) and "." not in k}


def _without_counters(level: Mapping[str, object]) -> dict[str, object]:
    counters = {key for key in COUNTERS if isinstance(value := level.get(key), torch.Tensor) and value.numel() == 1}
    return {key: value for key, value in level.items() if key not in counters}


def _named(wanted: str, sets: Sequence[WeightSet]) -> WeightSet | None:
    """The set of this name, or the first one to which this key leads."""
    exact = [each for each in sets if each.name == wanted]
    below = [each for each in sets if wanted in each.keys]
    averages = [each for each in sets if wanted == AVERAGE and not set(AVERAGES).isdisjoint(each.keys)]
    return next(iter(exact + below + averages), None)


def _with_dots(entries: Mapping[str, object], others: Sequence[WeightSet]) -> Mapping[str, object]:
    """The entries; if their names lost their dots (an average in a LightningModule), they get them back."""
    if any("." in key for key in entries):
        return entries
    for other in others:
        names = {name.replace(".", ""): name for name in other.entries}
        if len(names) == len(other.entries) and names.keys() >= entries.keys():
            return {names[key]: value for key, value in entries.items()}
    return entries


def _quoted(sets: Sequence[WeightSet]) -> str:
    return shorten_list([f"'{each.name}'" for each in sets])


def _absent(wanted: str, known: Sequence[WeightSet], path: Path) -> UsageError:
    what = f"{path} has no weights '{wanted}'"
    if known and known[0].keys:
        return UsageError(what, f"it has {_quoted(known)}", f"without {OPTION}, '{known[0].name}' is read")
    has = "one set of weights, which has no name" if known else "none under a name that avarc knows"
    return UsageError(what, f"it has {has}", f"leave out {OPTION}")


def _nothing_in(loaded: Mapping[str, object], path: Path) -> CheckpointError:
    keys = [f"{key} ({_inside(value)})" if isinstance(value, Mapping) else key for key, value in loaded.items()]
    why = f"its keys are {shorten_list(sorted(keys))}; it must have tensors, bare or under "
    why += ", ".join(WRAPPERS + AVERAGES)
    fix = f"name another file, or the key that leads to the weights: {OPTION} KEY"
    return CheckpointError(f"{path} contains no state dict", why, fix)


def _inside(level: Mapping[object, object]) -> str:
    return shorten_list(sorted(map(str, level)), 3)
