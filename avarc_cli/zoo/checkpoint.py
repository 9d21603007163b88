"""Reads published weights files into plain state dicts.

Accepts safetensors, and pickles by torch.save with weights_only: a file that needs more than tensors and numbers is
rejected. The format is recognized by the first bytes, not by the name; safetensors may be divided into shards
(`zoo.sharded`). Removes wrappers and PREFIXES, in any order; merges LoRA weights (`zoo.lora`). Of a file with weights
and their moving average it takes the weights unless another set is named, and says so (`zoo.weight_sets`).

Safetensors are memory-mapped. A large file is hashed once, as long as it does not change. After `convert_and_cache`, no
file is hashed again, and a pickle not unpickled again.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from avarc_cli.errors import AvarcError, CheckpointError, UsageError, shorten_list
from avarc_cli.storage import replacing
from avarc_cli.zip_check import check_zip
from avarc_cli.zoo import lora, paths, sharded, weight_sets, weights_index

PREFIXES = ("module.", "base_model.model.")  # of DDP and PEFT
INNER_PREFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # may wrap any submodule
SHARED_PREFIX = "model."  # of Lightning: removed if every key has it
COUNTER = "n_averaged"  # of torch's AveragedModel, beside the weights
WEIGHTS_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors"}
MAX_EXPANDED = 2**26  # bytes of a tensor whose elements share memory
LARGE = 1 << 26  # bytes, which take a tenth of a second to hash: the digest of such a file is kept
MAGIC_LENGTH = 64  # bytes that are read to recognize a format
EXPECTED = "it must be a safetensors file, or one written by torch.save"
AGAIN = "download or copy it again"


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a weights file."""

    path: Path  # of the file; of the index, if there are several
    sha256: str
    """In hex, of the file's bytes: those of the pickle, even if its safetensors copy was read. Of several shards see
    `sharded`. If the weights also depend on a choice (a set, a `lora_alpha` from elsewhere), of this digest and the
    choice."""
    tensors: dict[str, torch.Tensor]  # by the network's own keys; on the CPU
    metadata: dict[str, str]
    """What else the file contains, as text: safetensors metadata, numbers and strings beside the tensors, under "lora"
    what was merged, and under weight_sets.READ which weights these are if there are several."""

    @property
    def is_one_file(self) -> bool:
        """Whether these are the weights of one file as they are in it, of which no set was chosen."""
        merged_or_chosen = {"lora", weight_sets.CHOSEN, weight_sets.READ} & self.metadata.keys()
        return not merged_or_chosen and self.path.suffix != sharded.INDEX_SUFFIX

    @property
    def is_finite(self) -> bool:
        """Whether an earlier call of `note_finite` is about these weights."""
        return self.is_one_file and weights_index.is_finite(self.path)

    def note_finite(self) -> None:
        """Record that the weights were found to be finite, so that later processes need not look at them again."""
        if self.is_one_file:
            weights_index.remember_finite(self.path)


def read(path: Path, *, weight_set: str | None = None, lora_alpha: float | None = None) -> Checkpoint:
    """Read, check and unwrap a weights file.

    Args:
        path: of the file, of the index of several shards, or of the folder that contains the index.
        weight_set: which of several sets of weights to read (`weight_sets.choose`).
        lora_alpha: the scale of LoRA tensors in the file, which does not state it.
    Raises:
        UsageError: there is no such file, it has no such weights, or no use for `lora_alpha`.
        CheckpointError: it cannot be read, is corrupt, contains code, or contains something other than a state dict.
    """
    path = sharded.find_index(Path(path)) or Path(path)
    start = _read_start(path)
    tensors, metadata = _read_copy(path, weight_set) or _read_source(path, start, weight_set)
    tensors, merged = lora.merge(_strip_prefixes(tensors, path), metadata, path, lora_alpha)
    choices = [metadata[weight_sets.CHOSEN]] if weight_sets.CHOSEN in metadata else []
    if alpha := lora.alpha_from_outside(merged):
        choices.append(f"lora_alpha {alpha}")
    return Checkpoint(path, _identity(sha256_of(path), *choices), tensors, metadata | merged)


def sha256_of(path: Path) -> str:
    """The sha256 of a file or of a checkpoint with an index; files that did not change since are not read again."""
    index = sharded.find_index(path)
    return _sha256(path) if index is None else sharded.sha256(sharded.read_index(index), _sha256)


def _sha256(path: Path) -> str:
    """As `sha256_of`, of one file."""
    is_large = path.exists() and path.stat().st_size >= LARGE
    # A pickle's entry also says where its copy is: `convert_and_cache` makes both.
    return (weights_index.remember if is_large and _is_safetensors(_read_start(path)) else weights_index.sha256)(path)


def _identity(sha256: str, *more: str) -> str:
    """The sha256 of weights that depend on more than one digest or choice."""
    return hashlib.sha256(" ".join((sha256, *more)).encode()).hexdigest() if more else sha256


