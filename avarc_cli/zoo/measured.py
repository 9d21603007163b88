"""What was measured once on a machine, kept in small files for later runs.

Files that cannot be read, or that are of something else, are ignored and written again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from avarc_cli import strict_json
from avarc_cli.progress import Notify, no_message
from avarc_cli.storage import write_bytes

FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Measured(Generic[T]):
    """One kind of measurement."""

    folder: Callable[[], Path]
    """Where its files are."""
    field: str
    """Under which it is in them."""
    what: str
    """In messages: "the rounding noise"."""
    read: Callable[[Any], T]
    """A measurement from JSON types. Raises: AttributeError, KeyError, TypeError or ValueError for anything else."""
    write: Callable[[T], Any]
    """The reverse."""

    def file(self, key: Mapping[str, Any]) -> Path:
        """Where the measurement of this is kept; key: what it depends on, as JSON types."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder() / f"{digest[:32]}.json"

    def stored(self, key: Mapping[str, Any], say: Notify = no_message) -> T | None:
        """What was measured earlier; None where there is nothing. `say` gets a message about a damaged file."""
        path = self.file(key)
        try:
            values = strict_json.parse_object(path.read_bytes())
            if values["format"] != FORMAT or values["of"] != json.loads(json.dumps(key)):
                raise ValueError("it is of something else")
            return self.read(values[self.field])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as problem:
            say(f"'{path}' is damaged and is not used: {problem}")
            return None

    def store(self, key: Mapping[str, Any], value: T, say: Notify = no_message) -> None:
        """Keep a measurement for later runs. `say` gets a message where that is impossible."""
        path, values = self.file(key), {"format": FORMAT, "of": key, self.field: self.write(value)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())
        except OSError as problem:
            say(f"{self.what} is not kept for later runs: {problem}")
