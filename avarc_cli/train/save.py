"""Trained weights to safetensors, with what a loader needs to know in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.layers.low_rank import LowRank, peft_tensors
from avarc_cli.likelihood import TokenizerNetwork, TrainableModel
from avarc_cli.storage import write_bytes


def check_output(out: Path, *, folder: bool = False) -> None:
    """Check that `out` can be written, before any training: a bad name must not cost one. Raises: UsageError."""
    if not out.parent.is_dir():
        raise UsageError(f"cannot write '{out}'", f"'{out.parent}' is no folder")
    if out.exists() and out.is_dir() != folder:
        raise UsageError(f"cannot write '{out}'", f"it is a {'folder' if out.is_dir() else 'file'}", "name another")


def resume_file(out: Path) -> Path:
    """Where the unfinished training of `out` is kept."""
    return out.with_name(out.name + ".ckpt")


def save_tokenizer(network: TokenizerNetwork, path: Path, *, family: str, preprocess: str) -> None:
    """A tokenizer file: published keys; the metadata names family, what tensors cannot tell, and preprocessing."""
    metadata = {"family": family, **network.checkpoint_metadata(), "preprocess": preprocess}
    _save(network.state_dict(), metadata, path)


def save_generator(model: TrainableModel, path: Path, *, class_names: Sequence[str], tokenizer_sha256: str) -> None:
    """A generator file: published keys; the metadata names family, classes and the tokenizer's file."""
    metadata = {
        "family": model.family,
        "class_names": json.dumps(list(class_names)),
        "tokenizer_sha256": tokenizer_sha256,
    }
    _save(model.checkpoint_tensors(), metadata, path)


def save_lora(changes: Mapping[str, LowRank], folder: Path, *, base_sha256: str) -> None:
    """A LoRA adapter in PEFT's own folder format: adapter_config.json and adapter_model.safetensors.

    Args:
        changes: by name of the linear, of scale 1.
        base_sha256: of the file that the adapter belongs to.
    """
    rank = len(next(iter(changes.values())).a)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,  # scale alpha / r = 1
        "target_modules": sorted({name.split(".", 2)[2] for name in changes}),  # without blocks.i
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder.mkdir(exist_ok=True)
    _save(peft_tensors(changes), {"base_sha256": base_sha256}, folder / "adapter_model.safetensors")
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
