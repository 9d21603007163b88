"""Images of 1,000 Chinese characters in fonts that Debian packages, and in other fonts for testing.

The characters are drawn (seed 0) from those that China, Taiwan and Japan all count among their most common ones. An
image is white on black, with the ink's bounding box in its center. Training images are turned, scaled and shifted a
little, at random; test images are not.

Shapes: S side in pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avarc_cli.errors import UsageError

SIDE = 32  # pixels
EM = 28  # pixels that a font's em takes
COMMON = (("gb2312", 0xB0, 0xD7), ("big5", 0xA4, 0xC6), ("euc_jp", 0xB0, 0xCF))  # first bytes of the common characters
FOLDERS = (Path("/usr/share/fonts"), Path.home() / ".fonts")


@dataclass(frozen=True)
class Font:
    """A font of a Debian package."""

    package: str
    file: str  # name


# No test font has a relative among the training fonts: Motoya's other font and what is derived from Droid (WenQuanYi
# Micro Hei) are left out.
TRAINING = (
    Font("fonts-noto-cjk", "NotoSansCJK-Regular.ttc"),
    Font("fonts-noto-cjk", "NotoSansCJK-Bold.ttc"),
    Font("fonts-noto-cjk", "NotoSerifCJK-Regular.ttc"),
    Font("fonts-noto-cjk", "NotoSerifCJK-Bold.ttc"),
    Font("fonts-wqy-zenhei", "wqy-zenhei.ttc"),
    Font("fonts-arphic-uming", "uming.ttc"),
    Font("fonts-arphic-ukai", "ukai.ttc"),
    Font("fonts-arphic-gbsn00lp", "gbsn00lp.ttf"),
    Font("fonts-arphic-bsmi00lp", "bsmi00lp.ttf"),
    Font("fonts-arphic-gkai00mp", "gkai00mp.ttf"),
    Font("fonts-arphic-bkai00mp", "bkai00mp.ttf"),
    Font("fonts-hanazono", "HanaMinA.ttf"),
    Font("fonts-ipafont-gothic", "ipag.ttf"),
    Font("fonts-ipafont-mincho", "ipam.ttf"),
    Font("fonts-vlgothic", "VL-Gothic-Regular.ttf"),
    Font("fonts-cwtex-ming", "cwming.ttf"),
    Font("fonts-cwtex-kai", "cwkai.ttf"),
    Font("fonts-cwtex-heib", "cwheib.ttf"),
    Font("fonts-cwtex-yen", "cwyen.ttf"),
    Font("fonts-cwtex-fs", "cwfs.ttf"),
    Font("fonts-umeplus", "umeplus-gothic.ttf"),
    Font("fonts-komatuna", "komatuna.ttf"),
    Font("fonts-seto", "setofont.ttf"),
    Font("fonts-mplus", "Mplus1-Light.otf"),
    Font("fonts-mplus", "Mplus1-Bold.otf"),
    Font("fonts-horai-umefont", "ume-hgo4.ttf"),
    Font("fonts-cns11643-kai", "TW-Kai-98_1.ttf"),
    Font("fonts-cns11643-sung", "TW-Sung-98_1.ttf"),
    Font("fonts-dejima-mincho", "dejima-mincho-r227.ttf"),
)
TEST = (
    Font("fonts-droid-fallback", "DroidSansFallbackFull.ttf"),
    Font("fonts-motoya-l-cedar", "MTLc3m.ttf"),
    Font("fonts-konatu", "Konatu.ttf"),
    Font("fonts-lxgw-wenkai", "LXGWWenKai-Regular.ttf"),
)


def common_characters() -> list[str]:
    """The characters that all of `COMMON` have, in the order of Unicode."""
    return [c for c in map(chr, range(0x4E00, 0xA000)) if all(_is_common(c, *encoding) for encoding in COMMON)]


def _is_common(character: str, encoding: str, first: int, last: int) -> bool:
    encoded = character.encode(encoding, errors="ignore")
    return len(encoded) == 2 and first <= encoded[0] <= last


def choose(count: int, skip: int = 0) -> list[str]:
    """This many of them, in a random order after the first `skip`, sorted."""
    order = np.random.default_rng(0).permutation(common_characters())
    return sorted(order[skip : skip + count].tolist())


def find(fonts: Sequence[Font]) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Their file names and glyphs. Raises: UsageError that names the missing packages."""
    installed = {path.name: path for folder in FOLDERS for path in folder.rglob("*") if path.is_file()}
    missing = sorted({font.package for font in fonts if font.file not in installed})
    if missing:
        raise UsageError(
            f"{len(missing)} of the fonts' packages are missing",
            ", ".join(missing),
            f"apt-get install --no-install-recommends {' '.join(missing)}",
        )
    return [(font.file, ImageFont.truetype(installed[font.file], EM)) for font in fonts]


def draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """White on black (S, S), the middle of the ink in the middle. Raises: ValueError if the font has no such glyph."""
    left, top, right, bottom = font.getbbox(character)
    if bytes(font.getmask(character)) in (b"", bytes(font.getmask("\uffff"))):
        raise ValueError(f"{font.getname()} has no '{character}'")
    image = Image.new("L", (SIDE, SIDE))
    place = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
    ImageDraw.Draw(image).text(place, character, fill=255, font=font)
    return image


def distorted(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Turned by up to 3 degrees, scaled by up to 6 % in each direction, and shifted by up to 1 pixel."""
    angle, (zoom_x, zoom_y), (x, y) = random.uniform(-3, 3), random.uniform(0.94, 1.06, 2), random.uniform(-1, 1, 2)
    cos, sin, middle = np.cos(np.radians(angle)), np.sin(np.radians(angle)), (SIDE - 1) / 2
    rows = np.array([[zoom_x * cos, -zoom_y * sin], [zoom_x * sin, zoom_y * cos]])
    shift = middle - rows @ [middle + x, middle + y]
    data = (*rows[0], shift[0], *rows[1], shift[1])
    return image.transform((SIDE, SIDE), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)


def write_images(
    folder: Path, characters: Sequence[str], fonts: Sequence[tuple[str, ImageFont.FreeTypeFont]], versions: int
) -> int:
    """Write FOLDER/<code point>/<font>-<version>.png; returns how many. Version 0 is not distorted.

    Every image has its own random numbers: it does not depend on which other images are written.
    """
    for name, font in fonts:
        for character in characters:
            (folder / f"{ord(character):x}").mkdir(parents=True, exist_ok=True)
            image = draw(character, font)
            for version in range(versions):
                file = folder / f"{ord(character):x}" / f"{Path(name).stem}-{version}.png"
                random = np.random.default_rng([ord(character), zlib.crc32(name.encode()), version])
                (distorted(image, random) if version else image).save(file)
    return len(fonts) * len(characters) * versions
