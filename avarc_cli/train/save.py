"""Trained weights to safetensors, with what a loader needs to know in the metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from avarc_cli.errors import AvarcError
from avarc_cli.models.var import VAR
from avarc_cli.models.vqvae import VQVAE
from avarc_cli.tokens.files import write_whole


def save_tokenizer(model: VQVAE, path: Path, *, preprocess: str) -> None:
    """A tokenizer file: published keys; metadata family, patch_nums and default preprocessing."""
    scales = ",".join(map(str, model.config.patch_nums))
    _save(model.state_dict(), {"family": "vqvae", "patch_nums": scales, "preprocess": preprocess}, path)


def save_var(model: VAR, path: Path, *, class_names: Sequence[str], tokenizer_sha256: str) -> None:
    """A generator file: published keys with `lvl_1L`, which holds the scales; metadata family and class names."""
    counts = torch.tensor([p * p for p in model.config.patch_nums])
    level_1L = torch.arange(len(counts)).repeat_interleave(counts)[None]
    metadata = {"family": "var", "class_names": json.dumps(list(class_names)), "tokenizer_sha256": tokenizer_sha256}
    _save(model.state_dict() | {"lvl_1L": level_1L}, metadata, path)


def _save(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    try:
        write_whole(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata))
    except OSError as error:
        raise AvarcError(
            f"cannot write '{path}'", error.strerror or str(error), "free some space, or name another"
        ) from None
