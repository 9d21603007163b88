"""Folders of tars or tables: which of the files are the dataset, and which only lie beside it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from avarc_cli.data.compressed import check_uncompressed, is_compressed
from avarc_cli.data.folders import count_suffixes, is_skipped
from avarc_cli.data.scanned_input import ScannedInput
from avarc_cli.data.tables import SUFFIXES as TABLE_SUFFIXES
from avarc_cli.data.tables import open_tables
from avarc_cli.data.webdataset import open_shards
from avarc_cli.errors import UsageError, shorten_list

TAR = ".tar"
SPLIT = re.compile(r"(?:^|[-_./=])(train|validation|val|test)(?=[-_./])")  # in the name of a shard or table
SPLITS_OF = {"imagenet-train": {"train"}, "imagenet-val": {"val", "validation"}}
# Tables that programs leave beside the data, with rows that the data have too: Hugging Face datasets' caches, index
# lists and unfinished files, and what Spark, Dask, Delta Lake and others call with an underscore in front.
LEFTOVER = re.compile(r"(.*/)?(_.*|(cache-|tmp|indices[.-])[^/]*)")


def is_container(name: str) -> bool:
    """Whether a file is called like a tar or a table."""
    return os.path.splitext(name)[1].lower() in (TAR, *TABLE_SUFFIXES)


def open_containers(
    folder: str, files: Sequence[str], dataset: str | None, *, allow_outside: bool = False
) -> ScannedInput:
    """List the images in tars, or in tables; all files are of the same kind.

    Args:
        folder: what the names of the files are relative to.
        dataset: as in open_folder.
        allow_outside: as in open_tables.
    Raises: as open_shards and open_tables.
    """
    if files[0].lower().endswith(TAR):
        return open_shards(folder, files, dataset)
    kept = [name for name in files if not LEFTOVER.fullmatch(name if folder else os.path.basename(name))]
    if not kept and len(files) > 1:
        why = f"{shorten_list(files)} are what programs leave beside a dataset: caches, indices, unfinished files"
        raise UsageError(f"'{folder or files[0]}' holds no dataset", why, "to read such a file, name it alone")
    scanned = open_tables(folder, kept or files, dataset, allow_outside=allow_outside)
    left = [name for name in files if name not in kept] if kept else []
    note = f"not read, since programs leave such files beside the data: {shorten_list(left)}"
    return replace(scanned, notes=(*scanned.notes, note)) if left else scanned


def scan_containers(folder: Path, dataset: str | None, *, allow_outside: bool = False) -> ScannedInput | None:
    """List the images in the tars of a folder, or else in its tables; None if it has neither.

    Args:
        allow_outside: as in open_tables.

    Raises: UsageError if the data are compressed, or consist of several splits of which `dataset` selects none; and as
        open_containers.
    """
    names = sorted(_files(folder))
    tars, tables = ([n for n in names if n.lower().endswith(kinds)] for kinds in (TAR, TABLE_SUFFIXES))
    for name in filter(is_compressed, names):
        if not (tars or tables) or (tars and _is_missing_shard(name, tars)):
            check_uncompressed(str(folder / name))
    files = tars or tables
    if not files:
        return None
    chosen = _of_one_split(files, dataset, folder)
    scanned = open_containers(str(folder), chosen, dataset, allow_outside=allow_outside)
    others = Counter(os.path.splitext(n)[1].lower() or "without a suffix" for n in set(names).difference(files))
    note = f"files that are not used: {count_suffixes(others)}"
    return replace(scanned, notes=(*scanned.notes, note)) if others else scanned


def _files(folder: Path) -> list[str]:
    """Names of the files in a folder and its sub-folders, without hidden ones and those that systems make."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path.as_posix() for path in found if not any(map(is_skipped, path.parts))]


def _is_missing_shard(name: str, tars: Sequence[str]) -> bool:
    """Whether a compressed archive is a tar that is not there uncompressed as well."""
    stem, suffix = os.path.splitext(name)
    stem, inner = (stem, TAR) if suffix.lower().startswith(".t") else os.path.splitext(stem)  # x.tgz or x.tar.gz
    return inner.lower() == TAR and stem + TAR not in tars


def _of_one_split(files: list[str], dataset: str | None, folder: Path) -> list[str]:
    """The files of one split. Raises: UsageError if the names contain several splits and the dataset selects none."""
    found = {name: SPLIT.search(name) for name in files}
    splits = {match[1] for match in found.values() if match}
    if len(splits) < 2:
        return files
    chosen = SPLITS_OF.get(dataset or "", set()) & splits
    if not chosen:
        fix = f"name the files of one: '{folder}'/*{min(splits)}*"
        raise UsageError(f"'{folder}' contains several splits", ", ".join(sorted(splits)), fix)
    return [name for name, match in found.items() if match and match[1] in chosen]