def with_adapter(base: Checkpoint, folder: Path) -> Checkpoint:
    """Merge a LoRA adapter into a model.

    Args:
        folder: the adapter, as PEFT saves it.
    Returns: the model with merged weights. Its sha256 is computed from those of the model, the adapter and the
        adapter's configuration.
    Raises: UsageError if the folder contains no adapter; CheckpointError if it is corrupt or does not fit the model.
    """
    file = lora.find_adapter(folder)
    tensors, metadata = _read_source(file, _read_start(file), None)
    trained_on = metadata.get("base_sha256", base.sha256)
    if trained_on != base.sha256:
        raise CheckpointError(
            f"{file} is an adapter for another model",
            f"it was trained on the one with sha256 {trained_on}; {base.path} has {base.sha256}",
            "name the model that it was trained on",
        )
    adapter = {key.replace(".base_layer.", "."): tensor for key, tensor in _strip_prefixes(tensors, file).items()}
    full = {key: tensor for key, tensor in adapter.items() if "lora_" not in key}  # trained whole, such as biases
    if misfits := [key for key in full if key not in base.tensors or base.tensors[key].shape != full[key].shape]:
        raise CheckpointError(
            f"{file} does not fit {base.path}",
            f"the model has no tensors of these names and shapes: {shorten_list(misfits)}",
            "name the model that it was trained on",
        )
    merged, description = lora.merge(base.tensors | adapter, {}, file)
    adapter_files = (file, folder / lora.CONFIG)
    sha256 = _identity(base.sha256, *map(weights_index.sha256_of_file, adapter_files))
    return replace(base, tensors=merged, sha256=sha256, metadata=base.metadata | description)


def convert_and_cache(path: Path, sha256: str | None = None, *, weight_set: str | None = None) -> None:
    """Make later calls of `read` fast: index the files, and convert a pickle to safetensors.

    Args:
        path: as for `read`. Nothing is written beside it, only to `paths.weights_folder()`.
        sha256: of the file's bytes, if it is known already.
        weight_set: as for `read`; each has its own copy.
    Raises: as `read`; AvarcError if the copy cannot be written.
    """
    index, *shards = sharded.files(path)
    sharded.check_present(shards)
    for file in (index, *shards):
        if not weights_index.is_indexed(file, weight_set):
            _convert_and_cache(file, sha256, weight_set)


def _convert_and_cache(path: Path, sha256: str | None, weight_set: str | None) -> None:
    known, start = weights_index.recorded(path), _read_start(path)
    stat = weights_index.FileStat.of(path)  # before reading: if the file changes meanwhile, the entry is not valid
    sha256 = sha256 or weights_index.sha256(path)
    copies = dict(known.copies) if known is not None and known.sha256 == sha256 else {}
    try:
        if not _is_safetensors(start) and path.suffix != sharded.INDEX_SUFFIX:
            tensors, metadata = _read_source(path, start, weight_set)
            copy = weights_index.copy_path(sha256, weight_set)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with replacing(copy) as temporary:
                save_file(_unshare(tensors), temporary, metadata)
            copies[weight_set or ""] = weights_index.Copy.of(copy)
        weights_index.write(weights_index.IndexEntry(os.path.realpath(path), sha256, stat, copies))
    except (OSError, SafetensorError) as problem:
        raise AvarcError(
            f"cannot write a safetensors copy of {path.name}, which would load faster",
            f"{paths.weights_folder()}: {problem}",
            f"free {path.stat().st_size / 1e9:.1f} GB there, or set AVARC_HOME to a folder with more space",
        ) from None


