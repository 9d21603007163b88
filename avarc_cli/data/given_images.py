"""Images as Python programs have them: paths, Pillow's images, arrays and tensors, one or many, as image sets.

Shapes: H x W pixels, C channels: 1 (gray), 3 (RGB) or 4 (RGBA); N images.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard

import numpy as np
from PIL import Image

from avarc_cli.data.datasets import ImageSet, open_images
from avarc_cli.data.image_source import ImageSource, join
from avarc_cli.data.labels import UNKNOWN
from avarc_cli.data.preprocess import rgb_of
from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    OneImage: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
    """A path, an image of Pillow, or an array or tensor, (H, W), (H, W, C) or (C, H, W): uint8, or floats in [0, 1]."""

    ManyImages: TypeAlias = Iterable[OneImage] | ImageSet
    """A list or an iterator of images, an array or tensor of N images, or what `open_images` gave."""

CHANNELS = (1, 3, 4)
ROUNDING = 1e-3  # by which floats may lie outside of [0, 1]: filters and half precision round
KINDS = "a path, an image of Pillow, or an array or a tensor"


@dataclass(frozen=True, eq=False)
class ImagesInMemory:
    """Images in RGB (`ImageSource`)."""

    pictures: tuple[Image.Image, ...]
    names: tuple[str, ...]  # for messages

    def __len__(self) -> int:
        return len(self.pictures)

    def open(self, row: int) -> BinaryIO:
        buffer = io.BytesIO()
        self.pictures[row].save(buffer, "PNG", compress_level=1)
        buffer.seek(0)
        return buffer

    def location(self, row: int) -> str:
        return self.names[row]

    def take(self, rows: np.ndarray) -> ImagesInMemory:
        chosen = rows.tolist()
        return ImagesInMemory(tuple(self.pictures[i] for i in chosen), tuple(self.names[i] for i in chosen))

    def find_unreadable(self) -> Iterator[tuple[int, str]]:
        return iter(())

    def stamps(self) -> np.ndarray:
        """Bytes, and in place of a time a checksum of the pixels, (N, 2) int64."""
        pixels = [picture.tobytes() for picture in self.pictures]
        return np.array([(len(each), zlib.crc32(each)) for each in pixels], dtype=np.int64).reshape(-1, 2)


def is_one_image(images: Any) -> TypeGuard[OneImage]:
    """Whether this stands for an image by itself: a path, an image of Pillow, or an array of up to 3 dimensions."""
    if _is_path(images) or isinstance(images, Image.Image):
        return True
    return _is_array(images) and images.ndim < 4


def image_sets(images: Any, at_once: int) -> Iterator[ImageSet]:
    """The images as sets, in order. What is already there is one set; an iterator is read as the sets are needed.

    Args:
        images: `OneImage` or `ManyImages`; a path may also be a folder, a list, a tar shard or a table.
        at_once: images of an iterator that become one set.
    Raises: UsageError for anything but images, and an array whose axes or values have no clear meaning; UnreadableImage
        for an image of Pillow that cannot be decoded.
    """
    if isinstance(images, ImageSet):
        yield images
    elif is_one_image(images):
        yield image_set([images])
    elif isinstance(images, Sequence) or _is_array(images):
        if len(images):
            yield image_set(list(images))
    elif isinstance(images, Iterable):
        items, first = iter(images), 0
        while some := list(islice(items, at_once)):
            yield image_set(some, first)
            first += len(some)
    else:
        raise UsageError(f"cannot read images from a {type(images).__name__}", f"an image is {KINDS}")


def image_set(images: Sequence[OneImage], first: int = 0) -> ImageSet:
    """These images in this order. Images in memory are called "image N", N counted from `first`; they have no labels.

    Raises: as `image_sets`.
    """
    if all(map(_is_path, images)):
        return open_images(list(map(_path, images)))
    sources: list[ImageSource] = []
    names: list[str] = []
    for are_paths, group in groupby(enumerate(images, first), lambda item: _is_path(item[1])):
        if are_paths:
            opened = open_images([_path(each) for _, each in group])
            sources.append(opened.encoded)
            names += opened.names
        else:
            named = {f"image {number}": each for number, each in group}
            sources.append(ImagesInMemory(tuple(_picture(each, name) for name, each in named.items()), tuple(named)))
            names += named
    unknown = np.full(len(names), UNKNOWN, dtype=np.int32)
    return ImageSet(join(sources), unknown, (), "images in memory", tuple(names), layout="images in memory")


def _is_path(image: Any) -> bool:
    return isinstance(image, str | os.PathLike)


def _path(image: Any) -> Path:
    """Raises: UsageError for an empty text, which Python would take for the current folder."""
    if not os.fspath(image):
        raise UsageError("the path of an image is empty", fix="write . for the current folder")
    return Path(image)


def _is_array(image: Any) -> bool:
    return hasattr(image, "ndim") and hasattr(image, "__array__")  # NumPy's, torch's, JAX's; not Pillow's


def _picture(image: Any, name: str) -> Image.Image:
    """An image in memory, in RGB."""
    if isinstance(image, Image.Image):
        return rgb_of(image, name)
    if not _is_array(image):
        is_file = isinstance(image, bytes | bytearray) or hasattr(image, "read")
        fix = "open it with Image.open (bytes: of io.BytesIO)" if is_file else "give one of these"
        raise UsageError(f"{name} has the type {type(image).__name__}", f"an image is {KINDS}", fix)
    return rgb_of(Image.fromarray(_pixels(_as_numpy(image, name), name)), name)


def _as_numpy(image: Any, name: str) -> np.ndarray:
    """Raises: UsageError for a tensor without numbers to read, such as a sparse one."""
    try:
        if hasattr(image, "detach"):  # a tensor, which may be on a device, or in a dtype that NumPy lacks
            image = image.detach().cpu()
            image = image.float() if image.is_floating_point() else image
        return np.asarray(image)
    except (NotImplementedError, RuntimeError, TypeError) as problem:
        reason = str(problem).partition("\n")[0]
        raise UsageError(f"{name} cannot be read as an array", reason, "give an array of NumPy") from None


def _pixels(array: np.ndarray, name: str) -> np.ndarray:
    """As uint8, (H, W), (H, W, 3) or (H, W, 4)."""
    array = _channels_last(array, name)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        fix = "convert it: array.astype('uint8') if its values are from 0 to 255"
        raise UsageError(f"{name} is an array of {array.dtype}", "arrays are uint8, or floats from 0 to 1", fix)
    low, high = float(array.min()), float(array.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # so that it also finds nan
        raise UsageError(
            f"the values of {name} run from {low:g} to {high:g}", "floats are from 0 to 1", _fix(low, high)
        )
    return np.rint(array.clip(0, 1).astype(np.float64) * 255).astype(np.uint8)


def _fix(low: float, high: float) -> str:
    if not np.isfinite([low, high]).all():
        return "look for what made values that are not finite"
    if low >= 0 and high <= 255:
        return "divide it by 255"
    if low >= -1 - ROUNDING and high <= 1 + ROUNDING:
        return "give (image + 1) / 2 if its range is from -1 to 1"
    return "undo its normalization"


def _channels_last(array: np.ndarray, name: str) -> np.ndarray:
    """(H, W), (H, W, 3) or (H, W, 4). Raises: UsageError where no axis, or more than one, can be that of channels."""
    shape = "x".join(map(str, array.shape))
    if array.ndim not in (2, 3) or not array.size:
        why = f"an image is height x width, with {', '.join(map(str, CHANNELS))} channels before or after these"
        raise UsageError(f"{name} is an array of {shape or 'no dimensions'}", why)
    if array.ndim == 2:
        return array
    before, after = array.shape[0] in CHANNELS, array.shape[2] in CHANNELS
    if before == after:
        why = "the first and the last axis could both be its channels" if before else "no axis has 1, 3 or 4 channels"
        fix = "give it as an image of Pillow: Image.fromarray(array)" if before else "give it in RGB"
        raise UsageError(f"{name} is an array of {shape}", why, fix)
    last = np.moveaxis(array, 0, 2) if before else array
    return last[..., 0] if last.shape[2] == 1 else last
