"""Pictures of images, drawn with Pillow: a contact sheet with probabilities as bars, and a grid with class names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avarc_cli.storage import replacing

SIDE, BAR_HEIGHT, GAP, MARGIN = 128, 18, 6, 16  # pixels
PAPER, INK, MUTED = (255, 255, 255), (33, 37, 41), (134, 142, 150)
BEST, OTHER, WRONG = (0, 114, 178), (173, 198, 217), (213, 94, 0)  # Okabe and Ito: distinct with color blindness too


def contact_sheet(
    pixels: Sequence[np.ndarray], ranked: Sequence[list[tuple[str, float]]], labels: Sequence[str | None], path: Path
) -> None:
    """Write a PNG with one column per image: the image, its label, and its best classes with probabilities.

    Args:
        pixels: (H, H, 3) uint8 each. ranked: (class name, probability), best first. labels: true names or None.
    """
    bars = max(len(r) for r in ranked)
    column = SIDE + MARGIN
    font = ImageFont.load_default(12)
    height = MARGIN + SIDE + GAP + 18 + bars * (BAR_HEIGHT + GAP) + MARGIN
    sheet = Image.new("RGB", (MARGIN + column * len(pixels), height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (image, best, label) in enumerate(zip(pixels, ranked, labels, strict=True)):
        x, y = MARGIN + i * column, MARGIN
        sheet.paste(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
        y += SIDE + GAP
        if label is not None:
            draw.text((x, y), f"label: {label}", MUTED, font)
        y += 18
        for rank, (name, probability) in enumerate(best):
            wrong = label is not None and rank == 0 and name != label
            color = WRONG if wrong else BEST if rank == 0 else OTHER
            draw.rectangle((x, y, x + max(1, round(probability * SIDE)), y + BAR_HEIGHT), color)
            inside = probability > 0.6
            text, text_x = f"{name}  {probability:.1%}", x + 4 if inside else x + round(probability * SIDE) + 4
            draw.text((text_x, y + 2), text, PAPER if inside else INK, font)
            y += BAR_HEIGHT + GAP
    _write(sheet, path)


def grid(pixels_KNHH3: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Write a PNG with one row per class: its name, then its images. Small images are enlarged without smoothing.

    Args:
        pixels_KNHH3: uint8, N images of each of K classes. names: of the classes.
    """
    classes, count, side = pixels_KNHH3.shape[:3]
    shown = side * max(1, SIDE // side)
    font = ImageFont.load_default(14)
    left = MARGIN + GAP + round(max(font.getlength(name) for name in names))
    sheet = Image.new("RGB", (left + count * (shown + GAP) + MARGIN, classes * (shown + GAP) + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for k, (name, row) in enumerate(zip(names, pixels_KNHH3, strict=True)):
        y = MARGIN + k * (shown + GAP)
        draw.text((left - GAP, y + shown / 2), name, INK, font, anchor="rm")
        for n, image in enumerate(row):
            enlarged = Image.fromarray(image).resize((shown, shown), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + GAP + n * (shown + GAP), y))
    _write(sheet, path)


def _write(sheet: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