def _read_start(path: Path) -> bytes:
    """The first bytes of a file. Raises: as `read` if it is missing, a folder, empty or unreadable."""
    if not path.exists():
        raise UsageError(f"there is no file {path}", fix="check the path, or name a model that `avarc models` lists")
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in WEIGHTS_SUFFIXES)
        found = f"; it contains {shorten_list(inside)}" if inside else ""
        raise CheckpointError(f"{path} is a folder", f"{EXPECTED}{found}", "name the file itself")
    try:
        with path.open("rb") as file:
            start = file.read(MAGIC_LENGTH)
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read", str(problem), "check its permissions") from None
    if not start:
        raise CheckpointError(f"{path} is empty", EXPECTED, AGAIN)
    return start


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{"  # eight bytes of length, then JSON


def _read_source(path: Path, start: bytes, weight_set: str | None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of the file itself, with wrappers removed."""
    if _is_safetensors(start):
        sharded.check_not_a_shard(path)
        tensors, metadata = _read_safetensors(path)
    elif path.suffix == sharded.INDEX_SUFFIX:
        tensors, metadata = _read_shards(sharded.read_index(path))
    elif start.startswith((b"PK", b"\x80")):  # torch's zip format, and its older plain pickle
        return _unwrap(_read_pickle(path), weight_set, path)
    else:
        raise CheckpointError(f"{path} is not a weights file", f"it is {_describe(start)}; {EXPECTED}", AGAIN)
    chosen, unwrapped = _unwrap(tensors, weight_set, path)
    return chosen, metadata | unwrapped


def _read_shards(index: sharded.Index) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of all shards. Raises: CheckpointError naming the shard that is missing or does not fit."""
    sharded.check_present(index.shards)
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for name, shard in zip(sorted(index.tensors), index.shards, strict=True):
        found, stated = _read_safetensors(shard)
        sharded.check_shard(index, name, found)
        tensors |= found
        metadata |= stated
    return tensors, metadata | index.metadata


def _read_copy(path: Path, weight_set: str | None) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Tensors and metadata of the safetensors copy; None if there is none, or if it is corrupt."""
    entry = weights_index.find(path)
    copy = entry.valid_copy(weight_set) if entry else None
    try:
        return _read_safetensors(copy) if copy else None
    except CheckpointError:
        return None  # the source can still be read


def _unshare(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, contiguous and without shared memory, as safetensors requires."""
    storages: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        tensor = tensor.contiguous()
        separate[name] = tensor.clone() if address in storages else tensor
        storages.add(address)
    return separate


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a mapping
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as problem:
        raise CheckpointError(f"{path} is not a complete safetensors file", str(problem), AGAIN) from None
    if not tensors:
        raise CheckpointError(f"{path} contains no tensors", EXPECTED, "name another file")
    return tensors, metadata


def _read_pickle(path: Path) -> object:
    try:
        mapped = zipfile.is_zipfile(path)  # then a tensor takes memory when it is read: a decoder may never be
        if mapped:
            check_zip(path)  # torch itself does not verify checksums, and makes room for whatever a member claims
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about newer pickles; they load, or are rejected below
            loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as problem:
        raise _pickle_error(path, str(problem)) from None
    except Exception as problem:  # noqa: BLE001  # the unpickler may raise anything on corrupt data
        reason = str(problem).split("This is an internal miniz error")[0].strip().split("\n")[0]
        raise CheckpointError(f"{path} is corrupt or not a torch file", f"{reason}; {EXPECTED}", AGAIN) from None
    return loaded


def _pickle_error(path: Path, reason: str) -> CheckpointError:
    """The error for a pickle that torch refuses to load. Of torch's long message, only the name of the code matters."""
    code = re.search(r"GLOBAL ([\w.]+)", reason)
    if code is None:
        return CheckpointError(f"{path} is corrupt or not a torch file", f"cannot unpickle it; {EXPECTED}", AGAIN)
    return CheckpointError(
        f"{path} was not loaded: it contains more than weights",
        f"loading it would run {code[1]}, and a pickle that runs code can do anything to this machine",
        "if you trust it, load it where it was made and save only its state dict, preferably as safetensors",
    )


def _unwrap(loaded: object, weight_set: str | None, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Remove the wrappers; numbers and text in them become metadata."""
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        why = f"it contains a {type(loaded).__name__}; {EXPECTED}"
        raise CheckpointError(f"{path} contains no state dict", why, "name another file")
    entries, metadata = weight_sets.choose(loaded, weight_set, path)
    tensors = {key: value.detach() for key, value in entries.items() if isinstance(value, torch.Tensor)}
    others = [f"{k} ({type(v).__name__})" for k, v in entries.items() if k not in tensors and k not in metadata]
    if others:
        why = f"not all of its entries are tensors: {shorten_list(others)}"
        raise CheckpointError(f"{path} is not a plain state dict", why, "save only the state dict")
    if empty := [key for key, tensor in tensors.items() if tensor.is_meta]:
        raise CheckpointError(f"{path} has tensors without data", shorten_list(empty), "save the loaded model")
    if claims := [key for key, tensor in tensors.items() if _claims_more_than_stored(tensor)]:
        raise CheckpointError(f"{path} has tensors larger than their data", shorten_list(claims), "save copies of them")
    if sparse := [key for key, tensor in tensors.items() if tensor.layout != torch.strided]:
        raise CheckpointError(f"{path} has sparse tensors", shorten_list(sparse), "save them with to_dense()")
    return tensors, metadata


def _claims_more_than_stored(tensor: torch.Tensor) -> bool:
    """Whether elements of a large tensor share memory, as after expand(): a copy of it might take any amount."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), MAX_EXPANDED)


def _strip_prefixes(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Rename tensors to the network's own keys."""
    stripped: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name = key
        for inner in INNER_PREFIXES:
            name = name.replace(inner, "")
        while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        if name in stripped:
            why = f"'{name}' occurs twice after removing the prefixes of DDP, torch.compile and PEFT"
            raise CheckpointError(f"{path} contains two models", why, "save the state dict of one")
        stripped[name] = tensor
    stripped.pop(COUNTER, None)
    if all(name.startswith(SHARED_PREFIX) for name in stripped):
        return {name.removeprefix(SHARED_PREFIX): tensor for name, tensor in stripped.items()}
    return stripped


def _describe(start: bytes) -> str:
    """What a file that is not a weights file probably is, by its first bytes."""
    known = {
        b"version https://git-lfs": "a Git LFS pointer, not the file it points to",
        b"<": "a web page, perhaps a saved error or login page",
        b"\x89HDF": "an HDF5 file, perhaps a token cache",
        b"\x89PNG": "an image",
        b"\xff\xd8\xff": "an image",
    }
    for magic, kind in known.items():
        if start.startswith(magic):
            return kind
    is_text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    return "a text file" if is_text else f"a file that begins with {start[:8]!r}"
