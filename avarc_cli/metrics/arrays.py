"""Archives of numpy (.npz) as the field exchanges them: images in arr_0, statistics in mu, sigma, mu_s and sigma_s.

Images are read from the zip member batch by batch, compressed or not: those of 50,000 images of 256 pixels are 9.8 GB.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from avarc_cli.data.image_source import open_regular
from avarc_cli.errors import AvarcError, UnreadableImage, UsageError
from avarc_cli.metrics.moments import Gaussian
from avarc_cli.metrics.pixels import Batch
from avarc_cli.progress import Progress, no_progress
from avarc_cli.zip_check import INVALID

IMAGES = "arr_0"
COUNT = "images"
"""How many images the statistics are of; only avarc writes it."""

READ = 2**20  # bytes at once
FIX = "store images as an array of type uint8 and shape (images, side, side, 3), RGB: numpy.savez(FILE, arr_0=...)"
FIX_STATISTICS = "copy the file again, or make it with avarc fid --save-statistics"
NO_COVARIANCE = "a covariance is symmetric, with a diagonal of at least 0"
_READERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


@dataclass(frozen=True)
class ArrayImages:
    """The images of an archive (`pixels.Pixels`)."""

    path: Path
    count: int
    side: int
    crc: int
    """Checksum of the array, as the archive states it."""

    @property
    def source(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return self.count

    def identity(self) -> dict[str, Any]:
        return {"images": self.count, "side": self.side, "crc": f"{self.crc:08x}"}

    def check(self, progress: Progress = no_progress) -> None:
        """Read everything once, so that damage is found before any work. Raises: AvarcError where there is some."""
        size = self.side**2 * 3
        with _member(self.path, IMAGES) as (member, *_):
            done = 0
            while block := member.read(READ):
                done += len(block)
                progress(done // size, self.count)
        if done != self.count * size:
            raise _damaged(self.path, f"{IMAGES} has {done:,} bytes, {self.count * size:,} are expected")

    def read(self, batches: Sequence[range]) -> Iterator[Batch]:
        """The images of these batches, of an archive that was checked."""
        with _member(self.path, IMAGES) as (member, shape, dtype):
            begin, size = member.tell(), math.prod(shape[1:]) * dtype.itemsize
            for batch in batches:
                member.seek(begin + batch.start * size)
                data = member.read(len(batch) * size)
                yield Batch(np.frombuffer(data, np.uint8).reshape(len(batch), *shape[1:]).copy())


@dataclass(frozen=True)
class Archive:
    """What an archive holds that evaluations read."""

    images: ArrayImages | None
    pooled: Gaussian | None
    """Statistics of pooled features, which FID compares; None where it has no mu and sigma."""
    spatial: Gaussian | None
    """Those of spatial features, for sFID."""
    count: int | None
    """Images that the statistics are of, where it says so."""


def open_images(path: Path) -> ArrayImages:
    """The images of an archive, to be checked. Raises: UsageError unless it has such; AvarcError for a damaged file."""
    found = _open_images(path)
    if found is None:
        raise UsageError(f"'{path}' has no array {IMAGES}", f"it has {', '.join(_names(path)) or 'nothing'}", FIX)
    return found


def open_archive(path: Path, pooled: int, spatial: int) -> Archive:
    """Images and statistics of a reference; the statistics are read, the images are not.

    Args:
        pooled, spatial: number of features.
    Raises: UsageError for an archive with neither, and arrays of another kind; AvarcError for a damaged file.
    """
    statistics = _gaussian(path, "mu", "sigma", pooled), _gaussian(path, "mu_s", "sigma_s", spatial)
    images = _open_images(path)
    if images is None and statistics[0] is None:
        why = f"it has {', '.join(_names(path)) or 'nothing'}"
        raise UsageError(f"'{path}' has neither images (arr_0) nor statistics (mu, sigma)", why, FIX)
    return Archive(images, *statistics, _count(path))


def write_statistics(file: IO[bytes], pooled: Gaussian, spatial: Gaussian | None, count: int | None) -> None:
    """Write the statistics of `count` images as the field's reference files have them. Raises: OSError."""
    stored = {"mu": pooled.mean, "sigma": pooled.covariance}
    if spatial is not None:
        stored |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    if count is not None:
        stored[COUNT] = np.array(count)
    np.savez(file, allow_pickle=False, **stored)


