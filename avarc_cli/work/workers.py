"""Who computes the chunks: this process, processes on the devices of this machine, or the workers of a Ray cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from avarc_cli.errors import UsageError
from avarc_cli.words import are, counted
from avarc_cli.work.shards import Shard

ENGINES = ("local", "ray")
MAX_PROCESSES = 999


@dataclass(frozen=True)
class Workers:
    """Who computes the chunks; by default this process.

    Raises: UsageError for an unknown engine, and for devices together with Ray.
    """

    engine: str = "local"
    """local, or ray: the workers of a Ray cluster."""

    devices: tuple[str, ...] = ()
    """Of this machine, as torch names them: one process is started for each. Empty for none."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"no engine '{self.engine}'", f"there are {', '.join(ENGINES)}")
        if self.engine == "ray" and self.devices:
            raise UsageError("--devices does not go with --engine ray", "Ray chooses the devices", "leave out one")

    @property
    def elsewhere(self) -> str:
        """The option that has other processes compute; "" where this one does."""
        return "--engine ray" if self.engine == "ray" else "--devices" if self.devices else ""

    @property
    def count(self) -> int:
        """Processes of this machine that compute at once, as far as they are started here."""
        return max(1, len(self.devices))

    def first_device(self, default: str) -> str:
        """Where this process loads its own copy of a model, which it needs for what is recorded."""
        return self.devices[0] if self.devices else default


HERE = Workers()
"""This process."""


def check_division(shard: Shard, workers: Workers, *, out: str | Path | None, overwrite: bool) -> None:
    """Raises: UsageError for work that is shared without a place for it, or a part that would delete the others.

    Args:
        out: where the work is written; None for nowhere.
        overwrite: whether the work of another request there is to be replaced.
    """
    if shard.of > 1 and out is None:
        raise UsageError(f"nowhere to save shard {shard}", "the shards of a run meet in its folder", "add --out")
    if shard.of > 1 and overwrite:
        why = "each shard would delete the chunks of the others"
        raise UsageError(
            "--overwrite does not go with --shard", why, "name another --out, or delete what is there first"
        )
    if workers.elsewhere and out is None:
        raise UsageError(f"{workers.elsewhere} needs a run folder", "its workers write to it", "add --out")


def parse_devices(text: str | None) -> tuple[str, ...]:
    """The devices that "all", "0,1,2" or "cpu:2" names, as torch names them; none for None.

    A GPU that is named twice, like the CPU, gets two processes. torch is imported only where GPUs are named.

    Raises: UsageError for anything else, and for a GPU that is not there.
    """
    if text is None:
        return ()
    if match := re.fullmatch(r"cpu(?::([0-9]{1,9}))?", text):
        count = int(match[1] or 1)
        if not 1 <= count <= MAX_PROCESSES:
            raise _unreadable(text, f"there can be 1 to {MAX_PROCESSES} processes")
        return ("cpu",) * count
    names = [name.strip().removeprefix("cuda:") for name in text.split(",")]
    if text != "all" and not all(re.fullmatch("[0-9]{1,3}", name) for name in names):
        raise _unreadable(text, "it is all, a list of GPUs, or cpu and a number of processes")
    there = _count_gpus(text)
    numbers = range(there) if text == "all" else [int(name) for name in names]
    if missing := [number for number in numbers if number >= there]:
        why = f"there {are(there)} {counted(there, 'CUDA device')}, numbered from 0"
        raise UsageError(f"there is no GPU {missing[0]} for --devices {text}", why, "avarc doctor lists devices")
    return tuple(f"cuda:{number}" for number in numbers)


def _unreadable(text: str, why: str) -> UsageError:
    return UsageError(f"cannot read --devices '{text[:40]}'", why, "write all, 0,1,2 or cpu:2")


def _count_gpus(text: str) -> int:
    """Number of GPUs. Raises: UsageError when there are none."""
    import torch

    if not torch.cuda.is_available():
        fix = "write --devices cpu:2 for two processes on the CPU; avarc doctor tells more"
        raise UsageError(f"there is no GPU for --devices {text}", "torch finds no CUDA device", fix)
    return torch.cuda.device_count()
