"""Whether a token cache still holds what was written into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from avarc_cli.errors import CacheError
from avarc_cli.tokens.cache import DAMAGED, TokenCache
from avarc_cli.tokens.write import CHECKED_ROWS, Checksums

REMAKE = "make it again: avarc encode ... --overwrite"


@dataclass(frozen=True)
class Verified:
    """What was checked.

    runs: runs of `CHECKED_ROWS` images that were compared with their checksums, of all datasets; 0 for a cache that
    an earlier version made without; damaged: (dataset, first row, last row) of the runs that differ.
    """

    runs: int
    damaged: tuple[tuple[str, int, int], ...]

    def check(self, path: Path) -> None:
        """Raises: CacheError naming the first damaged run, if there is one."""
        if self.damaged:
            name, first, last = self.damaged[0]
            more = f", and {len(self.damaged) - 1} more of {self.runs} runs" if len(self.damaged) > 1 else ""
            why = f"/{name} of rows {first} to {last} differs from its checksum{more}"
            raise CacheError(f"'{path}' is damaged", why, REMAKE)


def verify(cache: TokenCache) -> Verified:
    """Read every byte of a cache and compare the checksums.

    Raises: CacheError when it cannot be read.
    """
    runs, damaged = 0, []
    try:
        with h5py.File(cache.path, "r") as file:
            for name in sorted(file):
                written, found = file[name].attrs.get("crc32"), _checksums(file[name])
                if written is None:  # the first caches have no checksums
                    continue
                if written.shape != found.shape:
                    raise ValueError(f"/{name} has {written.size} checksums for {len(cache)} images")
                runs += len(found)
                for run in np.flatnonzero(written != found).tolist():
                    last = min((run + 1) * CHECKED_ROWS, len(cache)) - 1
                    damaged.append((name, run * CHECKED_ROWS, last))
    except DAMAGED as error:
        raise CacheError(f"'{cache.path}' is damaged", str(error), REMAKE) from error
    return Verified(runs, tuple(damaged))


def _checksums(dataset: h5py.Dataset) -> np.ndarray:
    checksums = Checksums()
    for start in range(0, len(dataset), 8 * CHECKED_ROWS):
        block = dataset[start : start + 8 * CHECKED_ROWS]
        checksums.add(block)
    return checksums.values()
