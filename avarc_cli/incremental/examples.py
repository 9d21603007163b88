"""A class's images as tokens: each image, and augmented versions of it to train on.

Shapes: N images, S samples (0 is the image, the others augmented versions), L tokens; H side of the tokenizer's input.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avarc_cli import strict_json
from avarc_cli.data.labels import UNKNOWN, normalize
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import AvarcError, UnreadableImage, none_readable
from avarc_cli.incremental.source import Source, class_names
from avarc_cli.layers.rows import Rows
from avarc_cli.storage import write_bytes
from avarc_cli.tokenizer import Tokenizer
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.train.images import Augment
from avarc_cli.zip_check import INVALID, open_npz

BATCH_SIZE = 32  # images that the tokenizer encodes at once
# How many augmented versions of each image are made, unless the user says. Chosen on the digits, by hand.
DEFAULT_VARIANTS = 16
MIN_EXAMPLES = 512  # of a class in all; fewer images get more versions each
MAX_VARIANTS = 256
OF_PHOTOGRAPHS = ("resize-crop", "adm")  # modes of preprocessing


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled tokens in memory."""

    tokens: Tensor  # (N, S, L) int64
    labels: np.ndarray  # (N,) int64, index into class_names
    class_names: tuple[str, ...]  # what the labels index into
    unreadable: tuple[tuple[str, str], ...] = ()  # (name, reason) of images that were left out

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def variants(self) -> int:
        """Augmented versions of each image."""
        return self.tokens.shape[1] - 1

    def take(self, rows: np.ndarray | Sequence[int]) -> Examples:
        """These images only."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Examples(self.tokens[torch.from_numpy(chosen)], self.labels[chosen], self.class_names)

    def of(self, class_name: str) -> Examples:
        """The images of one class."""
        return self.take(np.flatnonzero(self.labels == self.class_names.index(class_name)))

    def relabel(self, class_names: Sequence[str]) -> Examples:
        """The images of these classes only, with labels that index into this list."""
        position = {normalize(name): i for i, name in enumerate(class_names)}
        new = np.array([position.get(normalize(name), UNKNOWN) for name in self.class_names] + [UNKNOWN])[self.labels]
        kept = np.flatnonzero(new != UNKNOWN)
        return Examples(self.tokens[torch.from_numpy(kept)], new[kept], tuple(class_names), self.unreadable)

    def save(self, path: Path) -> None:
        """Write everything to an npz file, atomically. Raises OSError."""
        buffer = io.BytesIO()
        facts = json.dumps({"class_names": self.class_names, "unreadable": self.unreadable})
        tokens = self.tokens.numpy().astype(np.uint16)  # as in a cache
        np.savez(buffer, tokens=tokens, labels=self.labels, facts=np.array(facts))
        write_bytes(path, buffer.getvalue())


@dataclass(frozen=True, eq=False)
class TokenPool:
    """Training batches of random images and versions of `examples`, a function of (seed, step) alone."""

    examples: Examples
    seed: int  # of the order

    @property
    def subject(self) -> dict[str, str]:
        """As `train.token_batches.TokenBatches.subject`."""
        e = self.examples
        return {"images": f"{len(e)} of {', '.join(e.class_names)} in {e.tokens.shape[1]} variants, seed {self.seed}"}

    def batch(self, step: int, rows: Rows) -> tuple[Tensor, Tensor, torch.Generator]:
        """As `train.token_batches.TokenBatches.batch`."""
        rng = np.random.default_rng([self.seed, step])
        image = rng.integers(len(self.examples), size=rows.of)
        variant = rng.integers(self.examples.tokens.shape[1], size=rows.of)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        labels = torch.from_numpy(self.examples.labels[image]).long()
        return rows.take(self.examples.tokens[image, variant]), labels, generator


def concatenate(parts: Iterable[Examples]) -> Examples:
    """Classes of one source together; each image keeps as many versions as the class with the fewest has."""
    every = list(parts)
    kept = min(part.tokens.shape[1] for part in every)
    tokens = torch.cat([part.tokens[:, :kept] for part in every])
    labels = np.concatenate([part.labels for part in every])
    unreadable = tuple(bad for part in every for bad in part.unreadable)
    return Examples(tokens, labels, every[0].class_names, unreadable)


def load(path: Path) -> Examples:
    """Read what `Examples.save` wrote. Raises AvarcError when the file is corrupt."""
    try:
        with open_npz(path) as npz:
            facts = strict_json.parse(str(npz["facts"]))
            tokens, labels = npz["tokens"], npz["labels"]
            unreadable = tuple((str(name), str(why)) for name, why in facts["unreadable"])
            class_names = tuple(str(name) for name in facts["class_names"])
        types = tokens.dtype == np.uint16 and labels.dtype == np.int64
        if not types or tokens.ndim != 3 or labels.shape != tokens.shape[:1]:
            raise ValueError(f"it holds tokens {tokens.dtype} {tokens.shape} and labels {labels.dtype} {labels.shape}")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(class_names):
            raise ValueError(f"labels from {labels.min()} to {labels.max()} with {len(class_names)} class names")
        return Examples(torch.from_numpy(tokens.astype(np.int64)), labels, class_names, unreadable)
    except (*INVALID, TypeError, AttributeError) as error:
        raise AvarcError(f"'{path}' is corrupt", str(error), "delete it and run the same command again") from None


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How images become tokens to train on. None chooses by tokenizer and number of images."""

    preprocess: str | None = None  # of the image itself, as Preprocess.choose takes it
    augment: str | None = None  # of its augmented versions (train.images.Augment)
    flip: bool | None = None  # mirror half of the augmented versions
    variants: int | None = None  # augmented versions of each image
    seed: int = 0  # of the augmentation

    def clean(self, tokenizer: Tokenizer) -> Preprocess:
        """The preprocessing of the image itself."""
        return Preprocess.choose(self.preprocess, tokenizer.preprocess, tokenizer.image_size)

    def changes(self, tokenizer: Tokenizer) -> Augment:
        """The augmentation: crops and mirror images of photographs, small distortions of anything else."""
        mode = self.augment or ("crop" if self.clean(tokenizer).mode in OF_PHOTOGRAPHS else "affine")
        return Augment(mode=mode, flip=mode == "crop" if self.flip is None else self.flip)

    def count(self, images: int) -> int:
        """Augmented versions of each image, in a class of this many images."""
        if self.variants is not None:
            return self.variants
        return min(MAX_VARIANTS, max(DEFAULT_VARIANTS, -(-MIN_EXAMPLES // max(1, images))))


def encode(
    source: Source, rows: np.ndarray, tokenizer: Tokenizer, variation: Variation, progress: Callable[[], None]
) -> Examples:
    """These images of a source, each with its augmented versions; those of a token cache are its other samples.

    Unreadable images are left out and listed. `progress` is called after each image.
    Raises: AvarcError when no image is readable; CacheError, also for the cache of another tokenizer.
    """
    if isinstance(source, TokenCache):
        source.check(tokenizer)
        tokens = torch.from_numpy(source.tokens(rows))
        for _ in rows:
            progress()
        return Examples(tokens, source.labels[rows].astype(np.int64), class_names(source))
    clean, changes, variants = variation.clean(tokenizer), variation.changes(tokenizer), variation.count(len(rows))
    side = changes.loaded_side(tokenizer.image_size)
    large = replace(clean, mode="fit" if clean.mode == "none" else clean.mode, size=side)
    encoded: list[Tensor] = []
    readable: list[int] = []
    unreadable: list[tuple[str, str]] = []
    for row in rows.tolist():
        generator = torch.Generator().manual_seed(variation.seed * 1_000_003 + row)  # depends on the row alone
        try:
            shown = _signed(source.load(row, clean))[None]
            if variants:
                pixels = torch.from_numpy(source.load(row, large)).expand(variants, -1, -1, -1)
                shown = torch.cat([shown, changes(pixels, tokenizer.image_size, generator)])
        except UnreadableImage as error:
            unreadable.append((source.names[row], error.why))
        else:
            encoded.append(_encode(tokenizer, shown))
            readable.append(row)
        progress()
    if not encoded:
        raise none_readable(source.source, unreadable)
    labels = source.labels[readable].astype(np.int64)
    return Examples(torch.stack(encoded), labels, source.class_names, tuple(unreadable))


def _signed(pixels_HH3: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels_HH3).permute(2, 0, 1).float() / 127.5 - 1


@torch.inference_mode()
def _encode(tokenizer: Tokenizer, images_S3HH: Tensor) -> Tensor:
    parts = images_S3HH.split(BATCH_SIZE)
    return torch.cat([tokenizer.quantize(tokenizer.encode(part)) for part in parts]).cpu()
