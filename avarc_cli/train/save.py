"""Trained weights to safetensors, with what a loader needs to know in the metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from avarc_cli import processes
from avarc_cli.errors import AvarcError
from avarc_cli.layers.low_rank import LowRank, peft_tensors
from avarc_cli.likelihood import NetworkModel
from avarc_cli.names import to_json
from avarc_cli.outputs import WEIGHTS, check_new_folder, check_output
from avarc_cli.storage import new_folder, write_bytes
from avarc_cli.text import small as small_text
from avarc_cli.text.hub_folder import CONFIG
from avarc_cli.text.small import SmallTextNetwork
from avarc_cli.tokenizer import TokenizerNetwork


def check_place(out: Path, *, folder: bool = False) -> None:
    """Check that weights can be written there, in the one process of a training that writes. Raises: UsageError."""
    if not processes.is_first():
        return
    if folder:
        check_new_folder(out)
    else:
        check_output(out, WEIGHTS, overwrite=True)


def save_tokenizer(
    network: TokenizerNetwork, path: Path, *, family: str, preprocess: str, stated: Mapping[str, str] | None = None
) -> None:
    """A tokenizer file: published keys; the metadata names family, what tensors cannot tell, and preprocessing.

    Args:
        stated: more for the metadata.
    """
    metadata = {"family": family, **network.checkpoint_metadata(), "preprocess": preprocess, **(stated or {})}
    _save(network.state_dict(), metadata, path)


def save_generator(
    model: NetworkModel, path: Path, *, class_names: Sequence[str] | None, tokenizer_sha256: str
) -> None:
    """A generator file: published keys; the metadata names family, what tensors cannot tell, classes and tokenizer.

    Args:
        class_names: None for a model of captions.
    """
    metadata = {"family": model.family, **model.checkpoint_metadata(), "tokenizer_sha256": tokenizer_sha256}
    if class_names is not None:
        metadata["class_names"] = to_json(list(class_names))
    _save(model.checkpoint_tensors(), metadata, path)


def save_text_encoder(network: SmallTextNetwork, folder: Path) -> None:
    """A small text encoder's folder: config.json and weights."""
    weights = _content(network.state_dict(), {})
    with _writing(folder), new_folder(folder) as temporary:
        (temporary / small_text.WEIGHTS).write_bytes(weights)
        config = {"model_type": small_text.MODEL_TYPE, "positions": network.config.positions}
        (temporary / CONFIG).write_text(json.dumps(config, indent=1))


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
    weights = _content(peft_tensors(changes), {"base_sha256": base_sha256})
    with _writing(folder), new_folder(folder) as temporary:
        (temporary / "adapter_model.safetensors").write_bytes(weights)
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=1))


def _save(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    with _writing(path):
        write_bytes(path, _content(tensors, metadata))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "free some space, then run the same command again"
        raise AvarcError(f"cannot write '{path}'", error.strerror or str(error), fix) from None


def _content(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    return in_order(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata))


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
