"""Tokens in the files of other programs, written as those programs write them, for tests of importing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from stub_tokenizer import StubTokenizer

from avarc_cli.tokens import TokenCache, read, verify
from avarc_cli.tokens.interchange.importing import import_codes


def write_llamagen(folder: Path, tokens_NSL: np.ndarray, labels_N: np.ndarray, size: int = 8) -> Path:
    """Both folders below a new one, one file an image, as LlamaGen's extract_codes_c2i.py saves them."""
    for name in ("codes", "labels"):
        (folder / f"imagenet{size}_{name}").mkdir(parents=True)
    for i, (tokens_SL, label) in enumerate(zip(tokens_NSL, labels_N, strict=True)):
        np.save(folder / f"imagenet{size}_codes" / f"{i}.npy", tokens_SL[None].astype(np.int64))
        np.save(folder / f"imagenet{size}_labels" / f"{i}.npy", np.array([label], dtype=np.int64))
    return folder


def write_randar(folder: Path, tokens_NSL: np.ndarray, labels_N: np.ndarray) -> Path:
    """A folder for each class, files numbered together."""
    for i, (tokens_SL, label) in enumerate(zip(tokens_NSL, labels_N, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        np.save(folder / str(label) / f"{i}.npy", tokens_SL.astype(np.int64))
    return folder


def write_json_lines(file: Path, tokens_NSL: np.ndarray, labels_N: np.ndarray) -> Path:
    """A line for each view, those of an image one after the other."""
    records = [
        {"class_id": int(label), "tokens": tokens}
        for tokens_SL, label in zip(tokens_NSL.tolist(), labels_N, strict=True)
        for tokens in tokens_SL
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def write_npy(file: Path, tokens_NSL: np.ndarray, labels_N: np.ndarray) -> Path:
    """Tokens, and labels in a file beside them."""
    np.save(file, tokens_NSL.astype(np.int32))
    np.save(file.with_name(f"{file.stem}_labels.npy"), labels_N)
    return file


def write_npz(file: Path, tokens_NSL: np.ndarray, labels_N: np.ndarray) -> Path:
    """Both in one archive."""
    np.savez(file, tokens=tokens_NSL, labels=labels_N)
    return file


def write(kind: str, folder: Path, tokens_NSL: np.ndarray, labels_N: np.ndarray) -> Path:
    """The source of a kind, in a new folder."""
    folder.mkdir()
    if kind == "llamagen":
        return write_llamagen(folder / "codes", tokens_NSL, labels_N)
    if kind == "randar":
        return write_randar(folder / "stub-adm-8_codes", tokens_NSL, labels_N)
    writers = {"jsonl": write_json_lines, "npy": write_npy, "npz": write_npz}
    return writers[kind](folder / f"codes.{kind}", tokens_NSL, labels_N)


def tokens_of(images: int, views: int = 1, seed: int = 0) -> np.ndarray:
    """Tokens of the stub tokenizer at random: (images, views, its length)."""
    shape = (images, views, StubTokenizer.layout.num_tokens)
    return np.random.default_rng(seed).integers(0, StubTokenizer.vocab_size, shape)


def imported(source: Path, out: Path, **options: Any) -> tuple[TokenCache, np.ndarray, np.ndarray]:
    """The cache that a source is imported to: itself, its tokens, its labels."""
    import_codes(source, StubTokenizer(), out, **options)
    cache = read(out)
    assert not verify(cache).corrupt
    return cache, cache.tokens(range(len(cache))), cache.labels