def _open_images(path: Path) -> ArrayImages | None:
    if IMAGES not in _names(path):
        return None
    with _member(path, IMAGES) as (_, shape, dtype):
        what = f"cannot evaluate the images in '{path}'"
        described = f"{IMAGES} has the type {dtype} and the shape {shape}"
        if dtype != np.uint8:
            more = "; how floats were meant, and rounded, is not known" if dtype.kind == "f" else ""
            raise UsageError(what, described + more, FIX)
        if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or min(shape) < 1:
            raise UsageError(what, described + _guess(shape), FIX)
    with _archive(path) as archive:
        return ArrayImages(path, shape[0], shape[1], archive.getinfo(f"{IMAGES}.npy").CRC)


def _guess(shape: tuple[int, ...]) -> str:
    """What an array of another shape seems to hold."""
    if len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3]:
        return ": its channels come first"
    if shape[3:] == (1,) or (len(shape) == 3 and shape[1] == shape[2]):
        return ": it seems to hold gray images"
    return ": it seems to hold transparency" if shape[3:] == (4,) else ""


def _gaussian(path: Path, mean: str, covariance: str, width: int) -> Gaussian | None:
    names = _names(path)
    if mean not in names or covariance not in names:
        return None
    mean_D, covariance_DD = _numbers(path, mean, (width,)), _numbers(path, covariance, (width, width))
    variances = covariance_DD.diagonal()
    if (variances < 0).any() or not np.allclose(covariance_DD, covariance_DD.T, atol=1e-6 * variances.max()):
        raise UsageError(f"'{path}' has no statistics: {covariance} is no covariance", NO_COVARIANCE, FIX_STATISTICS)
    return Gaussian(mean_D, covariance_DD)


def _count(path: Path) -> int | None:
    return int(_numbers(path, COUNT, ())) if COUNT in _names(path) else None


def _numbers(path: Path, name: str, expected: tuple[int, ...]) -> np.ndarray:
    with _member(path, name) as (member, shape, dtype):
        if shape != expected or dtype.kind not in "fiu":
            what = f"'{path}' has no statistics of the Inception network's features"
            why = f"{name} has the type {dtype} and the shape {shape}, expected is {expected}"
            raise UsageError(what, why, FIX_STATISTICS)
        data = member.read()
    if len(data) != math.prod(expected) * dtype.itemsize:
        raise _damaged(path, f"{name} is cut short")
    numbers = np.frombuffer(data, dtype).reshape(expected).astype(np.float64)
    if not np.isfinite(numbers).all():
        raise UsageError(f"'{path}' has numbers that are not finite", f"in {name}", FIX_STATISTICS)
    return numbers


def _names(path: Path) -> list[str]:
    with _archive(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Raises: UsageError for a file that is not an archive; AvarcError for a damaged one."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        if "not a zip" in str(error):
            if _begins_as_zip(path):
                raise _damaged(path, "its end is missing") from error
            raise UsageError(f"'{path}' is not an archive of numpy (.npz)", str(error), FIX) from error
        raise _damaged(path, str(error)) from error
    except UnreadableImage as error:
        raise UsageError(f"cannot open '{path}'", error.why) from error
    except FileNotFoundError as error:
        raise UsageError(f"'{path}' does not exist") from error
    except (*INVALID, tokenize.TokenError) as error:  # which numpy lets pass for a wrong header
        raise _damaged(path, str(error)) from error


def _begins_as_zip(path: Path) -> bool:
    """Whether a file has the first bytes of an archive, as one has that was cut short."""
    with open_regular(path) as file:
        return file.read(4) == b"PK\x03\x04"


@contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """An array, open at its first number, with its shape and type. Raises: as `_archive`."""
    with _archive(path) as archive, archive.open(f"{name}.npy") as member:
        version = npy_format.read_magic(member)
        if version not in _READERS:
            raise _damaged(path, f"{name} has version {version} of numpy's format")
        shape, by_columns, dtype = _READERS[version](member)
        if by_columns and len(shape) > 1:
            why = f"{name} is stored column by column (Fortran order)"
            raise UsageError(f"cannot read '{path}'", why, "save numpy.ascontiguousarray of it")
        yield member, shape, dtype


def _damaged(path: Path, why: str) -> AvarcError:
    return AvarcError(f"'{path}' is damaged", why, "copy or make it again")
