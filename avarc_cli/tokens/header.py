"""What a token cache records about how it was made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from avarc_cli import strict_json
from avarc_cli.data.preprocess import current_description
from avarc_cli.data.views import FLIP, TEN_CROP
from avarc_cli.layout import TokenLayout
from avarc_cli.tokens.form import TokenForm

FORMAT = 2
READABLE = (1, FORMAT)
"""Format 1 has `patch_nums`, the sides of square grids, in place of `layout`."""

SMOOTHING, POSTERIOR, IMPORTED = "smoothing", "posterior", "imported"
VIEWS = (SMOOTHING, POSTERIOR, FLIP, TEN_CROP, IMPORTED)
"""What the second axis of a cache holds (`CacheHeader.views`)."""

UNKNOWN_MAKING = "unknown"
"""In place of preprocessing and precision, of tokens that were imported from files that do not record them."""

# Fields that tell where values came from, or how somebody called what has a digest beside it.
_NOTES = frozenset({"inferred", "source", "tokenizer", "tokenizer_file"})
_OPTIONAL = frozenset({"inferred", "views", "channels"})


@dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """How a cache was made; in its file, JSON with the names of these fields and `format`."""

    tokenizer: str
    """Its name."""
    tokenizer_file: str
    """Name of its file, without folders."""
    tokenizer_sha256: str
    """Digest of that file."""
    vocab_size: int
    """Tokens are below it; 0 where they are continuous."""
    layout: TokenLayout
    """Where the tokens of an image lie; in the file as `TokenLayout.to_dict` has it."""
    image_size: int
    """Pixels a side of what the tokenizer reads."""
    preprocess: str
    """How images became that, as `str(data.preprocess.Preprocess)` says it; or UNKNOWN_MAKING."""
    precision: str
    """Of the encoder: "fp32" or "bf16"; or UNKNOWN_MAKING."""
    samples: int
    """S: the image itself, and S - 1 other views of it."""
    sigma: float
    """Standard deviation of the smoothing samples' noise, which is added to the latents; 0 without such samples, and of
    continuous tokens, whose noise has the standard deviation that the tokenizer gives."""
    seed: int
    """Of that noise; 0 without it."""
    latents: bool
    """Whether the cache has those before quantization; they are of view 0. False where tokens are continuous."""
    class_names: tuple[str, ...]
    """What labels are indices of."""
    dataset: str
    """The known dataset that the images are of ("imagenet-r"); "" for any other."""
    source: str
    """What was encoded, as the user wrote it."""
    images: int
    """Number of images, unreadable ones included."""
    images_sha256: str
    """Digest of their names and labels."""
    inferred: Mapping[str, str] = field(default_factory=dict)
    """Values that the tokenizer's checkpoint does not state: name -> how they were inferred."""
    views: str = SMOOTHING
    """What the other views are: "smoothing" samples of the latents, draws from the "posterior" of continuous tokens,
    whose view 0 is the mean, "flip", the mirror image, "ten-crop", in which view 0 is the center, or "imported" and not
    known. In the file only where it is not "smoothing"."""
    channels: int = 0
    """Z of continuous tokens; 0 for codes. In the file only where it is not 0."""

    @property
    def form(self) -> TokenForm:
        """How the tokens are stored."""
        return TokenForm(self.samples, self.layout.num_tokens, self.channels)

    @property
    def has_more_samples(self) -> bool:
        """Whether encoding again can give more samples of an image."""
        return self.views in (SMOOTHING, POSTERIOR)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, in the current format."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        changed = {"layout": self.layout.to_dict(), "class_names": list(self.class_names)}
        if self.views == SMOOTHING:  # as it was before there were others: the same request is the same bytes
            del values["views"]
        if not self.channels:
            del values["channels"]
        return values | changed | {"inferred": dict(self.inferred), "format": FORMAT}

    def to_json(self) -> str:
        """One line of ASCII with sorted keys: the same header is the same bytes, and odd file names are escaped."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CacheHeader:
        """The header that `to_dict` of this version or of an earlier one gave.

        Raises: KeyError, TypeError, ValueError for anything else.
        """
        current = upgrade(values)
        if current["format"] != FORMAT:
            raise ValueError(f"format {current['format']!r} is unknown")
        kept = {each.name: current[each.name] for each in dataclasses.fields(cls) if each.name not in _OPTIONAL}
        header = cls(
            **kept
            | {"layout": TokenLayout.from_dict(kept["layout"]), "class_names": tuple(kept["class_names"])}
            | {"inferred": {**current.get("inferred", {})}, "views": current.get("views", SMOOTHING)}
            | {"channels": current.get("channels", 0)}
        )
        header._check()
        return header

    def _check(self) -> None:
        """Raises: ValueError for values that no header has."""
        numbers = (self.image_size, self.samples, self.vocab_size or self.channels, self.images)
        if self.vocab_size and self.channels:
            raise ValueError("its header has a vocabulary and channels")
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError("a size in its header is not a positive whole number")
        texts = [getattr(self, each.name) for each in dataclasses.fields(self) if each.type == "str"]
        notes = (*self.inferred, *self.inferred.values())
        if not all(isinstance(text, str) for text in (*texts, *self.class_names, *notes)):
            raise ValueError("a name in its header is not a string")
        if self.views not in VIEWS:
            raise ValueError(f"views {self.views!r} are unknown")


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a header of an earlier version as this one writes them; any others unchanged.

    Raises: KeyError, TypeError, ValueError when `patch_nums` is missing or no list of positive whole numbers.
    """
    if isinstance(values.get("preprocess"), str):
        values = {**values, "preprocess": current_description(values["preprocess"])}
    if values["format"] != 1:
        return dict(values)
    kept = {name: value for name, value in values.items() if name != "patch_nums"}
    layout = TokenLayout.multi_scale(values["patch_nums"]).to_dict()
    added_later = {"dataset": "", "precision": "fp32"}  # the first caches were made without them
    return added_later | kept | {"layout": layout, "format": FORMAT}


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """What decides about a cache's content, of a header or a request as JSON: equal identities, equal content."""
    with suppress(KeyError, TypeError, ValueError):  # of an unknown format, which is not the same as any other
        values = upgrade(values)
    return {"views": SMOOTHING, "channels": 0} | {name: value for name, value in values.items() if name not in _NOTES}


