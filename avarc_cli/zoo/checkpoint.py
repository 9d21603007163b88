"""Reading a weights file: any published wrapper in, a plain state dict out.

Read are safetensors, and torch pickles with weights_only (a file that needs more than tensors and numbers is refused).
The format is told by the first bytes, not by the name. Unwrapped are `trainer`, `var_wo_ddp`, `state_dict` and `model`;
stripped are the prefixes of DDP, torch.compile and PEFT, in any order; LoRA weights are merged (`zoo.lora`).

Safetensors are memory-mapped. A file that was kept (`keep`) is not hashed again, and a kept pickle not unpickled again.
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

from avarc_cli.errors import AvarcError, CheckpointError, UsageError
from avarc_cli.storage import replacing
from avarc_cli.zoo import lora, paths, weights_index

WRAPPERS = ("trainer", "var_wo_ddp", "state_dict", "model")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # PEFT's names, new and old
PREFIXES = ("module.", "base_model.model.")
EXPECTED = "expected is a safetensors file, or one written by torch.save"
AGAIN = "download or copy it again"
SHOWN = 4  # so many keys tell what is wrong; a thousand hide it


@dataclass(frozen=True)
class Checkpoint:
    """A weights file, unwrapped.

    tensors maps the network's own keys to CPU tensors; metadata holds what else the file said, as text: safetensors
    metadata, plain numbers and strings beside the tensors, and under "lora" what was merged.
    """

    path: Path
    sha256: str  # of the file's bytes, in hex; of the pickle's, where its safetensors copy was read
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def read(path: Path) -> Checkpoint:
    """Read, check and unwrap a weights file.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it cannot be read, is damaged, holds code, or holds something other than a state dict.
    """
    path = Path(path)
    start = _first_bytes(path)
    note = weights_index.find(path)
    sha256 = note.sha256 if note else weights_index.digest(path)
    tensors, metadata = (note and _read_copy(note)) or _read_source(path, start)
    tensors, merged = lora.merge(_strip(tensors, path), metadata, path)
    return Checkpoint(path, sha256, tensors, metadata | merged)


def adapted(base: Checkpoint, folder: Path) -> Checkpoint:
    """A model with a LoRA adapter merged into it, which is a folder as PEFT saves them.

    Its sha256 is made of the digests of both and the adapter's configuration: another adapter, another model.

    Raises: UsageError when the folder holds no adapter; CheckpointError when it is damaged or does not fit the model.
    """
    file = next((path for name in ADAPTER_FILES if (path := folder / name).is_file()), None)
    if file is None or not (folder / lora.CONFIG).is_file():
        lacking = lora.CONFIG if file else f"{ADAPTER_FILES[0]}, nor {ADAPTER_FILES[1]}"
        raise UsageError(f"'{folder}' holds no LoRA adapter", f"there is no {lacking} in it", "name PEFT's own folder")
    tensors, metadata = _read_source(file, _first_bytes(file))
    meant_for = metadata.get("base_sha256", base.sha256)
    if meant_for != base.sha256:
        raise CheckpointError(
            f"{file} is an adapter of another model",
            f"it was trained on the one of sha256 {meant_for}; {base.path} has {base.sha256}",
            "name the model that it was trained on",
        )
    own = _strip(tensors, file)
    whole = {key: tensor for key, tensor in own.items() if "lora_" not in key}
    if strange := [key for key in whole if key not in base.tensors or base.tensors[key].shape != whole[key].shape]:
        raise CheckpointError(f"{file} does not fit {base.path}", f"it has {few(strange)}", "name the right model")
    merged, said = lora.merge(base.tensors | own, {}, file)
    digests = (
        base.sha256,
        weights_index.digest(file),
        weights_index.digest(folder / lora.CONFIG),
    )
    sha256 = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return replace(base, tensors=merged, sha256=sha256, metadata=base.metadata | said)


def keep(path: Path, sha256: str | None = None) -> weights_index.Note:
    """Make every later `read` of this file fast: note its sha256, and copy a pickle's tensors to safetensors.

    Args:
        path: the weights file. Nothing is written beside it (`notes`).
        sha256: of its bytes, where that is known already.

    Returns: the note, an earlier one where nothing has changed.
    Raises: as `read`; AvarcError when the copy cannot be written.
    """
    note = weights_index.find(path)
    start = _first_bytes(path)
    pickled = not _is_safetensors(start)
    if note is not None and (note.whole_copy() or not pickled):
        return note
    seen = weights_index.look(path)  # before it is read: should it change meanwhile, the note does not fit
    sha256 = sha256 or (note.sha256 if note else weights_index.digest(path))
    note = weights_index.Note(os.path.realpath(path), sha256, seen)
    tensors, metadata = _read_source(path, start)
    try:
        if pickled:
            copy = weights_index.copy_file(sha256)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with replacing(copy) as temporary:
                save_file(_separate(tensors), temporary, metadata)
            stat = copy.stat()
            note = replace(note, copy=str(copy), copy_size=stat.st_size, copy_mtime_ns=stat.st_mtime_ns)
        weights_index.write(note)
    except (OSError, SafetensorError) as problem:
        raise AvarcError(
            f"cannot keep a copy of {path.name} that loads at once",
            f"{paths.weights_folder()}: {problem}",
            f"free {path.stat().st_size / 1e9:.1f} GB there, or set AVARC_HOME to a folder with more space",
        ) from None
    return note


def _first_bytes(path: Path) -> bytes:
    if not path.exists():
        raise UsageError(f"there is no file {path}", fix="check the path, or name a model that `avarc models` lists")
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in {".pth", ".pt", ".bin", ".safetensors"})
        found = f"; in it are {few(inside)}" if inside else ""
        raise CheckpointError(f"{path} is a folder", f"{EXPECTED}{found}", "name the file itself")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read", str(problem), "check its permissions") from None
    if not start:
        raise CheckpointError(f"{path} is empty", EXPECTED, AGAIN)
    return start


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{"  # eight bytes of length, then JSON


def _read_source(path: Path, start: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if _is_safetensors(start):
        return _read_safetensors(path)
    if start.startswith((b"PK", b"\x80")):  # torch's zip; its older plain pickle
        return _unwrap(_read_pickle(path), path)
    raise CheckpointError(f"{path} is not a weights file", f"it is {_guess(start)}; {EXPECTED}", AGAIN)


def _read_copy(note: weights_index.Note) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """A kept copy; None where there is none, or a damaged one: the source is still there."""
    copy = note.whole_copy()
    try:
        return _read_safetensors(copy) if copy else None
    except CheckpointError:
        return None


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that share no memory, as safetensors wants them."""
    storages: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        tensor = tensor.contiguous()
        apart[name] = tensor.clone() if place in storages else tensor
        storages.add(place)
    return apart


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a mapping
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as problem:
        raise CheckpointError(f"{path} is not a whole safetensors file", str(problem), AGAIN) from None
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors", EXPECTED, "name another file")
    return tensors, metadata


