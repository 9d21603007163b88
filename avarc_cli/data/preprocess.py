"""From an image file to the square RGB pixels that a tokenizer takes.

Uses Pillow only. Resizing and cropping follow the published pipelines (torchvision's `Resize(int)` with Lanczos, then
`CenterCrop`) to the pixel.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from avarc_cli.data.image_source import open_regular
from avarc_cli.data.views import SINGLE_VIEW, TEN_CROP, Views
from avarc_cli.errors import UnreadableImage, UsageError

MODES = ("resize-crop", "fit", "adm", "none")
REFERENCE = "reference"  # the option beside a mode: decode as the reference implementations do
UPRIGHT, AS_STORED = "upright, alpha over white, 16 bits scaled", "as PIL converts to RGB"  # in descriptions
MAX_PIXELS = 2**27  # 134 million: 400 MB as RGB. Larger files are mistakes or decompression bombs

# Pillow's names. Its other decoders are for rare formats, and that for PostScript starts Ghostscript.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
OVERSHOOT = 0.25  # part of their range by which floats may lie outside; sharp filters overshoot by up to a fifth

ORIENTATION = 0x0112  # EXIF tag
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF tag
TRANSPOSE = {  # value of that tag to what turns the image upright; 1 is upright already
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's decoders are known to raise on corrupt files.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes `size` x `size` pixels, once or in several views.

    Raises: UsageError for an unknown mode, a size below 1, or ten crops in mode "none".
    """

    mode: str
    """"resize-crop" scales the shorter edge to round(1.125 * size) with Lanczos and crops the center, as VAR does;
    "fit" scales the shorter edge to `size` with Lanczos and crops the center;
    "adm" halves the image as long as its shorter edge is at least twice `size`, scales that edge to `size` with
    bicubic filtering and crops the center, as ADM (arXiv:2105.05233) and LlamaGen do;
    "none" accepts only images that are size x size already.
    Ten crops are cut from what the mode makes at their `side` in place of `size`."""

    size: int
    """Side of the result in pixels."""

    reference: bool = False
    """Decode as VAR's own loader does, `Image.open(file).convert("RGB")`: not turned upright, without the alpha
    channel, and with Pillow's conversion of 16 bits."""

    views: Views = SINGLE_VIEW
    """Which views of the image there are."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            fix = f"choose one of {', '.join(MODES)}, with or without ',{REFERENCE}', or {REFERENCE}"
            raise UsageError(f"unknown preprocessing '{self.mode}'", fix=fix)
        if self.size < 1:
            raise UsageError(f"image size is {self.size} pixels, must be at least 1")
        if self.mode == "none" and self.views.kind == TEN_CROP:
            why = "the crops are cut from an image that was scaled for them, and 'none' scales nothing"
            raise UsageError("--ten-crop does not go with --preprocess none", why, "use --preprocess adm, or fit")

    @classmethod
    def choose(cls, asked: str | None, default: str, size: int, views: Views = SINGLE_VIEW) -> Preprocess:
        """What `--preprocess` asks for: a mode, "reference" for the default mode, or both: "fit,reference".

        Args:
            asked: the option; None for the default.
            default: mode of the tokenizer.
        Raises: UsageError for anything else.
        """
        mode = default if asked is None else asked
        if mode == REFERENCE:
            return cls(default, size, reference=True, views=views)
        stem = mode.removesuffix(f",{REFERENCE}")
        return cls(stem, size, reference=stem != mode, views=views)

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """What `str` describes, of this or an earlier version. Raises: UsageError for any other text."""
        found = re.fullmatch(r"(\S+) (?:\d+->)?(\d+)(?: lanczos| box, bicubic)?(?:; ([^;]+))?(?:; (.+))?", text)
        if found is None or found[3] not in {None, UPRIGHT, AS_STORED}:
            raise UsageError(f"unknown preprocessing '{text}'")
        views, size = (SINGLE_VIEW, None) if found[4] is None else Views.parse(found[4])
        parsed = cls(found[1], int(found[2]) if size is None else size, found[3] == AS_STORED, views)
        if parsed.side != int(found[2]):
            raise UsageError(f"unknown preprocessing '{text}'", f"its views are cut from {parsed.side} pixels")
        return parsed

    @property
    def side(self) -> int:
        """Pixels a side of what the mode makes, and the views are cut from."""
        return self.views.side(self.size)

    @property
    def shorter_edge(self) -> int:
        """Length in pixels that the shorter edge is scaled to before the crop."""
        return round(1.125 * self.side) if self.mode == "resize-crop" else self.side

    def __str__(self) -> str:
        """The description that results and token caches record."""
        resized = {"none": f"{self.side}", "adm": f"{self.side} box, bicubic"}
        scaled = f"{self.mode} {resized.get(self.mode, f'{self.shorter_edge}->{self.side} lanczos')}"
        parts = [scaled, AS_STORED if self.reference else UPRIGHT, self.views.describe(self.size)]
        return "; ".join(part for part in parts if part)

    def __call__(self, path: Path) -> np.ndarray:
        """Read and preprocess an image file.

        Returns: pixels (size, size, 3), uint8 RGB, of view 0.
        Raises: UnreadableImage if the file cannot be decoded, is far too large or too elongated, or, in mode "none",
            is not size x size already.
        """
        return self.apply(load_rgb(path, reference=self.reference), str(path))

    def apply(self, image: Image.Image, name: str) -> np.ndarray:
        """Preprocess an RGB image; errors refer to it as `name`. Returns and raises as for a file."""
        return np.array(next(self._views(image, name)))

    def apply_views(self, image: Image.Image, name: str) -> np.ndarray:
        """As `apply`, but all views: (V, size, size, 3)."""
        return np.stack([np.array(view) for view in self._views(image, name)])

    def _views(self, image: Image.Image, name: str) -> Iterator[Image.Image]:
        return self.views.cut(self._square(image, name), self.size)

    def _square(self, image: Image.Image, name: str) -> Image.Image:
        """What the mode makes of the image, side x side."""
        if self.mode == "none":
            if image.size != (self.size, self.size):
                raise UnreadableImage(
                    f"'{name}' has the wrong size",
                    f"it is {image.width} x {image.height} pixels, the tokenizer reads {self.size} x {self.size}",
                    "use --preprocess resize-crop or fit",
                )
            return image
        if self.mode == "adm":
            return _adm_crop(image, self.side, name)
        return _center_crop(resize(image, self.shorter_edge, name), self.side)


def check_option(asked: str | None, views: Views = SINGLE_VIEW) -> None:
    """Raises: UsageError for what `Preprocess.choose` would refuse, whatever the default mode."""
    Preprocess.choose(asked, MODES[0], size=1, views=views)


def current_description(text: str) -> str:
    """A description as this version writes it. Earlier ones said nothing about decoding, and did the same."""
    try:
        return str(Preprocess.parse(text))
    except UsageError:  # of a later version
        return text


def load_rgb(path: Path, *, reference: bool = False) -> Image.Image:
    """Read an image file of one of the FORMATS as 8-bit RGB, upright.

    Applies the EXIF orientation, composites transparency over white, converts grayscale, palette, CMYK, YCbCr and 1-bit
    images, and scales 16-bit and floating-point grayscale to 8 bits (see `_to_8_bit`). Takes the first frame of an
    animation. BMP and TGA files whose alpha is 0 everywhere count as opaque: programs leave these bytes unset.

    Args:
        reference: do none of this, but what Pillow's `convert("RGB")` does (`Preprocess.reference`).
    Raises: UnreadableImage if the file is missing, not permitted, not an image, truncated, in a color space that Pillow
        cannot convert, or larger than MAX_PIXELS.
    """
    return read_rgb(lambda: open_regular(path), str(path), reference=reference)


def read_rgb(
    open_file: Callable[[], BinaryIO], name: str, *, reference: bool = False, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """As `load_rgb`, but from what `open_file` opens; errors call it `name`. A larger image is unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow reports odd metadata as warnings; MAX_PIXELS is checked below
            with open_file() as file, Image.open(file, formats=_formats()) as image:
                return _decode(image, name, reference=reference, max_pixels=max_pixels)
    except DECODING_ERRORS as error:
        raise _unreadable(name, _reason(error)) from error


