"""The token cache: an HDF5 file of images' tokens, and who may read it.

`/tokens` uint16 (N, S, L), `/labels` int32 (N,), `/paths` utf-8 (N,), optional `/latents` float16 (N, Z, h, w);
root attributes `avarc` (JSON, `CacheHeader`) and `unreadable` (JSON, [[name, reason], ...] of the images left out).
A part of a cache (`encode --shard`) has an attribute `share` (JSON, `Share`) and `/rows` int64 (N,) beside them.
N images, S samples (0 the image, others its smoothing neighbours), L tokens; Z channels, h side of the latents.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from avarc_cli.errors import CacheError, UsageError, describe_differences
from avarc_cli.tokens.header import CacheHeader, Share
from avarc_cli.tokens.write import Block

if TYPE_CHECKING:
    from avarc_cli.likelihood import Tokenizer

PARTS = ".parts"  # suffix of the folder beside an unfinished cache
ROWS_AT_ONCE = 2048
# What h5py and our own checks raise on files that are damaged or somebody else's.
DAMAGED = (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, MemoryError)


@dataclass(frozen=True, eq=False)
class TokenCache:
    """An opened cache: header, labels and names are in memory, tokens stay on disk.

    labels: (N,) int32; paths: names below the source; unreadable: (name, reason) of the images left out;
    share: which part of a cache this is, None for a whole one; rows: of a part, (N,) int64 indices in the full set.
    """

    path: Path
    header: CacheHeader
    labels: np.ndarray
    paths: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    share: Share | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def tokens(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tokens of these images, in this order, (n, S, L) int64.

        Raises: CacheError when the file became unreadable, or holds a token beyond the vocabulary; IndexError.
        """
        tokens = self._read("tokens", rows).astype(np.int64)
        if tokens.size and tokens.max() >= self.header.vocab_size:
            raise _damaged(self.path, f"token {tokens.max()} in a vocabulary of {self.header.vocab_size}")
        return tokens

    def first(self, count: int | None) -> TokenCache:
        """The cache as if it ended after so many images; None leaves it as it is.

        Raises: UsageError for a count below 1.
        """
        if count is None:
            return self
        if count < 1:
            raise UsageError(f"{count} images were asked for, must be at least 1")
        return dataclasses.replace(self, labels=self.labels[:count], paths=self.paths[:count])

    def latents(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Latents of these images before quantisation, (n, Z, h, w) float16.

        Raises: CacheError when the cache has none; IndexError.
        """
        if not self.header.latents:
            raise CacheError(f"'{self.path}' holds no latents", fix="encode the images again with --latents")
        return self._read("latents", rows)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Tokens and latents (None where there are none) of these rows, as they are stored, a few thousand at a time.

        Raises: CacheError when the file became unreadable.
        """
        stop = len(self) if stop is None else stop
        try:
            with h5py.File(self.path, "r") as file:
                for first in range(start, stop, ROWS_AT_ONCE):
                    block = slice(first, min(first + ROWS_AT_ONCE, stop))
                    yield file["tokens"][block], file["latents"][block] if self.header.latents else None
        except DAMAGED as error:
            raise _damaged(self.path, str(error)) from error

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises: CacheError, with the values side by side, unless this tokenizer gives such tokens."""
        there, here = self.header, tokenizer
        differences = describe_differences(
            {
                "tokenizer sha256": there.tokenizer_sha256,
                "scales": there.patch_nums,
                "image size": there.image_size,
                "vocabulary": there.vocab_size,
            },
            {
                "tokenizer sha256": here.sha256,
                "scales": tuple(here.patch_nums),
                "image size": here.image_size,
                "vocabulary": here.vocab_size,
            },
            sides=("in the cache", "for the model"),
        )
        if not differences:
            return
        files = f"the cache was made by {there.tokenizer} ({there.tokenizer_file}), the model reads {here.name}"
        raise CacheError(
            f"'{self.path}' holds the tokens of another tokenizer than the model reads",
            f"{files} ({Path(here.file).name}). {differences}",
            f"encode for this model: avarc encode {there.source} --model ... --out ...",
        )

    def _read(self, dataset: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of a cache of {len(self)} images")
        unique, inverse = np.unique(wanted, return_inverse=True)  # h5py reads increasing rows only
        try:
            with h5py.File(self.path, "r") as file:
                values: np.ndarray = file[dataset][unique]
        except DAMAGED as error:
            raise _damaged(self.path, str(error)) from error
        return values[inverse]


def read(path: str | Path, *, parts_too: bool = False) -> TokenCache:
    """Open a token cache.

    parts_too: whether a part of a cache will do, too.

    Raises: CacheError when the file is missing, cut short, not HDF5, no token cache, of another format version, or
        only a part of a cache.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        fix = "make one: avarc encode DATA --model NAME --out tokens.h5"
        unfinished = path.with_name(path.name + PARTS)
        if unfinished.is_dir():
            why, fix = f"what is finished of it lies in '{unfinished}'", "run the same avarc encode again to finish it"
            raise CacheError(f"the token cache '{path}' {what} yet", why, fix)
        raise CacheError(f"the token cache '{path}' {what}", fix=fix)
    try:
        with h5py.File(path, "r") as file:
            cache = _open(path, file)
    except DAMAGED as error:
        raise _damaged(path, str(error)) from error
    if cache.share is not None and not parts_too:
        there, every = len(cache.share.units), cache.share.count(cache.header.images)
        what = f"'{path}' is a part of a token cache"
        fix = "encode the other shards to the same file, or join them: avarc cache merge"
        raise CacheError(what, f"it holds {there} of {every} units", fix)
    return cache


def _open(path: Path, file: h5py.File) -> TokenCache:
    if "avarc" not in file.attrs:
        raise CacheError(f"'{path}' is an HDF5 file, but not a token cache", "it has no attribute 'avarc'")
    header = CacheHeader.from_json(file.attrs["avarc"], path)
    share = Share.from_json(file.attrs["share"]) if "share" in file.attrs else None
    _check_layout(file, header, share)
    labels = file["labels"][:]
    if labels.size and not (labels.min() >= -1 and labels.max() < len(header.class_names)):
        raise ValueError(f"labels up to {labels.max()} with {len(header.class_names)} class names")
    return TokenCache(
        path,
        header,
        labels,
        tuple(name.decode("utf-8", "surrogateescape") for name in file["paths"][:]),
        tuple((str(name), str(why)) for name, why in json.loads(file.attrs["unreadable"])),
        share,
        None if share is None else file["rows"][:],
    )


def _check_layout(file: h5py.File, header: CacheHeader, share: Share | None) -> None:
    """Raises: ValueError naming the dataset that is missing or not as the header says."""
    count = len(file["labels"])
    expected: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "tokens": ("u2", (count, header.samples, header.num_tokens)),
        "labels": ("i4", (count,)),
        "paths": ("S", (count,)),
    }
    if header.latents:
        expected["latents"] = ("f2", (count, None, None, None))
    if share is not None:
        expected["rows"] = ("i8", (count,))
    for name, (kind, shape) in expected.items():
        dataset = file[name]
        sides = zip(dataset.shape, shape, strict=True)  # ValueError for another number of dimensions
        if not dataset.dtype.str.lstrip("<|").startswith(kind) or any(want not in {None, has} for has, want in sides):
            raise ValueError(f"/{name} is {dataset.dtype} {dataset.shape}, expected {kind} {shape}")


def _damaged(path: Path, why: str) -> CacheError:
    return CacheError(f"'{path}' is damaged, or not a token cache", why, "make it again: avarc encode ... --overwrite")
