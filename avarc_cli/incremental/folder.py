"""The folder of a protocol: its request in run.json, a lock while a process works in it, and where tokens are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avarc_cli.errors import UsageError, describe_differences
from avarc_cli.names import from_json, to_json
from avarc_cli.storage import remove_leftovers, write_bytes
from avarc_cli.work.locks import only_writer


def check_folder(path: Path) -> None:
    """Raises: UsageError when there is anything but a folder that is empty or a protocol's."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"cannot write to '{path}'", "it is not a folder", "name another --out")
    ours = ("run.json", "run.lock")  # what a kill before the first result may leave
    if path.is_dir() and not (path / "run.json").exists() and any(not e.name.startswith(ours) for e in path.iterdir()):
        raise UsageError(f"'{path}' is not empty, and not a run", "it has no run.json", "name another folder")


@contextmanager
def open_folder(path: Path, asked: Mapping[str, Any]) -> Iterator[None]:
    """Start or resume a protocol, and be the only process that does until the end of the block.

    Raises: UsageError when the folder holds something else, or another request; AvarcError when it is in use.
    """
    check_folder(path)
    path.mkdir(parents=True, exist_ok=True)
    file, now = path / "run.json", from_json(to_json(asked))
    with only_writer(path / "run"):
        remove_leftovers(path)
        if not file.exists():
            write_bytes(file, to_json(now, indent=1).encode())
        _check_recorded(file, now)
        yield


def token_files(path: Path) -> tuple[Path, Path]:
    """Where the tokens of training and test images are kept."""
    return path / "train.npz", path / "test.npz"


def has_tokens(path: Path) -> bool:
    """Whether the images are encoded already."""
    return all(file.exists() for file in token_files(path))


def _check_recorded(file: Path, now: Mapping[str, Any]) -> None:
    """Raises: UsageError unless run.json records this request."""
    try:
        differences = describe_differences(from_json(file.read_bytes()), now)
    except (ValueError, AttributeError) as error:
        raise UsageError(f"cannot read '{file}'", str(error), "name another folder, or delete this one") from None
    if differences:
        raise UsageError(
            f"'{file.parent}' holds another run", differences, "repeat its options to resume it, or change --out"
        )
