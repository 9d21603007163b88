"""What is evaluated, and what of it follows the published protocol. There is no torch here, so that a mistake is
reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avarc_cli import outputs
from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import UsageError
from avarc_cli.metrics import arrays
from avarc_cli.metrics.arrays import ArrayImages
from avarc_cli.metrics.moments import Gaussian
from avarc_cli.metrics.pixels import HERE, Decoding, Pixels, SetImages
from avarc_cli.words import counted
from avarc_cli.work.chunks import recorded_request
from avarc_cli.work.workers import Workers
from avarc_cli.zoo import networks

POOLED, SPATIAL = 2048, 17 * 17 * 7
"""Features of an image: for FID, precision and recall; and for sFID."""

ENOUGH = 50_000
"""Images of the published protocol; with fewer FID is biased upwards."""

FEWEST = 4
"""Images for which there are scores at all: precision and recall look at the third nearest other one."""

COMPARED = 10_000
"""Real images of a set that precision and recall compare with, as in the published reference files."""


@dataclass(frozen=True)
class Reference:
    """What generated images are compared with."""

    source: str
    pixels: Pixels | None
    """Real images, for precision and recall, and for what has no stored statistics."""
    pooled: Gaussian | None = None
    """Stored statistics of pooled features, which win over those of the images."""
    spatial: Gaussian | None = None
    count: int | None = None
    """Images that the stored statistics are of, if that is known."""
    compared: int | None = None
    """Images, evenly spaced, that precision and recall use at most; None for all."""

    @property
    def images(self) -> int | None:
        """Number of images behind FID; None where a file with statistics does not say."""
        return self.count if self.pooled is not None else len(self.pixels or ())


def check_features_folder(path: Path | None) -> None:
    """Raises: UsageError where something else than a folder has the name of --features."""
    if path is not None and path.exists() and not path.is_dir():
        raise UsageError(f"'{path}' is not a folder", "it was given as --features", "name a folder, or a new one")


def check_workers(workers: Workers, kept: Path | None) -> None:
    """Raises: UsageError for work that other processes share without a folder for what is finished."""
    if workers.elsewhere and kept is None:
        raise UsageError(
            f"{workers.elsewhere} needs a folder", "what is finished is kept there", "add --features FOLDER"
        )


def check_pictures_folder(out: Path, keep: Path | None) -> None:
    """Check that reconstructions can be written here, as far as is known before they are computed.

    Args:
        keep: folder of what is finished, as of `reconstruction.reconstruct`.
    Raises: UsageError when there is anything but an empty folder, or the pictures of a process that was killed when
        they had appeared, and before it had reported.
    """
    if keep is None or recorded_request(keep) is None or not holds_pictures(out):
        outputs.check_new_folder(out)


def holds_pictures(folder: Path) -> bool:
    """Whether it is a folder of files that are named as reconstructions, and of nothing else."""
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    return bool(names) and names == [f"{number:06d}.png" for number in range(len(names))]


def is_archive(path: Path) -> bool:
    """Whether a path names an archive of numpy rather than images."""
    return path.suffix.lower() == ".npz" and not path.is_dir()


def reference_of_archive(path: Path, samples: Pixels) -> Reference:
    """That of an archive, all of whose images serve precision and recall, as in the original evaluator.

    Raises: UsageError where it has images of another size; as `arrays.open_archive`.
    """
    found = arrays.open_archive(path, POOLED, SPATIAL)
    if found.images is not None:
        check_side(found.images, samples)
    return Reference(str(path), found.images, found.pooled, found.spatial, found.count)


def reference_of_images(images: ImageSet, side: int, decoding: Decoding = HERE) -> Reference:
    """That of real images, whose centers are cropped as in ADM; COMPARED of them serve precision and recall."""
    pixels = SetImages(images, Preprocess("adm", side), decoding)
    return Reference(images.source, pixels, compared=COMPARED)


def check_side(reference: ArrayImages, samples: Pixels) -> None:
    """Raises: UsageError for images of different sizes."""
    if reference.side != samples.side:
        sides = f"{samples.side} and {reference.side} pixels a side"
        what = f"'{samples.source}' and '{reference.source}' hold images of different sizes"
        raise UsageError(what, sides, "bring the samples to the size of the reference, or use another reference")


def check_count(count: int | None, what: str, *, allow_few: bool) -> str | None:
    """A warning about too few images, if there are; None for a number that is not known.

    Raises: UsageError for too few without `allow_few`, and for less than any score takes.
    """
    if count is None or count >= ENOUGH:
        return None
    number = counted(count, "image")
    if count < FEWEST:
        raise UsageError(f"{what}: {number}", f"scores need at least {FEWEST}")
    why = f"with fewer than {ENOUGH:,} FID is biased upwards, with 10,000 already by whole points"
    if not allow_few:
        raise UsageError(f"{what}: {number}", why, "use more images, or add --allow-few to compare such numbers")
    return f"{what}: {number}; {why}; compare it only with FIDs of as many images"


def find_weights(given: Path | None) -> Path | None:
    """The file of the Inception network: the one that --inception names, else the downloaded one; None for neither."""
    return given or networks.downloaded(networks.INCEPTION)


def require_weights(given: Path | None) -> Path:
    """As `find_weights`. Raises: UsageError where there is no such file."""
    found = find_weights(given)
    if found is None:
        raise UsageError(
            "the Inception network is not on this machine",
            "FID compares its features, and avarc downloads nothing unasked",
            f"run avarc download {networks.INCEPTION}, or name its file: --inception FILE",
        )
    return found
