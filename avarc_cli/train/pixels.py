"""The pixels of images: decoded once into memory, or whenever they are asked for.

Shapes: N images, B of them, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from avarc_cli import environment, processes
from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import UnreadableImage
from avarc_cli.layers import collectives
from avarc_cli.layers.rows import Rows
from avarc_cli.train.shared import allocate

LEAST_THREADS, MOST_THREADS = 4, 16
"""That decode images: reading waits for disks even where there are few cores; beyond 16, the interpreter's lock leaves
little to gain."""

StandIns = Callable[[int, int], Iterable[int]]
"""(row, place) -> the rows that may stand in for an image there that cannot be read; then an error."""


class Pixels:
    """Images by row, (S, S, 3) uint8."""

    def __init__(self, images: ImageSet, preprocess_at: Callable[[int], Preprocess], *, in_memory: bool) -> None:
        """All processes of a training make one.

        Args:
            preprocess_at: how the image for a place is decoded; that is the same for all places if `in_memory`.
            in_memory: decode all now, once for all processes on this machine.
        """
        self.images, self._preprocess_at = images, preprocess_at
        self.unreadable: dict[int, str] = {}
        """Why, by row: of images in memory, and others that this process has tried to read."""
        cores = environment.cores() // processes.local_count()
        self._threads = ThreadPoolExecutor(max(LEAST_THREADS, min(MOST_THREADS, cores)))  # Pillow releases the GIL
        self.memory = self._decode_all() if in_memory else None
        """(N, S, S, 3), 0 where an image cannot be read; None unless they are in memory."""

    def load(self, rows: np.ndarray, places: np.ndarray, stand_ins: StandIns) -> np.ndarray:
        """The images of these rows, which are for these places, or what stands in for them, (B, S, S, 3).

        Raises: what `stand_ins` ends with.
        """

        def load(row: int, place: int) -> np.ndarray:
            if (found := self._try(row, place)) is not None:
                return found
            return next(other for each in stand_ins(row, place) if (other := self._try(each, place)) is not None)

        each = map if self.memory is not None else self._threads.map
        return np.stack(list(each(load, rows.tolist(), places.tolist())))

    def is_readable(self, row: int) -> bool:
        """Whether an image can be read."""
        return self._try(row, 0) is not None

    def find_unreadable(self) -> None:
        """Try all images that are not in memory. All processes of a training call it, and share the work."""
        if self.memory is None:
            own = Rows.whole(len(self.images)).split(collectives.count())[collectives.rank()]
            for _ in self._threads.map(self.is_readable, range(own.start, own.stop)):
                pass
            self._exchange()

    def _try(self, row: int, place: int) -> np.ndarray | None:
        """One image for a place; None where it cannot be read."""
        if row in self.unreadable:
            return None
        return self._decode(row, place) if self.memory is None else self.memory[row]

    def _decode(self, row: int, place: int) -> np.ndarray | None:
        try:
            return self.images.load(row, self._preprocess_at(place))
        except UnreadableImage as error:
            self.unreadable[row] = error.why
            return None

    def _decode_all(self) -> np.ndarray:
        side = self._preprocess_at(0).size
        memory, part = allocate((len(self.images), side, side, 3))

        def decode(row: int) -> None:
            if (pixels := self._decode(row, 0)) is not None:
                memory[row] = pixels

        for _ in self._threads.map(decode, range(part.start, part.stop)):
            pass
        self._exchange()  # by then all have filled their part
        return memory

    def _exchange(self) -> None:
        for found in collectives.from_all(self.unreadable):
            self.unreadable |= found
