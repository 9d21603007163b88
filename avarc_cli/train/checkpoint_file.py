"""The file of an unfinished training: an archive by torch.save, then the sha256 of all bytes before it.

The digest is the comment of the zip archive, so torch reads the file as any other. Format 1 had none.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch

from avarc_cli.errors import CheckpointError, first_line
from avarc_cli.storage import replacing
from avarc_cli.zip_check import check_zip

FORMAT = 2
MARK = b"sha256:"
COMMENT_LENGTH = len(MARK) + 64
PIECE = 1 << 20  # bytes hashed at once


def write(path: Path, state: dict[str, Any]) -> None:
    """Write or replace a checkpoint in one step. Raises: OSError."""
    with replacing(path) as temporary, temporary.open("w+b") as file:
        # To a file object: given a name, torch stores it in the archive, and the temporary name is random.
        try:
            torch.save(state | {"format": FORMAT}, file)
        except RuntimeError as error:  # of ending an archive that could not be written
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.seek(-2, os.SEEK_END)  # the length of the comment ends the archive, 0 so far
        file.write(COMMENT_LENGTH.to_bytes(2, "little") + MARK)
        digest = _digest(file, file.tell())
        file.write(digest)


def read(path: Path) -> tuple[dict[str, Any], bool]:
    """What `write` stored, with tensors on the CPU.

    Returns: the state, and whether its digest was verified, which only files of format 1 lack.
    Raises: CheckpointError unless the file is complete and unchanged.
    """
    try:
        verified = _verify(path)
        check_zip(path)  # the only checksums of format 1; torch does not compare them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about newer pickles
            state = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(state, dict):
            raise ValueError(f"it contains a {type(state).__name__}")
        if state.get("format", 1) != (FORMAT if verified else 1):
            raise ValueError("its digest is missing, or of another format")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # the unpickler may raise anything on corrupt data
        raise corrupt(path, first_line(error)) from None
    return state, verified


def corrupt(path: Path, why: str) -> CheckpointError:
    """The error for a checkpoint that cannot be used."""
    return CheckpointError(f"{path} is corrupt, or no training checkpoint", why, f"delete {path} to start over")


def _verify(path: Path) -> bool:
    """Whether there is a digest. Raises: ValueError when it is another file's; OSError."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END) - 64
        file.seek(max(0, length - len(MARK)))
        if file.read(len(MARK)) != MARK:
            return False
        written = file.read()
        if written != _digest(file, length):
            raise ValueError("its content differs from its digest")
    return True


def _digest(file: BinaryIO, length: int) -> bytes:
    """The sha256 of the first `length` bytes, in hex; the file's position is then behind them."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while piece := file.read(min(length, PIECE)):
        sha256.update(piece)
        length -= len(piece)
    return sha256.hexdigest().encode()
