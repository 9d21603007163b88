"""The result of encoding one chunk of images, and its form in a chunk file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from avarc_cli.tokens.fingerprints import Fingerprints
from avarc_cli.tokens.form import TokenForm
from avarc_cli.work.chunks import from_json_array, to_json_array


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read."""

    index: int
    """In the full set."""
    name: str
    """As the cache records it."""
    reason: str
    """Why, in a few words."""


@dataclass(frozen=True, eq=False)
class EncodedChunk:
    """The tokens of one chunk of images. n: its readable images, S samples, L tokens, Z channels."""

    rows: np.ndarray
    """(n,) int64: indices in the full set of the readable images, increasing."""
    tokens: np.ndarray
    """(n, S, L) uint16, or (n, S, L, Z) float32 of continuous ones."""
    latents: np.ndarray | None
    """Those before quantization, (n, Z, h, w) float16; None when they are not kept."""
    unreadable: tuple[Unreadable, ...]
    """The other images."""
    fingerprints: Fingerprints
    """Of all images of the chunk, in order."""


@dataclass(frozen=True)
class EncodedFormat:
    """The chunk files of a request (`work.chunks.ChunkFormat`)."""

    form: TokenForm
    """Of the tokens."""
    latents: bool
    """Whether latents before quantization are kept."""

    def to_arrays(self, result: EncodedChunk) -> dict[str, np.ndarray]:
        """`rows`, `tokens`, `latents` if kept, `unreadable` (JSON, [[index, name, reason], ...]), fingerprints.

        Continuous tokens are called `latents`, and there are no others.
        """
        arrays = {"rows": result.rows, self.form.dataset: result.tokens}
        if result.latents is not None:
            arrays["latents"] = result.latents
        arrays["unreadable"] = to_json_array([[bad.index, bad.name, bad.reason] for bad in result.unreadable])
        return arrays | result.fingerprints.to_arrays()

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> EncodedChunk:
        """The chunk of these images. Raises: one of work.chunks.CORRUPT unless it is one of this request."""
        chunk = EncodedChunk(
            rows=arrays["rows"],
            tokens=arrays[self.form.dataset],
            latents=arrays["latents"] if self.latents else None,
            unreadable=tuple(Unreadable(*entry) for entry in from_json_array(arrays["unreadable"])),
            fingerprints=Fingerprints.from_arrays(arrays, len(items)),
        )
        images = sorted([*chunk.rows.tolist(), *(bad.index for bad in chunk.unreadable)])
        shape = (len(chunk.rows), *self.form.shape)
        if images != list(items) or chunk.tokens.shape != shape or chunk.tokens.dtype != self.form.dtype:
            raise ValueError("it is of another request")
        if chunk.latents is not None and len(chunk.latents) != len(chunk.rows):
            raise ValueError(f"it has latents of {len(chunk.latents)} of {len(chunk.rows)} images")
        return chunk
