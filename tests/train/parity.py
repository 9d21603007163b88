"""Replay golden files of training with avarc's own losses, groups of parameters, schedules and updates.

Run as: python tests/train/parity.py FILE.npz...

For each file it prints the worst difference of every output from the reference's, and the tolerance that the file
allows there; "groups" are the parameters that decay where they should not, or the reverse. It exits 1 when a tolerance
is exceeded, 2 for a file that is no such golden file.

What a file holds is found out from its contents. A module below, `find(meta)`, gives the function that replays it: it
takes the file's meta and arrays, and returns arrays under the names of the outputs and, optionally, "groups", an array
with the names of the parameters that decay.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "kernels", ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from golden import fill

Arrays = dict[str, np.ndarray]
Replay = Callable[[Mapping[str, Any], Arrays], Arrays]
MODULES = ("train.parity_generators", "train.parity_tokenizers")
GROUPS = "groups"


@dataclass(frozen=True)
class Comparison:
    """One output beside the reference's."""

    name: str
    worst: float  # largest absolute difference; of groups the number of parameters in the wrong one
    allowed: float  # tolerance where the difference exceeds it most, or comes closest to it
    exceeded: bool


def find(meta: Mapping[str, Any]) -> Replay | None:
    """What replays a file; None for one of an unknown kind."""
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        replay: Replay | None = module.find(meta)
        if replay is not None:
            return replay
    return None


def tolerances(meta: Mapping[str, Any]) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Absolute and relative tolerance of each output; none of those that are for information.

    Files of single losses state one for all outputs, and in words that gradients may differ by 0.1 % more.
    """
    tolerance = meta["tolerance"]
    if "atol" in tolerance:
        return tolerance["atol"], tolerance.get("rtol", {})
    absolute = dict.fromkeys(meta["outputs"], tolerance["default"])
    return absolute, {name: 1e-3 for name in meta["outputs"] if name.startswith("grad")}


def compare(meta: Mapping[str, Any], theirs: Arrays, ours: Arrays) -> list[Comparison]:
    """Every output that the file gives a tolerance for, or that holds integers; a missing one exceeds it."""
    atol, rtol = tolerances(meta)
    stable = np.array([key not in meta.get("unstable_keys", {}) for key in meta.get("digest_keys", [])], dtype=bool)
    found = []
    for name in meta["outputs"]:
        stored = theirs[name]
        exact = stored.dtype.kind in "iub"
        if not exact and name not in atol and name not in rtol:
            continue  # for information
        if name not in ours or ours[name].shape != stored.shape:
            found.append(Comparison(name, float("nan"), 0.0, True))
            continue
        rows = stable if name.endswith("digest") else slice(None)
        got, wanted = (np.atleast_1d(x).astype(np.float64)[rows] for x in (ours[name], stored))
        allowed = np.zeros_like(wanted) if exact else atol.get(name, 0.0) + rtol.get(name, 0.0) * np.abs(wanted)
        difference = np.abs(got - wanted)
        at = np.unravel_index(int(np.nan_to_num(difference - allowed, nan=np.inf).argmax()), difference.shape)
        exceeded = not bool((difference <= allowed).all())
        found.append(Comparison(name, float(difference.max()), float(allowed[at]), exceeded))
    if meta.get(GROUPS) and GROUPS in ours:
        wrong = set(meta[GROUPS]["decayed"]).symmetric_difference(ours[GROUPS].tolist())
        found.append(Comparison(GROUPS, float(len(wrong)), 0.0, bool(wrong)))
    return found


def replay_file(path: Path) -> list[Comparison] | None:
    """The comparisons of a file; None for one of an unknown kind."""
    meta, arrays = fill.load_golden(path)
    replay = find(meta)
    return None if replay is None else compare(meta, arrays, replay(meta, arrays))


def main(files: Sequence[str]) -> int:
    """Replay these files; the exit status."""
    status = 0
    for file in files:
        try:
            comparisons = replay_file(Path(file))
        except (OSError, KeyError, ValueError) as error:
            print(f"{file}: cannot be replayed: {type(error).__name__}: {error}", file=sys.stderr)
            return 2
        if comparisons is None:
            print(f"{file}: no golden file of a training that is known", file=sys.stderr)
            return 2
        print(Path(file).name)
        for each in comparisons:
            verdict = "  EXCEEDED" if each.exceeded else ""
            print(f"  {each.name:<20} worst {each.worst:9.2e}  allowed {each.allowed:9.2e}{verdict}")
            status = status or int(each.exceeded)
    return status


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python tests/train/parity.py FILE.npz...")
    sys.exit(main(sys.argv[1:]))
