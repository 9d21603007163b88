"""Shards: n processes, each started with the same request, divide the chunks of the work among them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from avarc_cli.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """One of `of` equal shards; by default all of the work.

    Raises: UsageError unless 1 <= number <= of.
    """

    number: int = 1
    """Counted from 1."""

    of: int = 1
    """Number of shards."""

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError(f"there is no shard {self}", "shards are numbered from 1", "write --shard 1/8 to 8/8")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that "i/n" names. Raises: UsageError."""
        number, slash, of = text.partition("/")
        if not (slash and all(re.fullmatch("[0-9]{1,9}", each.strip()) for each in (number, of))):
            raise UsageError(f"cannot read --shard '{text}'", "it is a number and a count", "write --shard 1/8 to 8/8")
        return cls(int(number), int(of))

    def chunks(self, count: int) -> range:
        """This shard's of `count` chunks. Shards differ by one chunk at most; some may be empty."""
        return range(count * (self.number - 1) // self.of, count * self.number // self.of)


UNDIVIDED = Shard()
"""All of the work."""
