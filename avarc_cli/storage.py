"""Writing files so that, whenever the process dies, a name stands for complete content: the old or the new.

New content is written under a temporary name in the same folder, flushed to the disk, and renamed. Temporary names are
random and created exclusively, so writers never share one, and nothing that already has such a name is written to.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

TEMPORARY = ".tmp"
"""Suffix of temporary names: `NAME.1f83d9ab.tmp`."""

MAX_NAME = 255
"""Bytes of the name of a file on nearly all file systems."""

MANY = 1000
"""Files of a new folder that are flushed one by one; more of them are flushed with all disks at once."""

# Only with the random part: a NAME.tmp may be the user's.
_LEFTOVER = re.compile(rf"(?P<name>.+?)\.[0-9a-f]{{8}}{re.escape(TEMPORARY)}", re.DOTALL)
# Some file systems cannot flush a folder, and one without read permission cannot be opened for it.
_FOLDER_NOT_FLUSHED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES})


def beside(path: Path, suffix: str) -> Path:
    """The file or folder that accompanies `path`: its name with a suffix, as in `OUT.lock`.

    The end of a name that has no room for the suffix gives way to a digest of the name.
    """
    name = path.name
    if len(os.fsencode(name + suffix)) > MAX_NAME:
        suffix = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{suffix}"
        while len(os.fsencode(name + suffix)) > MAX_NAME:
            name = name[:-1]
    return path.parent / (name + suffix)  # not with_name, which refuses a folder like "."


def write_bytes(path: Path, data: bytes) -> None:
    """Write or replace a file in one step. Raises: OSError; then the file is as it was."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file; at the end of the block it replaces `path` in one step.

    If the block raises, `path` stays as it was. A process that is killed in the block leaves the temporary file behind
    (`remove_leftovers`).

    Raises: OSError.
    """
    temporary = _make_temporary(path, _create_file)
    try:
        yield temporary
        move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # at once: on a full disk every byte counts
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary folder; at the end of the block it becomes `path`, with what is in it.

    If the block raises, there is no folder. Raises: OSError, also when `path` exists and is not an empty folder.
    """
    temporary = _make_temporary(path, Path.mkdir)
    try:
        yield temporary
        files = list(islice(temporary.rglob("*"), MANY + 1))
        if len(files) > MANY:
            os.sync()
        else:
            for file in (*files, temporary):
                _flush(file)
        os.rename(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def move_into_place(source: Path, path: Path) -> None:
    """Flush a complete file to the disk, then rename it, replacing what has the name `path`. Raises: OSError."""
    _flush(source)
    os.replace(source, path)
    _flush_folder(path.parent)


def check_space(path: Path, size: int) -> None:
    """Raises: OSError unless `size` bytes can be written to `path` now (full disk, quota, limit on file sizes)."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    temporary = _make_temporary(path, _create_file)
    try:
        with temporary.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, is_unused: Callable[[str], bool] = lambda name: True) -> None:
    """Delete the temporary files and folders that killed processes left in a folder.

    Args:
        is_unused: whether no process can be writing the file of this name now. Temporaries of other names are kept.
    Raises: OSError.
    """
    for path in folder.glob(f"*{TEMPORARY}"):
        found = _LEFTOVER.fullmatch(path.name)
        if found is None or not is_unused(found["name"]):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_leftovers_of(path: Path) -> None:
    """As `remove_leftovers`, of one file or folder, which no process may be writing now. Raises: OSError."""
    own = _LEFTOVER.fullmatch(_temporary(path, "0" * 8).name)
    assert own is not None
    remove_leftovers(path.parent, lambda name: name == own["name"])


def _make_temporary(path: Path, make: Callable[[Path], None]) -> Path:
    while True:
        temporary = _temporary(path, os.urandom(4).hex())
        try:
            make(temporary)
        except FileExistsError:
            continue
        return temporary


def _temporary(path: Path, random: str) -> Path:
    return beside(path, f".{random}{TEMPORARY}")


def _create_file(path: Path) -> None:
    # O_EXCL: an existing file, or a link to one, is an error. The umask decides about the mode.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Make a rename durable, where the file system can. The content was flushed before, so it is complete anyway."""
    try:
        _flush(folder)
    except OSError as error:
        if error.errno not in _FOLDER_NOT_FLUSHED:
            raise
