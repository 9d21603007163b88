"""Trained weights to safetensors, with what a loader needs to know in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from avarc_cli.errors import AvarcError
from avarc_cli.models.var.network import VAR
from avarc_cli.storage import write_bytes
from avarc_cli.tokenizers.vqvae import VQVAE


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


def save_lora(factors: Mapping[str, tuple[Tensor, Tensor]], folder: Path, *, base_sha256: str) -> None:
    """A LoRA adapter in PEFT's own folder format: adapter_config.json and adapter_model.safetensors.

    Args:
        factors: name of a linear -> (A (r, in), B (out, r)), which adds B A to its weight.
        base_sha256: of the file that the adapter belongs to.
    """
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors.items():
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    rank = len(next(iter(factors.values()))[0])
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,  # scale alpha / r = 1
        "target_modules": sorted({name.split(".", 2)[2] for name in factors}),  # without blocks.i
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder.mkdir(exist_ok=True)
    _save(tensors, {"base_sha256": base_sha256}, folder / "adapter_model.safetensors")
    write_bytes(folder / "adapter_config.json", json.dumps(config, indent=1).encode())


def _save(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)
    try:
        write_bytes(path, in_order(content))
    except OSError as error:
        raise AvarcError(
            f"cannot write '{path}'", error.strerror or str(error), "free some space, or name another"
        ) from None


def in_order(content: bytes) -> bytes:
    """The same safetensors file with its metadata sorted: the library writes it in another order in every process.

    So equal weights make equal files, and their sha256 is the same.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
