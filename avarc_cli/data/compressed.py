"""Compressed archives. Their files cannot be read in place, so they are refused, wherever they are found."""

from __future__ import annotations

import os

from avarc_cli.errors import UsageError

BY_SUFFIX = {
    **dict.fromkeys((".gz", ".tgz"), "gzip"),
    **dict.fromkeys((".bz2", ".tbz", ".tbz2"), "bzip2"),
    **dict.fromkeys((".xz", ".txz"), "xz"),
    **dict.fromkeys((".zst", ".tzst"), "zstd"),
    **{".zip": "zip", ".7z": "7z", ".rar": "rar", ".lz4": "lz4"},
}
BY_FIRST_BYTES = {  # long enough to be no name, with which a tar begins
    b"\x1f\x8b": "gzip",
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"(\xb5/\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"\x04\x22\x4d\x18": "lz4",
}


def is_compressed(name: str) -> bool:
    """Whether a file is called like a compressed archive."""
    return os.path.splitext(name)[1].lower() in BY_SUFFIX


def check_uncompressed(path: str) -> None:
    """Raises: UsageError for a compressed archive, by its name or its first bytes; OSError."""
    kind = BY_SUFFIX.get(os.path.splitext(path)[1].lower())
    if kind is None:
        with open(path, "rb") as file:
            start = file.read(max(map(len, BY_FIRST_BYTES)))
        kind = next((name for magic, name in BY_FIRST_BYTES.items() if start.startswith(magic)), None)
    if kind is not None:
        why = "images are read in place, which a compressed archive does not allow"
        raise UsageError(f"'{path}' is compressed ({kind})", why, "unpack it into a folder, or into a plain .tar")
