"""The token cache: an HDF5 file with the tokens of images.

`/tokens` uint16 (N, S, L), `/labels` int32 (N,), `/paths` utf-8 (N,), optional `/latents` float16 (N, Z, h, w), of
sample 0 before quantization. Continuous tokens are `/latents` float32 (N, S, L, Z), and there is no `/tokens`. Root
attributes `avarc` (JSON, `CacheHeader`) and `unreadable` (JSON, [[name, reason], ...] of images left out).
`/stamps` and `/digests` are the `Fingerprints` of the images, unreadable ones included; older caches lack them.
A partial cache (`encode --shard`) also has an attribute `share` (JSON, `Partial`) and `/rows` int64 (N,).
N images, S samples (0 is the image, the others smoothing samples or other views of it), L tokens; Z channels, h x w
latents, of sample 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from avarc_cli import strict_json
from avarc_cli.data.even_sample import draw_evenly
from avarc_cli.data.labels import UNKNOWN
from avarc_cli.errors import CacheError, UsageError, describe_differences
from avarc_cli.storage import beside
from avarc_cli.tokens.fingerprints import Fingerprints
from avarc_cli.tokens.header import FORMAT, READABLE, UNKNOWN_MAKING, CacheHeader, Partial
from avarc_cli.tokens.write import Block
from avarc_cli.words import counted
from avarc_cli.work.chunks import Chunks

if TYPE_CHECKING:
    from avarc_cli.tokenizer import Tokenizer

ROWS_PER_BLOCK = 2048
"""Images that `blocks` has in memory at once: 2.8 MB of tokens of 680."""

CORRUPT = (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, MemoryError)
"""What h5py and our own checks raise on files that are corrupt or not ours; tests/tokens/test_faults.py tries."""


@dataclass(frozen=True, eq=False)
class TokenCache:
    """An opened cache: header, labels and names are in memory, tokens stay on disk."""

    path: Path
    """Of the file."""
    header: CacheHeader
    """How it was made."""
    labels: np.ndarray
    """(N,) int32, indices of header.class_names, UNKNOWN where there is none."""
    paths: tuple[str, ...]
    """Of the N images, below the source."""
    unreadable: tuple[tuple[str, str], ...]
    """(name, reason) of the images that could not be read."""
    format: int = FORMAT
    """Version of the file's format."""
    partial: Partial | None = None
    """Which part of a cache the file has; None for a complete one."""
    rows: np.ndarray | None = None
    """(N,) int64: of a partial cache, the indices of its images in the full set."""
    file_rows: np.ndarray | None = None
    """(N,) int64: of a view (`take`), the rows of the file that it shows; None for all, in order."""
    sampled: tuple[int, int] | None = None
    """Of a view that `sample` made: the number of images that were asked for, and the seed."""
    others: tuple[TokenCache, ...] = ()
    """Complete caches of other views of the same images, in the order of the file, for trainings (`tokens.mixed`)."""

    def __len__(self) -> int:
        return len(self.paths)

    def tokens(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tokens of these images, in this order, (n, S, L) int64, or (n, S, L, Z) float32 of continuous ones.

        Raises: CacheError when the file became unreadable, or holds a token beyond the vocabulary or one that is not
            finite; IndexError.
        """
        return self._checked(self._read(self.header.form.dataset, rows))

    def mapped(self) -> np.ndarray:
        """The tokens of all images of the file as they are stored, (N, S, L) or (N, S, L, Z), mapped: they are read
        from the disk when they are needed, and processes share them.

        Raises: CacheError when the file became unreadable.
        """
        try:
            with h5py.File(self.path, "r") as file:
                tokens = file[self.header.form.dataset]  # in one piece (`check_stored`)
                return np.memmap(self.path, tokens.dtype, "r", tokens.id.get_offset(), tokens.shape)
        except CORRUPT as error:
            raise _corrupt(self.path, str(error)) from error

    def digest(self) -> str:
        """Of the header and the checksums that the file has (the first caches have none): no token is read.

        Raises: CacheError when the file became unreadable.
        """
        try:
            with h5py.File(self.path, "r") as file:
                checksums = file[self.header.form.dataset].attrs.get("crc32", np.zeros(0, np.uint32))
        except CORRUPT as error:
            raise _corrupt(self.path, str(error)) from error
        return hashlib.sha256(self.header.to_json().encode() + checksums.tobytes()).hexdigest()[:16]

    def views_of(self, rows: np.ndarray, views: np.ndarray, mapped: np.ndarray) -> np.ndarray:
        """One view of each of these images, out of `mapped`, (n, L) int64, or (n, L, Z) float32; as `tokens`."""
        return self._checked(mapped[self.in_file(rows), views])

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        """Stored tokens as int64 or float32. Raises: CacheError as `tokens`."""
        if self.header.channels:
            if not np.isfinite(tokens).all():
                raise _corrupt(self.path, "a token is not a finite number")
            return tokens.astype(np.float32, copy=False)
        tokens = tokens.astype(np.int64)
        if tokens.size and tokens.max() >= self.header.vocab_size:
            raise _corrupt(self.path, f"token {tokens.max()} in a vocabulary of {self.header.vocab_size}")
        return tokens

    def latents(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Latents of these images before quantization, (n, Z, h, w) float16.

        Raises: CacheError when the cache has none; IndexError.
        """
        if not self.header.latents:
            if self.header.channels:
                raise CacheError(f"'{self.path}' has no latents but its tokens", "these are not quantized")
            raise CacheError(f"'{self.path}' has no latents", fix="encode the images again with --latents")
        return self._read("latents", rows)

    def take(self, rows: Sequence[int] | np.ndarray) -> TokenCache:
        """A view of these images, in this order, which counts them from 0; no tokens are read.

        Raises: IndexError.
        """
        chosen = self._check_rows(rows)
        return dataclasses.replace(
            self,
            labels=self.labels[chosen],
            paths=tuple(self.paths[row] for row in chosen.tolist()),
            rows=None if self.rows is None else self.rows[chosen],
            file_rows=chosen if self.file_rows is None else self.file_rows[chosen],
            sampled=None,
        )

    def in_file(self, rows: np.ndarray) -> np.ndarray:
        """The rows of the file that these images lie in, int64; the same numbers unless this is a view."""
        return rows if self.file_rows is None else self.file_rows[rows]

    def first(self, count: int | None) -> TokenCache:
        """A view of the first `count` images, or of all if there are fewer; None for the cache itself.

        Raises: UsageError for a count below 1.
        """
        if count is None:
            return self
        if count < 1:
            raise UsageError(f"{count} images were asked for, must be at least 1")
        return self.take(range(min(count, len(self))))

    def sample(self, count: int, seed: int) -> TokenCache:
        """A view of `count` images, drawn evenly over the classes (`draw_evenly`). Raises: UsageError."""
        return dataclasses.replace(self.take(draw_evenly(self.labels, count, seed)), sampled=(count, seed))

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Tokens and latents (None where there are none) of these rows of the file, ROWS_PER_BLOCK at a time.

        Raises: CacheError when the file became unreadable; ValueError for a view (`take`).
        """
        if self.file_rows is not None:
            raise ValueError("blocks are of the file, not of a view of some rows")
        stop, tokens = len(self) if stop is None else stop, self.header.form.dataset
        try:
            with h5py.File(self.path, "r") as file:
                for first in range(start, stop, ROWS_PER_BLOCK):
                    block = slice(first, min(first + ROWS_PER_BLOCK, stop))
                    yield file[tokens][block], file["latents"][block] if self.header.latents else None
        except CORRUPT as error:
            raise _corrupt(self.path, str(error)) from error

    @property
    def encoded_rows(self) -> np.ndarray:
        """Indices in the full set of the images that the file was made of, unreadable ones included, int64."""
        if self.partial is None:
            return np.arange(self.header.images)
        chunks = Chunks(self.header.images, self.partial.chunk_size)
        return np.concatenate([np.array(chunks.items_of(number), dtype=np.int64) for number in self.partial.chunks])

    def fingerprints(self) -> Fingerprints:
        """Those of `encoded_rows`. Raises: CacheError when the file is corrupt."""
        try:
            with h5py.File(self.path, "r") as file:
                arrays = {name: file[name][:] for name in ("stamps", "digests") if name in file}
                return Fingerprints.from_arrays(arrays, len(self.encoded_rows))
        except CORRUPT as error:
            raise _corrupt(self.path, str(error)) from error

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises: CacheError, with both values, unless this tokenizer makes such tokens; UsageError for the other kind,
        codes or continuous ones.
        """
        header = self.header
        if bool(header.channels) != bool(tokenizer.channels):
            raise UsageError(
                f"'{self.path}' holds {_kind(header.channels)}, the model reads {_kind(tokenizer.channels)}",
                f"the cache was made by {header.tokenizer} ({header.tokenizer_file}), "
                f"the model reads {tokenizer.name} ({Path(tokenizer.file).name})",
                f"encode for this model: avarc encode {header.source} --model ... --out ...",
            )
        there = {
            "tokenizer sha256": header.tokenizer_sha256,
            "layout": str(header.layout),
            "image size": header.image_size,
            "vocabulary": header.vocab_size,
            "channels": header.channels,
        }
        here = {
            "tokenizer sha256": tokenizer.sha256,
            "layout": str(tokenizer.layout),
            "image size": tokenizer.image_size,
            "vocabulary": tokenizer.vocab_size,
            "channels": tokenizer.channels,
        }
        if differences := describe_differences(there, here, sides=("in the cache", "for the model")):
            made_by = f"the cache was made by {header.tokenizer} ({header.tokenizer_file})"
            raise CacheError(
                f"'{self.path}' holds the tokens of another tokenizer than the model reads",
                f"{made_by}, the model reads {tokenizer.name} ({Path(tokenizer.file).name}). {differences}",
                "import tokens that its tokenizer made"
                if header.preprocess == UNKNOWN_MAKING
                else f"encode for this model: avarc encode {header.source} --model ... --out ...",
            )

    def _read(self, dataset: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = self._check_rows(rows)
        if self.file_rows is not None:
            wanted = self.file_rows[wanted]
        unique, inverse = np.unique(wanted, return_inverse=True)  # h5py reads increasing rows only
        try:
            with h5py.File(self.path, "r") as file:
                values: np.ndarray = file[dataset][unique]
        except CORRUPT as error:
            raise _corrupt(self.path, str(error)) from error
        return values[inverse]

    def _check_rows(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows as int64. Raises: IndexError when one is out of range."""
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of a cache of {len(self)} images")
        return wanted


def _kind(channels: int) -> str:
    return f"continuous tokens of {counted(channels, 'channel')}" if channels else "tokens of a codebook"


def chunk_folder(path: Path) -> Path:
    """The folder of chunks of an unfinished cache."""
    return beside(path, ".parts")


def read(path: str | Path, *, allow_partial: bool = False) -> TokenCache:
    """Open a token cache.

    Raises: CacheError when the file is missing, cut short, not HDF5, not a token cache, of an unknown format version,
        or partial, unless that is allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise _missing(path)
    try:
        with h5py.File(path, "r") as file:
            cache = _open(path, file)
    except CORRUPT as error:
        raise _corrupt(path, str(error)) from error
    if cache.partial is not None and not allow_partial:
        there, every = len(cache.partial.chunks), cache.partial.count(cache.header.images)
        what = f"'{path}' is a partial token cache"
        fix = "encode the other shards to the same file, or join them: avarc cache merge"
        raise CacheError(what, f"it has {there} of {counted(every, 'chunk')}", fix)
    return cache


def _open(path: Path, file: h5py.File) -> TokenCache:
    if "avarc" not in file.attrs:
        raise CacheError(f"'{path}' is an HDF5 file, but not a token cache", "it has no attribute 'avarc'")
    values = strict_json.parse(file.attrs["avarc"])
    version = values["format"]
    if version not in READABLE:
        fix = "upgrade avarc: pip install --upgrade avarc" if version > FORMAT else "encode the images again"
        raise CacheError(f"'{path}' has another format", f"it is version {version}, this is {FORMAT}", fix)
    header = CacheHeader.from_dict(values)
    partial = Partial.from_json(file.attrs["share"]) if "share" in file.attrs else None
    check_stored(file)
    _check_datasets(file, header, partial)
    labels = file["labels"][:]
    if labels.size and not (labels.min() >= UNKNOWN and labels.max() < len(header.class_names)):
        raise ValueError(f"labels up to {labels.max()} with {len(header.class_names)} class names")
    return TokenCache(
        path,
        header,
        labels,
        paths=tuple(name.decode("utf-8", "surrogateescape") for name in file["paths"][:]),
        unreadable=tuple((str(name), str(why)) for name, why in strict_json.parse(file.attrs["unreadable"])),
        format=version,
        partial=partial,
        rows=None if partial is None else file["rows"][:],
    )


def check_stored(file: h5py.File) -> None:
    """Check that what a file claims to hold is in it, and nowhere else: before any of it is read.

    Raises: ValueError naming a link to another file or place, or a dataset that was never written, whose bytes are in
        other files, or that is stored in another way than caches are, which may claim any size.
    """
    size = file.id.get_filesize()
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"/{name} is a link to another place")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"/{name} is not a dataset")
        layout = dataset.id.get_create_plist()
        if layout.get_layout() != h5py.h5d.CONTIGUOUS or layout.get_external_count():
            raise ValueError(f"/{name} is not stored in one piece, as in a cache")
        start = dataset.id.get_offset()
        if dataset.nbytes and (start is None or start + dataset.nbytes > size):
            raise ValueError(f"/{name} claims {dataset.nbytes:,} bytes, which the file does not hold")


def _check_datasets(file: h5py.File, header: CacheHeader, partial: Partial | None) -> None:
    """Raises: ValueError naming the dataset that is missing or not as the header says."""
    count = len(file["labels"])
    expected: dict[str, tuple[str, tuple[int | None, ...]]] = {
        header.form.dataset: ("f4" if header.channels else "u2", (count, *header.form.shape)),
        "labels": ("i4", (count,)),
        "paths": ("S", (count,)),
    }
    if header.latents:
        expected["latents"] = ("f2", (count, None, None, None))
    if partial is not None:
        expected["rows"] = ("i8", (count,))
    for name, (kind, shape) in expected.items():
        dataset = file[name]
        sides = zip(dataset.shape, shape, strict=True)  # ValueError for another number of dimensions
        if not dataset.dtype.str.lstrip("<|").startswith(kind) or any(want not in {None, has} for has, want in sides):
            raise ValueError(f"/{name} is {dataset.dtype} {dataset.shape}, expected {kind} {shape}")


def _missing(path: Path) -> CacheError:
    what = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
    if chunk_folder(path).is_dir():
        why = f"its finished chunks are in '{chunk_folder(path)}'"
        fix = "run the same command again to finish it"
        return CacheError(f"the token cache '{path}' {what} yet", why, fix)
    return CacheError(
        f"the token cache '{path}' {what}", fix="make one: avarc encode DATA --model NAME --out tokens.h5"
    )


def _corrupt(path: Path, why: str) -> CacheError:
    return CacheError(f"'{path}' is corrupt, or not a token cache", why, "make it again: avarc encode ... --overwrite")
