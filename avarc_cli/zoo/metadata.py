"""The metadata of weights, as far as it can be read without the weights, and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from avarc_cli.zoo import weights_index


def read_metadata(path: Path, weight_set: str | None = None) -> Mapping[str, str] | None:
    """The metadata of a safetensors file, or of the safetensors copy of a pickle; None where only the weights tell.

    Args:
        weight_set: which of several sets of weights in a pickle.
    """
    entry = weights_index.find(path)
    copy = entry.valid_copy(weight_set) if entry else None
    try:
        with safe_open(copy or path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return None