def _read_pickle(path: Path) -> object:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch itself does not compare checksums
            if damaged is not None:
                raise CheckpointError(f"{path} is damaged", f"the checksum of its part '{damaged}' is wrong", AGAIN)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders at newer pickles; they load, or are refused below
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as problem:
        raise _refused(path, str(problem)) from None
    except Exception as problem:  # noqa: BLE001  # an unpickler fed noise raises what the noise says
        reason = str(problem).split("This is an internal miniz error")[0].strip().split("\n")[0]
        raise CheckpointError(f"{path} is damaged or not a torch file", f"{reason}; {EXPECTED}", AGAIN) from None
    return loaded


def _refused(path: Path, reason: str) -> CheckpointError:
    """torch says at length what it will not unpickle; the name is what matters."""
    code = re.search(r"GLOBAL ([\w.]+)", reason)
    if code is None:
        return CheckpointError(
            f"{path} is damaged or not a torch file", f"its pickle cannot be read; {EXPECTED}", AGAIN
        )
    return CheckpointError(
        f"{path} was not loaded: it holds more than weights",
        f"loading it would run {code[1]}, and a pickle that runs code can do anything to this machine",
        "if you trust it, load it where it was made and save its state dict alone, best as safetensors",
    )


def _unwrap(loaded: object, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Follow the wrappers down to the tensors; numbers and text met on the way become metadata."""
    metadata: dict[str, str] = {}
    level = loaded
    while True:
        if not isinstance(level, Mapping) or not all(isinstance(key, str) for key in level):
            kind = type(level).__name__
            raise CheckpointError(f"{path} holds no state dict", f"it holds a {kind}; {EXPECTED}", "name another file")
        metadata |= {k: str(v) for k, v in level.items() if isinstance(v, (bool, int, float, str)) and "." not in k}
        inner = next((key for key in WRAPPERS if isinstance(level.get(key), Mapping)), None)
        if inner is None:
            break
        level = level[inner]
    tensors = {key: value.detach() for key, value in level.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        why = f"its keys are {few(sorted(level))}; expected are tensors, bare or under {', '.join(WRAPPERS)}"
        raise CheckpointError(f"{path} holds no state dict", why, "name another file")
    others = [f"{k} ({type(v).__name__})" for k, v in level.items() if k not in tensors and k not in metadata]
    if others:
        why = f"{len(others)} of its entries are no tensors: {few(others)}"
        raise CheckpointError(f"{path} is not a plain state dict", why, "save the state dict alone")
    return tensors, metadata


def _strip(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The network's own names. torch.compile may wrap any submodule, DDP and PEFT wrap the whole."""
    stripped: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name = key.replace("_orig_mod.", "")
        while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        if name in stripped:
            why = f"'{name}' comes twice once the prefixes of DDP, torch.compile and PEFT are gone"
            raise CheckpointError(f"{path} mixes two models", why, "save the state dict of one")
        stripped[name] = tensor
    return stripped


def few(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _guess(start: bytes) -> str:
    known = {
        b"version https://git-lfs": "a Git LFS pointer, not the file it points to",
        b"<": "a web page, perhaps an error or log-in page that was saved",
        b"\x89HDF": "an HDF5 file, perhaps a token cache",
        b"\x89PNG": "an image",
        b"\xff\xd8\xff": "an image",
    }
    for magic, kind in known.items():
        if start.startswith(magic):
            return kind
    text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    return "a text file" if text else f"a file that begins with {start[:8]!r}"
