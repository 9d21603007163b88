"""Whether a token cache still holds what was written into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from avarc_cli.errors import CacheError
from avarc_cli.tokens.cache import CORRUPT, TokenCache, check_stored, read
from avarc_cli.tokens.write import ROWS_PER_CHECKSUM, Checksums
from avarc_cli.words import counted

REMAKE = "make it again: avarc encode ... --overwrite"


@dataclass(frozen=True)
class Verified:
    """The result of comparing a cache with its checksums."""

    runs: int
    """Runs of ROWS_PER_CHECKSUM images that were compared, of all datasets; 0 for a cache that has no checksums."""

    corrupt: tuple[tuple[str, int, int], ...]
    """(dataset, first row, last row) of the runs that differ."""

    def check(self, path: Path) -> None:
        """Raises: CacheError naming the first corrupt run, if there is one."""
        if self.corrupt:
            name, first, last = self.corrupt[0]
            more = f", and {len(self.corrupt) - 1} more of {self.runs} runs" if len(self.corrupt) > 1 else ""
            why = f"/{name} of rows {first} to {last} differs from its checksum{more}"
            raise CacheError(f"'{path}' is corrupt", why, REMAKE)


def read_verified(path: Path, *, allow_partial: bool = False) -> TokenCache:
    """Open a token cache, after reading every byte of it. Raises: as `cache.read`; CacheError when it is corrupt."""
    cache = read(path, allow_partial=allow_partial)
    verify(cache).check(path)
    return cache


def verify(cache: TokenCache) -> Verified:
    """Read every byte of a cache's file, and compare the checksums.

    Raises: CacheError when it cannot be read.
    """
    runs, corrupt = 0, []
    try:
        with h5py.File(cache.path, "r") as file:
            check_stored(file)
            for name in sorted(file):
                dataset = file[name]
                written, found = dataset.attrs.get("crc32"), _checksums(dataset)
                if written is None:  # the first caches have no checksums
                    continue
                if written.shape != found.shape:
                    raise ValueError(
                        f"/{name} has {counted(written.size, 'checksum')} for {counted(len(dataset), 'image')}"
                    )
                runs += len(found)
                for run in np.flatnonzero(written != found).tolist():
                    last = min((run + 1) * ROWS_PER_CHECKSUM, len(dataset)) - 1
                    corrupt.append((name, run * ROWS_PER_CHECKSUM, last))
    except CORRUPT as error:
        raise CacheError(f"'{cache.path}' is corrupt", str(error), REMAKE) from error
    return Verified(runs, tuple(corrupt))


def _checksums(dataset: h5py.Dataset) -> np.ndarray:
    checksums, step = Checksums(), 8 * ROWS_PER_CHECKSUM
    for start in range(0, len(dataset), step):
        checksums.add(dataset[start : start + step])
    return checksums.values()
