"""A token cache to the files of other programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avarc_cli import outputs
from avarc_cli.data.labels import UNKNOWN, imagenet1k
from avarc_cli.data.views import TEN_CROP
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.progress import Progress, no_progress
from avarc_cli.storage import new_folder, replacing
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.interchange import arrays, json_lines, llamagen, npy, randar
from avarc_cli.tokens.verify import read_verified
from avarc_cli.words import counted
from avarc_cli.work.locks import only_writer

LLAMAGEN, RANDAR, JSONL, NPY, NPZ = FORMATS = ("llamagen", "randar", "jsonl", "npy", "npz")
FOLDERS = (LLAMAGEN, RANDAR)

CROPS = [1, 2, 3, 4, 0, 6, 7, 8, 9, 5]
"""Our ten crops, the center first, in the order of torchvision's TenCrop, which the other programs use."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    """The file or folder."""
    format: str
    """One of FORMATS."""
    images: int
    """N."""
    views: int
    """S."""
    numbering: str
    """What the class numbers are, in words."""


def choose_format(out: Path, asked: str | None) -> str:
    """The format that the user names, or the one that the output's suffix tells. Raises: UsageError."""
    suffix = out.suffix.lower().removeprefix(".")
    if asked is not None and asked not in FORMATS:
        raise UsageError(f"no format '{asked}'", f"there are {', '.join(FORMATS)}")
    if asked is None and suffix not in FORMATS:
        fix = f"add --format {LLAMAGEN} or {RANDAR} for a folder, or name a file ending in .{JSONL}, .{NPY} or .{NPZ}"
        raise UsageError(f"which format is '{out}' to have?", fix=fix)
    return asked or suffix


def check_output(out: Path, format: str, cache: Path, *, overwrite: bool) -> None:
    """Raises: UsageError where the export would destroy something, or has a name that import does not read."""
    if format in FOLDERS:
        if overwrite:
            raise UsageError("no use for --overwrite", "a folder is never replaced", "delete it first, or name another")
        outputs.check_new_folder(out)
        return
    kind = {JSONL: outputs.JSON_LINES, NPY: outputs.NPY, NPZ: outputs.NPZ}[format]
    for path in (out, arrays.labels_beside(out)) if format == NPY else (out,):
        outputs.check_output(path, kind, overwrite=overwrite, inputs=[cache])


def export_codes(
    cache: Path, out: Path, format: str, *, overwrite: bool = False, progress: Progress = no_progress
) -> Exported:
    """Write the tokens and labels of a cache; `out` appears in one step.

    Args:
        format: one of FORMATS. "npy" also writes the labels, to the file that `arrays.labels_beside` names.
        progress: called with images done and in all.
    Raises: UsageError as `check_output`, and for images without a class where the format has no place for them;
        for continuous tokens in any format but "npy" and "npz";
        CacheError when the cache cannot be read, is partial or corrupt; AvarcError when `out` cannot be written.
    """
    check_output(out, format, cache, overwrite=overwrite)
    opened = read_verified(cache)
    if opened.header.channels and format not in (NPY, NPZ):
        why = f"it holds continuous tokens, made by {opened.header.tokenizer}; this format has codes"
        raise UsageError(f"cannot export '{cache}' as {format}", why, f"use --format {NPY} or {NPZ}")
    numbers, numbering = class_numbers(opened.header.class_names)
    labels = np.array([*numbers, UNKNOWN], dtype=np.int64)[opened.labels]
    unknown = int((labels == UNKNOWN).sum())
    if format == RANDAR and unknown:
        why = f"its folders are called after classes, and the class of {counted(unknown, 'image')} is unknown"
        raise UsageError(
            f"cannot export '{cache}' to {RANDAR.title()}'s folders", why, f"export to {LLAMAGEN} or {JSONL}"
        )
    blocks = _blocks(opened, format, progress)
    try:
        with only_writer(out):
            _write(out, format, opened, labels, blocks)
    except OSError as error:
        fix = "free some space or name another place"
        raise AvarcError(f"cannot write '{out}'", error.strerror or str(error), fix) from error
    return Exported(out, format, len(opened), opened.header.samples, numbering)


def class_numbers(class_names: Sequence[str]) -> tuple[list[int], str]:
    """The number of each class in other programs' files, and what it is, in words.

    Classes that are called after numbers keep these; synsets get their indices in ImageNet-1k; any others are counted
    in the order of the cache's class names.
    """
    if all(name.isascii() and name.isdecimal() and name == str(int(name)) for name in class_names):
        return [int(name) for name in class_names], "class numbers"
    index = {synset: number for number, synset in enumerate(imagenet1k().ids)}
    if all(name in index for name in class_names):
        return [index[name] for name in class_names], "indices of ImageNet-1k"
    return list(range(len(class_names))), "positions in the cache's class names"


def _blocks(cache: TokenCache, format: str, progress: Progress) -> Iterator[np.ndarray]:
    """Tokens of consecutive images, (n, S, L), with the views in the format's order."""
    reorder = cache.header.views == TEN_CROP and cache.header.samples == len(CROPS) and format not in (NPY, NPZ)
    done = 0
    for tokens, _ in cache.blocks():
        progress(done, len(cache))
        yield tokens[:, CROPS] if reorder else tokens
        done += len(tokens)
    progress(done, len(cache))


def _write(out: Path, format: str, cache: TokenCache, labels: np.ndarray, blocks: Iterator[np.ndarray]) -> None:
    form = cache.header.form
    if format in FOLDERS:
        with new_folder(out) as folder:
            if format == LLAMAGEN:
                llamagen.write(folder, cache.header.image_size, labels, blocks)
            else:
                randar.write(folder, labels, blocks)
        return
    with ExitStack() as stack:
        if format == NPY:
            beside = arrays.labels_beside(out)
            stack.enter_context(only_writer(beside))
            stack.enter_context(replacing(beside)).write_bytes(npy.to_bytes(labels, np.int64))
        with replacing(out) as temporary, temporary.open("wb") as file:
            if format == JSONL:
                json_lines.write(file, labels, blocks)
            elif format == NPY:
                arrays.write_npy(file, len(cache), form, blocks)
            else:
                arrays.write_npz(file, form, labels, blocks)
