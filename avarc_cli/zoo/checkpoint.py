"""Reading a weights file: any published wrapper in, a plain state dict out.

Read are safetensors, and torch pickles with weights_only (a file that needs more than tensors and numbers is refused).
The format is told by the first bytes, not by the name. Unwrapped are `trainer`, `var_wo_ddp`, `state_dict` and `model`;
stripped are the prefixes of DDP, torch.compile and PEFT, in any order; LoRA weights are merged (`zoo.lora`).
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.zoo import lora

WRAPPERS = ("trainer", "var_wo_ddp", "state_dict", "model")
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
    sha256: str  # of the file's bytes, in hex
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def read(path: Path) -> Checkpoint:
    """Read, check and unwrap a weights file.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it cannot be read, is damaged, holds code, or holds something other than a state dict.
    """
    path = Path(path)
    start, sha256 = _first_bytes_and_sha256(path)
    if not start:
        raise CheckpointError(f"{path} is empty", EXPECTED, AGAIN)
    if start[8:9] == b"{":  # eight bytes of length, then JSON
        tensors, metadata = _read_safetensors(path)
    elif start.startswith((b"PK", b"\x80")):  # torch's zip; its older plain pickle
        tensors, metadata = _unwrap(_read_pickle(path), path)
    else:
        raise CheckpointError(f"{path} is not a weights file", f"it is {_guess(start)}; {EXPECTED}", AGAIN)
    tensors, merged = lora.merge(_strip(tensors, path), metadata, path)
    return Checkpoint(path, sha256, tensors, metadata | merged)


def _first_bytes_and_sha256(path: Path) -> tuple[bytes, str]:
    if not path.exists():
        raise UsageError(f"there is no file {path}", fix="check the path, or name a model that `avarc models` lists")
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in {".pth", ".pt", ".bin", ".safetensors"})
        found = f"; in it are {few(inside)}" if inside else ""
        raise CheckpointError(f"{path} is a folder", f"{EXPECTED}{found}", "name the file itself")
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            start = file.read(64)
            digest.update(start)
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read", str(problem), "check its permissions") from None
    return start, digest.hexdigest()


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
