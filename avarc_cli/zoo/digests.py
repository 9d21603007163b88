"""The digests by which files of the hub are verified: sha256 of large files, and git's own of small ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from avarc_cli.zoo.weights_index import HASH_BLOCK, sha256_of_file

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT = re.compile(r"[0-9a-f]{40}")


def is_digest(text: str) -> bool:
    """Whether a text is one of either kind, in hex."""
    return _SHA256.fullmatch(text) is not None or is_git(text)


def is_git(text: str) -> bool:
    """Whether a digest is git's: the sha1 of a file as git stores it."""
    return _GIT.fullmatch(text) is not None


def of_file(path: Path, like: str, progress: Callable[[int], None] = lambda done: None) -> str:
    """The digest of a file of the same kind as `like`, in hex.

    Args:
        progress: called with the number of bytes read.
    Raises: OSError, CheckpointError.
    """
    if not is_git(like):
        return sha256_of_file(path, progress)
    sha1, done = hashlib.sha1(b"blob %d\0" % path.stat().st_size), 0
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            sha1.update(block)
            done += len(block)
            progress(done)
    return sha1.hexdigest()
