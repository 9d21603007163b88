"""Small pictures of four things out of doors, for the tutorial: boats, houses, suns, trees.

Run `python tests/benchmarks/scenes.py FOLDER [--train 150] [--test 60] [--side 48]` to write FOLDER/train/<class>/*.jpg
and FOLDER/test/<class>/*.jpg, and FOLDER/sheet.png with the first of them. Sky, ground, colours, size and place are
drawn at random, alike for all classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SCALE = 4  # drawn larger by this, then reduced: smooth edges
Color = tuple[int, int, int]
Draw = Callable[[ImageDraw.ImageDraw, float, float, float, np.random.Generator], None]
"""(where to draw, x of the middle, y of the foot, size, random numbers)."""


def color(low: Color, high: Color, random: np.random.Generator) -> Color:
    """One between two colors."""
    red, green, blue = (int(value) for value in random.integers(low, np.array(high) + 1))
    return red, green, blue


def boat(pen: ImageDraw.ImageDraw, x: float, y: float, s: float, random: np.random.Generator) -> None:
    hull, sail = color((90, 20, 10), (200, 60, 60), random), color((225, 225, 205), (255, 255, 255), random)
    pen.polygon([(x - s / 2, y - s / 4), (x + s / 2, y - s / 4), (x + s / 3, y), (x - s / 3, y)], fill=hull)
    pen.polygon([(x, y - s), (x, y - s / 3), (x + s / 2.4, y - s / 3)], fill=sail)
    pen.polygon([(x - s / 20, y - s / 1.2), (x - s / 20, y - s / 3), (x - s / 3, y - s / 3)], fill=sail)


def house(pen: ImageDraw.ImageDraw, x: float, y: float, s: float, random: np.random.Generator) -> None:
    wall, roof = color((190, 160, 110), (250, 235, 200), random), color((120, 30, 20), (190, 80, 60), random)
    pen.rectangle([x - s / 2.4, y - s / 1.8, x + s / 2.4, y], fill=wall)
    pen.polygon([(x - s / 1.9, y - s / 1.8), (x, y - s), (x + s / 1.9, y - s / 1.8)], fill=roof)
    pen.rectangle([x - s / 10, y - s / 3, x + s / 10, y], fill=(70, 45, 30))


def sun(pen: ImageDraw.ImageDraw, x: float, y: float, s: float, random: np.random.Generator) -> None:
    disc, middle = color((245, 170, 20), (255, 230, 90), random), y - s / 1.3
    for angle in np.arange(8) * np.pi / 4 + random.uniform(0, 1):
        end = x + s / 1.7 * np.cos(angle), middle + s / 1.7 * np.sin(angle)
        pen.line([(x, middle), end], fill=disc, width=max(1, round(s / 12)))
    pen.ellipse([x - s / 3, middle - s / 3, x + s / 3, middle + s / 3], fill=disc)


def tree(pen: ImageDraw.ImageDraw, x: float, y: float, s: float, random: np.random.Generator) -> None:
    leaves = color((10, 70, 20), (50, 130, 60), random)
    pen.rectangle([x - s / 14, y - s / 3, x + s / 14, y], fill=color((80, 50, 30), (120, 80, 50), random))
    for dx, dy, r in ((0, 0.72, 0.28), (-0.2, 0.5, 0.24), (0.2, 0.5, 0.24)):
        pen.ellipse([x + s * (dx - r), y - s * (dy + r), x + s * (dx + r), y - s * (dy - r)], fill=leaves)


CLASSES: Mapping[str, Draw] = MappingProxyType({"boat": boat, "house": house, "sun": sun, "tree": tree})


def scene(name: str, random: np.random.Generator, side: int) -> Image.Image:
    """One picture of a class, (side, side) pixels."""
    large = side * SCALE
    horizon = random.uniform(0.6, 0.75) * large
    image = Image.new("RGB", (large, large), color((120, 170, 220), (190, 220, 250), random))
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, horizon, large, large], fill=color((60, 110, 60), (150, 170, 110), random))
    x, y = random.uniform(0.38, 0.62) * large, horizon + random.uniform(0.05, 0.2) * large
    CLASSES[name](pen, x, y, random.uniform(0.5, 0.7) * large, random)
    image = image.resize((side, side), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(random.uniform(0, 0.6)))
    grainy = np.asarray(image) + random.normal(0, 4, (side, side, 3))
    return Image.fromarray(grainy.clip(0, 255).astype(np.uint8))


def write_scenes(folder: Path, images: int, *, side: int, seed: int) -> None:
    """Write FOLDER/<class>/*.jpg, this many of each class. A picture depends on class, number and seed alone."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            picture = scene(name, np.random.default_rng([seed, number, i]), side)
            picture.save(folder / name / f"{i:04d}.jpg", quality=92)


def write_sheet(path: Path, side: int, columns: int = 6) -> None:
    """Write the first pictures of each class as one, a row each."""
    step = side + 2
    sheet = Image.new("RGB", (columns * step - 2, len(CLASSES) * step - 2), "white")
    for row, name in enumerate(CLASSES):
        for column in range(columns):
            sheet.paste(scene(name, np.random.default_rng([0, row, column]), side), (column * step, row * step))
    sheet.quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=150, help="images of a class")
    parser.add_argument("--test", type=int, default=60, help="images of a class")
    parser.add_argument("--side", type=int, default=48, help="pixels")
    options = parser.parse_args()
    write_scenes(options.folder / "train", options.train, side=options.side, seed=0)
    write_scenes(options.folder / "test", options.test, side=options.side, seed=1)
    write_sheet(options.folder / "sheet.png", options.side)
