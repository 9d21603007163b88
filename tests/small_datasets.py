"""Small datasets on disk, in the layouts that users have."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int = 0, format: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    """An encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def fill(root: Path, *names: str) -> Path:
    """Small images with these names, each with other pixels; always PNG, whatever the suffix."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(seed))
    return root


def tar(path: Path, members: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file with these members, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def halves(root: Path, count: int = 24) -> Path:
    """Images of 8 x 8 pixels in two classes, `left` and `right`: the half of the image that is bright."""
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 40, (8, 8, 3), dtype=np.uint8)
        pixels[:, slice(0, 4) if i % 2 else slice(4, 8)] += 200
        path = root / ("left" if i % 2 else "right") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def noise(root: Path, count: int, *, classes: int = 4, side: int = 64) -> Path:
    """Images of noise in folders named by class number: image i is of class i % classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / str(i % classes) / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return root
