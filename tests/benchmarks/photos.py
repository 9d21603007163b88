"""Pictures like photos of four surfaces: bricks, grass, pebbles, ripples. Their colours and brightness tell nothing.

Every picture has its own colours, drawn alike for all classes, its own light from one side, scale, turn, blur, grain.

Run `python tests/benchmarks/photos.py FOLDER [--train 200] [--test 50] [--side 72]` to write FOLDER/train/<class>/*.png
and FOLDER/test/<class>/*.png.

Shapes: H height, W width in pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageFilter

Height = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""From coordinates (H, W), in units of about ten to a picture, to a relief (H, W) in [0, 1]."""


def bricks(x_HW: np.ndarray, y_HW: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rows of bricks, each row moved by half a brick, with mortar between them."""
    length, joint = random.uniform(1.7, 2.4), random.uniform(0.10, 0.16)
    row_HW = np.floor(y_HW)
    along_HW = x_HW / length + 0.5 * (row_HW % 2)
    inside_HW = (y_HW % 1 > joint) & (along_HW % 1 > joint / length)
    shade_HW = random.uniform(0.55, 1.0, (64, 64))[row_HW.astype(int) % 64, np.floor(along_HW).astype(int) % 64]
    return np.where(inside_HW, shade_HW, 0.1)


def grass(x_HW: np.ndarray, y_HW: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Blades that grow from below, each bent its own way, those in front over those behind."""
    relief_HW = np.zeros_like(x_HW)
    for _ in range(140):
        foot_x, foot_y = random.uniform(x_HW.min() - 1, x_HW.max() + 1), random.uniform(y_HW.min(), y_HW.max() + 2)
        height, bend, width = random.uniform(1.5, 3.5), random.normal(0, 0.5), random.uniform(0.06, 0.14)
        up_HW = (foot_y - y_HW) / height
        blade_HW = np.abs(x_HW - foot_x - bend * up_HW**2) < width * (1 - up_HW)
        relief_HW = np.where(blade_HW & (up_HW > 0), random.uniform(0.35, 1.0), relief_HW)
    return relief_HW


def pebbles(x_HW: np.ndarray, y_HW: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Round stones of several sizes, one on another."""
    relief_HW = np.zeros_like(x_HW)
    for _ in range(130):
        middle_x, middle_y = random.uniform(x_HW.min(), x_HW.max()), random.uniform(y_HW.min(), y_HW.max())
        radius, flat = random.uniform(0.4, 1.1), random.uniform(0.7, 1.0)
        inside_HW = 1 - ((x_HW - middle_x) / radius) ** 2 - ((y_HW - middle_y) / (radius * flat)) ** 2
        relief_HW = np.where(inside_HW > 0, 0.2 + 0.8 * np.sqrt(inside_HW.clip(0)), relief_HW)
    return relief_HW


def ripples(x_HW: np.ndarray, y_HW: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Waves on water that run in nearly one direction."""
    relief_HW, main = np.zeros_like(x_HW), random.uniform(0, np.pi)
    for _ in range(5):
        angle, length = main + random.normal(0, 0.25), random.uniform(0.8, 2.0)
        along_HW = np.cos(angle) * x_HW + np.sin(angle) * y_HW
        relief_HW += np.sin(2 * np.pi * along_HW / length + random.uniform(0, 7))
    low, high = float(relief_HW.min()), float(relief_HW.max())
    return (relief_HW - low) / (high - low)


CLASSES: Mapping[str, Height] = MappingProxyType(
    {"bricks": bricks, "grass": grass, "pebbles": pebbles, "ripples": ripples}
)


def draw(name: str, random: np.random.Generator, side: int) -> Image.Image:
    """One picture of a class; its shorter side has this many pixels."""
    width, height = side + random.integers(0, side // 3 + 1), side
    angle, scale = random.normal(0, 0.15), random.uniform(6, 9) / side
    y_HW, x_HW = np.mgrid[:height, :width] * scale
    turned_x, turned_y = np.cos(angle) * x_HW - np.sin(angle) * y_HW, np.sin(angle) * x_HW + np.cos(angle) * y_HW
    relief_HW = CLASSES[name](turned_x + random.uniform(0, 9), turned_y + random.uniform(0, 9), random)
    slope_y, slope_x = np.gradient(relief_HW)
    direction = random.uniform(0, 2 * np.pi)
    lit_HW = relief_HW + 0.8 * (np.cos(direction) * slope_x + np.sin(direction) * slope_y)
    lit_HW += random.uniform(0.1, 0.5) * (np.cos(direction) * x_HW + np.sin(direction) * y_HW) / 9
    lit_HW = (lit_HW - lit_HW.mean()) / lit_HW.std()
    dark_3, bright_3 = random.uniform(0.05, 0.5, 3), random.uniform(0.5, 0.95, 3)
    mixed_HW1 = (0.5 + random.uniform(0.2, 0.35) * lit_HW).clip(0, 1)[..., None]
    pixels_HW3 = dark_3 + (bright_3 - dark_3) * mixed_HW1 + random.normal(0, 0.03, (*lit_HW.shape, 3))
    image = Image.fromarray((255 * pixels_HW3.clip(0, 1)).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.8)))


def write_photos(folder: Path, images: int, *, side: int, seed: int) -> None:
    """Write FOLDER/<class>/*.png, this many of each class. An image depends on class, number and seed alone."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            draw(name, np.random.default_rng([seed, number, i]), side).save(folder / name / f"{i:04d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=200, help="images of a class")
    parser.add_argument("--test", type=int, default=50, help="images of a class")
    parser.add_argument("--side", type=int, default=72, help="shorter side, pixels")
    options = parser.parse_args()
    write_photos(options.folder / "train", options.train, side=options.side, seed=0)
    write_photos(options.folder / "test", options.test, side=options.side, seed=1)