def rgb_of(image: Image.Image, name: str) -> Image.Image:
    """As `load_rgb`, of an image that Pillow has opened already; errors refer to it as `name`."""
    try:
        return _decode(image, name)
    except DECODING_ERRORS as error:
        raise _unreadable(name, _reason(error)) from error


def _decode(image: Image.Image, name: str, *, reference: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    if image.width * image.height > max_pixels:
        raise _unreadable(name, f"{image.width} x {image.height} pixels are more than {max_pixels}")
    image.load()
    return image.convert("RGB") if reference else _to_rgb(_upright(image), image)


def _unreadable(name: str, why: str) -> UnreadableImage:
    return UnreadableImage(f"cannot read '{name}'", why)


def _reason(error: BaseException) -> str:
    """The cause in one line, without the path: token caches store it, and must not contain machine paths."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is not an image of a known format ({', '.join(_formats())})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


@cache
def _formats() -> tuple[str, ...]:
    """The FORMATS that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION)
    except DECODING_ERRORS:  # only the metadata is corrupt: most viewers show such files as they are stored
        return image
    return image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image


def _to_rgb(image: Image.Image, file: Image.Image) -> Image.Image:
    """RGB pixels of an upright image; file: the same as it was opened."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # outlives the open file
    if image.mode == "F" or image.mode.startswith("I"):
        gray_HW = _to_8_bit(np.asarray(image))
        inverted = getattr(file, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO  # Pillow inverts 8 bits only
        return Image.fromarray(~gray_HW if inverted else gray_HW).convert("RGB")
    if image.mode == "RGBA" and file.format in {"BMP", "DIB", "TGA"} and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    if image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(gray_HW: np.ndarray) -> np.ndarray:
    """Scale grayscale values to 0..255.

    Their range is the narrowest of 0..255, 0..65535 and, for floats, 0..1 that contains them. Floats may lie outside by
    OVERSHOOT of the range, and are clipped.

    Raises: ValueError for other values, as their range cannot be inferred.
    """
    low, high = float(gray_HW.min()), float(gray_HW.max())
    is_float = gray_HW.dtype.kind == "f"
    ranges, tolerance = ((1.0, 255.0, 65535.0), OVERSHOOT) if is_float else ((255.0, 65535.0), 0.0)
    white = next((top for top in ranges if high <= top * (1 + tolerance)), None)
    if white is None or not low >= -tolerance * white:  # also true of NaN
        raise ValueError(f"its values run from {low:g} to {high:g}, which is neither 8 nor 16 bits")
    return np.rint(gray_HW.clip(0, white).astype(np.float64) * (255.0 / white)).astype(np.uint8)


def resize(image: Image.Image, shorter_edge: int, name: str) -> Image.Image:
    """Scale the shorter edge to that many pixels; the longer one is rounded down, as torchvision does."""
    short, long = sorted(image.size)
    longer_edge = int(shorter_edge * long / short)
    if shorter_edge * longer_edge > MAX_PIXELS:
        raise _unreadable(name, f"{image.width} x {image.height} pixels is too elongated to be scaled")
    size = (shorter_edge, longer_edge) if image.width <= image.height else (longer_edge, shorter_edge)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _adm_crop(image: Image.Image, size: int, name: str) -> Image.Image:
    """The center crop of ADM's code. Halving by boxes keeps bicubic filtering, which is sharp, from aliasing."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(edge * scale) for edge in image.size)
    if width * height > MAX_PIXELS:
        raise _unreadable(name, f"{image.width} x {image.height} pixels is too elongated to be scaled")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    # round() rounds halves to even, as torchvision does
    left, top = (round((edge - size) / 2.0) for edge in image.size)
    return image.crop((left, top, left + size, top + size))