@dataclass(frozen=True, kw_only=True)
class Partial:
    """Which part of a cache a file has, when not all chunks are finished."""

    chunk_size: int
    """Images of each chunk."""
    batch_size: int
    """Images the tokenizer reads at once."""
    chunks: tuple[int, ...]
    """Numbers of the chunks that the file has, increasing."""
    unreadable: tuple[int, ...]
    """Indices in the full set of the images of these chunks that could not be read."""

    def to_json(self) -> str:
        """One line with sorted keys."""
        values = {"unit": self.chunk_size, "batch_size": self.batch_size, "units": self.chunks}
        return json.dumps(values | {"unreadable": self.unreadable}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Partial:
        """What `to_json` gave. Raises: KeyError, TypeError, ValueError for anything else."""
        values = strict_json.parse(text)
        chunks, unreadable = (tuple(int(number) for number in values[name]) for name in ("units", "unreadable"))
        partial = cls(
            chunk_size=int(values["unit"]), batch_size=int(values["batch_size"]), chunks=chunks, unreadable=unreadable
        )
        if partial.chunk_size < 1 or not chunks or sorted(set(chunks)) != list(chunks) or chunks[0] < 0:
            raise ValueError("its chunks are not increasing numbers")
        return partial

    def count(self, images: int) -> int:
        """Number of chunks of the complete cache, of that many images."""
        return -(-images // self.chunk_size)
