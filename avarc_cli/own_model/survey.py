"""What a folder of images is like, as far as it decides how a model of them is trained.

Shapes: H, W side of a small copy in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import read_rgb
from avarc_cli.errors import UnreadableImage, UsageError, none_readable, shorten_list
from avarc_cli.progress import Progress, no_progress

SIDES = (16, 32, 64, 128)
"""Of the images that a model may read, in pixels."""
SMALL = 32  # pixels a side of the copy in which borders and colours are judged
BORDER = 2  # pixels of that copy
SAME = 10  # levels of 255 by which pixels of a plain border differ at most
PLAIN = 0.5  # of the border is alike in an image of a small object; measured: digits 0.7, photos 0.2
COLORFUL, SHARE = 24, 0.02  # as in `data.photos`
ENOUGH = 0.98  # of an image's variance that a smaller copy keeps when it is as good


@dataclass(frozen=True)
class Look:
    """What one image is like."""

    edge: int
    """Its shorter edge, pixels."""
    is_colorful: bool
    """Whether it has colours."""
    plain: float
    """Part of its border that has one colour."""
    needed: int
    """The smallest of SIDES at which nothing important is lost."""


@dataclass(frozen=True)
class Survey:
    """What the images are like, without those that cannot be read or have no class."""

    images: ImageSet
    unreadable: list[tuple[str, str]]
    """Name and reason of each image that was left out."""
    edge: int
    """Median of the shorter edges, pixels."""
    is_gray: bool
    """Whether the images have no colours."""
    is_object: bool
    """Whether they show small objects on a plain ground, as digits do."""
    needed: int
    """The side in pixels at which most images lose nothing important; at most the median edge."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Images of each class."""
        numbers = np.bincount(self.images.labels, minlength=len(self.images.class_names))
        return dict(zip(self.images.class_names, numbers.tolist(), strict=True))


def survey(images: ImageSet, progress: Progress = no_progress) -> Survey:
    """Look at every image once.

    Raises: UsageError for images without classes, or of fewer than two; AvarcError where none can be read.
    """
    images = _labelled(images)
    with ThreadPoolExecutor(4) as threads:  # Pillow releases the GIL while it decodes
        found: list[Look | str] = []
        for look in threads.map(partial(_look, images), range(len(images))):
            found.append(look)
            progress(len(found), len(images))
    looks = [look for look in found if isinstance(look, Look)]
    unreadable = [(images.names[row], look) for row, look in enumerate(found) if isinstance(look, str)]
    if not looks:
        raise none_readable(images.source, unreadable)
    readable = images.take(np.array([row for row, look in enumerate(found) if isinstance(look, Look)]))
    edge = int(np.median([look.edge for look in looks]))
    return Survey(
        images=_with_all_classes(readable, unreadable),
        unreadable=unreadable,
        edge=edge,
        is_gray=sum(look.is_colorful for look in looks) < 0.05 * len(looks),
        is_object=float(np.median([look.plain for look in looks])) >= PLAIN,
        needed=int(np.median([look.needed for look in looks])),
    )


def _labelled(images: ImageSet) -> ImageSet:
    """Those with a class. Raises: UsageError unless they have at least two classes."""
    known = np.flatnonzero(images.labels >= 0)
    if len(images.class_names) < 2 or not len(known):
        why = f"its images are all of '{images.class_names[0]}'" if len(known) else "its images are in no sub-folders"
        raise UsageError(
            f"'{images.source}' has no classes to tell apart",
            why,
            "put the images of each class into a sub-folder of its name: photos/cat/, photos/dog/",
        )
    return images if len(known) == len(images) else images.take(known)


def _with_all_classes(images: ImageSet, unreadable: list[tuple[str, str]]) -> ImageSet:
    """The same images. Raises: UsageError where a class has none left."""
    gone = sorted(set(range(len(images.class_names))) - set(images.labels.tolist()))
    if gone:
        names = shorten_list([images.class_names[label] for label in gone])
        name, reason = unreadable[0]
        raise UsageError(f"no image of {names} is readable", f"'{name}': {reason}", "repair the images, or remove them")
    return images


def _look(images: ImageSet, row: int) -> Look | str:
    """What an image is like; why it cannot be read."""
    try:
        image = read_rgb(partial(images.encoded.open, row), images.encoded.location(row))
    except UnreadableImage as problem:
        return problem.why
    small_HW3 = np.asarray(image.resize((SMALL, SMALL), Image.Resampling.BOX)).astype(np.int16)
    inside = slice(BORDER, -BORDER)
    is_border_HW = np.ones((SMALL, SMALL), dtype=bool)
    is_border_HW[inside, inside] = False
    border_N3 = small_HW3[is_border_HW]
    alike_N = (np.abs(border_N3 - np.median(border_N3, axis=0)) <= SAME).all(1)
    return Look(
        edge=min(image.size),
        is_colorful=bool((np.ptp(small_HW3, axis=2) > COLORFUL).mean() >= SHARE),
        plain=float(alike_N.mean()),
        needed=_needed(image),
    )


def _needed(image: Image.Image) -> int:
    """The smallest of SIDES, not above the image's own, from which the image can be had back but for a few percent."""
    top = min(image.size)
    fitting = [side for side in SIDES if side <= top] or list(SIDES[:1])
    whole = image.convert("L").resize((fitting[-1], fitting[-1]), Image.Resampling.LANCZOS)
    whole_HW = np.asarray(whole, dtype=np.float32)
    for side in fitting[:-1]:
        reduced = whole.resize((side, side), Image.Resampling.LANCZOS)
        back_HW = np.asarray(reduced.resize(whole.size, Image.Resampling.BICUBIC), dtype=np.float32)
        if (whole_HW - back_HW).var() <= (1 - ENOUGH) * whole_HW.var():
            return side
    return fitting[-1]
