"""Which rows of a batch a process computes in one pass.

Whatever is random in a step is drawn for the whole batch, and each part takes its rows: so a step means the same for
any number of processes and passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows start .. stop - 1 of a batch of `of` rows."""

    start: int
    stop: int
    of: int

    @classmethod
    def whole(cls, count: int) -> Rows:
        """All rows of a batch."""
        return cls(0, count, count)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def share(self) -> float:
        """Their fraction of the batch."""
        return len(self) / self.of

    def split(self, parts: int) -> list[Rows]:
        """As equal parts as possible, in order; some are empty where there are more parts than rows."""
        ends = [self.start + len(self) * part // parts for part in range(parts + 1)]
        return [Rows(start, stop, self.of) for start, stop in pairwise(ends)]

    def take(self, whole: Tensor) -> Tensor:
        """These rows of a tensor of the whole batch."""
        return whole[self.start : self.stop]
