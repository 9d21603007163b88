"""By what a later run recognizes that images changed (`tokens.changes`): stamps of files, digests of what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avarc_cli.data.image_source import DIGEST_SIZE

NOT_RECORDED = -2
"""In stamps of images that an earlier version encoded."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Of M images, unreadable ones included."""

    stamps: np.ndarray
    """(M, 2) int64, as `ImageSource.stamps`; NOT_RECORDED where there are none."""
    digests: np.ndarray
    """(M, DIGEST_SIZE) uint8, as `image_source.digest_of`."""

    @classmethod
    def not_recorded(cls, count: int) -> Fingerprints:
        """Of images that an earlier version encoded."""
        return cls(np.full((count, 2), NOT_RECORDED, dtype=np.int64), np.zeros((count, DIGEST_SIZE), dtype=np.uint8))

    @classmethod
    def join(cls, parts: Sequence[Fingerprints]) -> Fingerprints:
        """Of all images of the parts, in order."""
        parts = [cls.not_recorded(0), *parts]
        return cls(np.concatenate([part.stamps for part in parts]), np.concatenate([part.digests for part in parts]))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], count: int) -> Fingerprints:
        """What `to_arrays` gave; NOT_RECORDED where there are no such arrays. Raises: ValueError for other arrays."""
        if "stamps" not in arrays:
            return cls.not_recorded(count)
        found = cls(arrays["stamps"], arrays["digests"])
        shapes = (found.stamps.shape, found.digests.shape)
        types = (found.stamps.dtype.name, found.digests.dtype.name)
        if shapes != ((count, 2), (count, DIGEST_SIZE)) or types != ("int64", "uint8"):
            raise ValueError(f"its stamps and digests are {shapes}, for {count} images")
        return found

    def to_arrays(self) -> dict[str, np.ndarray]:
        """As chunk files and caches have them."""
        return {"stamps": self.stamps, "digests": self.digests}

    @property
    def recorded(self) -> np.ndarray:
        """Whether there is a fingerprint, (M,) bool."""
        known: np.ndarray = self.stamps[:, 0] != NOT_RECORDED
        return known

    def take(self, where: np.ndarray | slice) -> Fingerprints:
        """Of the images at these places."""
        return Fingerprints(self.stamps[where], self.digests[where])

    def stamped(self, where: np.ndarray, stamps_M2: np.ndarray) -> Fingerprints:
        """The same digests with other stamps at these places, (M,) bool."""
        return Fingerprints(np.where(where[:, None], stamps_M2, self.stamps), self.digests)
