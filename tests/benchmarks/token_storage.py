"""Ways to store tokens: size, and the time to write and read them. Results: docs/encoding.md.

python tests/benchmarks/token_storage.py [--json]    (hdf5plugin is needed for the blosc2 lines only)
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from figure_tables import Cell, Table, show, wants_json

from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.loading import ModelSpec, load_tokenizer
from avarc_cli.tokens import encode, read
from avarc_cli.zoo.local_files import ASSETS

IMAGES, TOKENS, VOCABULARY, ROWS = 20_000, 680, 4096, 256
DRAWS = 20  # samples of each digit


def ways() -> dict[str, dict[str, Any]]:
    """Name -> arguments of create_dataset. scaleoffset is HDF5's own packing to as many bits as needed."""
    chunk: dict[str, Any] = {"chunks": True}
    found: dict[str, dict[str, Any]] = {
        "raw": {},
        "shuffle + LZF": chunk | {"shuffle": True, "compression": "lzf"},
        "shuffle + gzip 1": chunk | {"shuffle": True, "compression": "gzip", "compression_opts": 1},
        "scaleoffset (12 of 16 bits)": chunk | {"scaleoffset": 0},
    }
    if importlib.util.find_spec("hdf5plugin"):
        import hdf5plugin

        filters = hdf5plugin.Blosc2(cname="zstd", clevel=3, filters=hdf5plugin.Blosc2.BITSHUFFLE)
        found["bitshuffle + zstd 3 (blosc2)"] = chunk | dict(filters)
    return found


def measure(tokens: np.ndarray, options: dict[str, Any], path: Path) -> tuple[float, float, float, float]:
    """Megabytes; seconds to write all, to read all in order, and to read 64 images in 100 random places."""
    if options.get("chunks"):
        options = options | {"chunks": (ROWS, *tokens.shape[1:])}
    begin = time.perf_counter()
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        file.create_dataset("tokens", data=tokens, **options)
    written = time.perf_counter()
    with h5py.File(path, "r") as file:
        for start in range(0, len(tokens), ROWS):
            file["tokens"][start : start + ROWS]
        read = time.perf_counter()
        places = np.random.default_rng(0).integers(0, max(1, len(tokens) - 64), 100)
        for start in places:
            file["tokens"][start : start + 64]
    done = time.perf_counter()
    return path.stat().st_size / 1e6, written - begin, read - written, done - read


def digits() -> np.ndarray:
    """The tokens of the included test images, and of samples near them."""
    tokenizer = load_tokenizer(ModelSpec("digits", device="cpu"))
    pixels = Preprocess(tokenizer.preprocess, tokenizer.image_size)
    with tempfile.TemporaryDirectory() as folder:
        images = open_images([ASSETS / "digits" / "test"])
        cache = read(encode(images, tokenizer, pixels, Path(folder) / "t.h5", samples=DRAWS).path)
        return cache.tokens(range(len(cache)))


def main(*, as_json: bool) -> None:
    rng = np.random.default_rng(0)
    random = rng.integers(0, VOCABULARY, (IMAGES, 1, TOKENS), dtype=np.uint16)
    sets = {f"{IMAGES:,} images of random tokens": random, f"360 digits with {DRAWS} samples each": digits()}
    columns = [("method", ""), ("MB", ".1f"), ("write, s", ".2f"), ("read, s", ".2f"), ("100 random reads, s", ".2f")]
    tables = []
    for title, tokens in sets.items():
        rows: list[list[Cell]] = []
        for way, options in ways().items():
            with tempfile.TemporaryDirectory() as folder:
                rows.append([way, *measure(tokens, options, Path(folder) / "t.h5")])
        tables.append(Table(columns, rows, title))
    show(*tables, as_json=as_json)


if __name__ == "__main__":
    main(as_json=wants_json(sys.argv))
