"""The images of a training one by one, in a checkpoint, to say which have changed when the training goes on."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avarc_cli.errors import shorten_list

SHOWN = 3  # names of each kind of change


@dataclass(frozen=True, eq=False)
class Listing:
    """N images."""

    names: Sequence[str]
    """(N,)"""
    labels: np.ndarray
    """(N,) int32, indices of class_names; -1 for none."""
    class_names: Sequence[str]
    digests: np.ndarray | None = None
    """(N,) uint32, of their pixels, where these are known."""

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint; a name takes a few bytes."""
        digests = np.zeros(0, np.uint32) if self.digests is None else self.digests
        return {
            "names": _packed(self.names),
            "labels": torch.from_numpy(self.labels.astype(np.int32)),
            "class_names": _packed(self.class_names),
            "digests": torch.from_numpy(digests.view(np.int32)),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Listing:
        """What `state_dict` gave. Raises: what the wrong types raise."""
        digests = state["digests"].numpy().view(np.uint32)
        names, labels = _unpacked(state["names"]), state["labels"].numpy()
        return cls(names, labels, _unpacked(state["class_names"]), digests if len(digests) else None)

    def with_others(self, others: Listing) -> Listing:
        """These and other images, such as those that are held out: a new image may change which they are."""
        theirs = np.where(others.labels < 0, others.labels, others.labels + len(self.class_names)).astype(np.int32)
        known = self.digests is not None and others.digests is not None
        return Listing(
            (*self.names, *others.names),
            np.concatenate([self.labels, theirs]),
            (*self.class_names, *others.class_names),
            np.concatenate([self.digests, others.digests]) if known else None,
        )

    def changes_since(self, before: Listing) -> str:
        """What is different from before: "1 added (c.png), 2 removed (a.png, b.png)"; "" where no name tells."""
        comparable = self.digests is not None and before.digests is not None
        was, now = before._by_name(), self._by_name()
        both = [name for name in now if name in was]
        changes = {
            "added": [name for name in now if name not in was],
            "removed": [name for name in was if name not in now],
            "in another class": [name for name in both if was[name][0] != now[name][0]],
            "with other pixels": [name for name in both if comparable and was[name][1] != now[name][1]],
        }
        return ", ".join(f"{len(n):,} {what} ({shorten_list(n, SHOWN)})" for what, n in changes.items() if n)

    def _by_name(self) -> dict[str, tuple[str, int]]:
        """Class and digest."""
        classes = [*self.class_names, ""]  # the last for -1
        digests = np.zeros(len(self.names), np.uint32) if self.digests is None else self.digests
        rows = zip(self.names, self.labels.tolist(), digests.tolist(), strict=True)
        return {name: (classes[label], digest) for name, label, digest in rows}


def _packed(texts: Sequence[str]) -> Tensor:
    data = zlib.compress("\0".join(texts).encode("utf-8", "surrogatepass"))
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _unpacked(packed: Tensor) -> list[str]:
    return zlib.decompress(packed.numpy().tobytes()).decode("utf-8", "surrogatepass").split("\0")
