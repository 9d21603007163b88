"""Merges LoRA adapters, as PEFT saves them inside a model, into the weights that they adapt: W + (alpha / r) B A.

r is the shape of the adapter. alpha is the number `lora_alpha` in the file, else in the adapter_config.json beside it;
a file without either needs the user's word.
The checkpoint's metadata records under "lora" what was merged, and which of these was used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from avarc_cli import strict_json
from avarc_cli.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")  # PEFT's names, new and old
OPTION = "--lora-alpha"
USE_PEFT = "merge it with peft (merge_and_unload) where it was trained, and save the result"

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.(?P<adapter>[^.]+))?\.weight")
_UNSUPPORTED = ("alpha_pattern", "fan_in_fan_out", "use_dora", "use_rslora")  # of adapter_config.json
# Values of init_lora_weights with which an adapter starts at zero. All others (pissa, olora, corda, loftq, ...)
# change the base model's weights as well, so that W + (alpha / r) B A is not the model that was trained.
_ZERO_INITS = (None, True, False, "gaussian", "orthogonal", "eva")


def find_adapter(folder: Path) -> Path:
    """The weights of an adapter that PEFT saved. Raises: UsageError if the folder contains no adapter."""
    file = next((path for name in FILES if (path := folder / name).is_file()), None)
    if file is None or not (folder / CONFIG).is_file():
        missing = CONFIG if file else f"{FILES[0]} or {FILES[1]}"
        fix = "name a folder that was saved by PEFT"
        raise UsageError(f"'{folder}' contains no LoRA adapter", f"it has no {missing}", fix)
    return file


def check_alpha(alpha: float | None) -> None:
    """Raises: UsageError unless this can be the scale of LoRA tensors, or is None."""
    if alpha is not None and not math.isfinite(alpha):
        raise UsageError(f"{OPTION} is {alpha}", "it is not a finite number")


def merge(
    tensors: dict[str, Tensor], metadata: Mapping[str, str], path: Path, alpha: float | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Merge the adapter in a state dict; one without an adapter is returned unchanged.

    Args:
        tensors: keys without wrapper prefixes; adapted linears as `x.base_layer.weight` (out, in),
            `x.lora_A.NAME.weight` (r, in) and `x.lora_B.NAME.weight` (out, r).
        metadata: may contain `lora_alpha`.
        path: of the file, for messages and to find the adapter_config.json beside it.
        alpha: for a file that does not state it.
    Returns: the tensors under the base model's names, in its dtypes, and {"lora": what was done} if anything was.
    Raises: CheckpointError for what cannot be merged correctly: DoRA, several adapters, an adapter without its model or
        its scale, one that started from a changed model. UsageError for an `alpha` that is not needed.
    """
    base: dict[str, Tensor] = {}
    factors: dict[str, dict[str, Tensor]] = {}
    adapters: set[str] = set()
    for key, tensor in tensors.items():
        if match := _FACTOR.fullmatch(key):
            factors.setdefault(match["module"], {})[match["side"]] = tensor
            adapters.add(match["adapter"] or "")
        elif "lora_" in key:
            raise CheckpointError(f"{path} has an adapter of another kind than LoRA", f"'{key}'", USE_PEFT)
        elif ".original_module." not in key:  # PEFT's unchanged copy of a module that was trained without low rank
            base[re.sub(r"\.modules_to_save\.[^.]+\.", ".", key).replace(".base_layer.", ".")] = tensor
    if not factors:
        if alpha is not None:
            raise UsageError(f"no use for {OPTION}: {path} has no LoRA tensors", fix=f"leave out {OPTION}")
        return base, {}
    if len(adapters) > 1:
        raise CheckpointError(f"{path} has several adapters", ", ".join(sorted(adapters)), "save it with only one")

    scale, origin = _find_alpha(metadata, path, alpha)
    ranks = {_merge_one(base, module, sides, scale, path) for module, sides in factors.items()}
    merged = f"{len(factors)} matrices of rank {', '.join(map(str, sorted(ranks)))}"
    return base, {"lora": f"{merged} merged with alpha {scale:g} ({origin})"}


def alpha_from_outside(merged: Mapping[str, str]) -> str | None:
    """The alpha that `merge` used, as it states it, if the file itself does not state one."""
    found = re.search(r"alpha (\S+) \((?!from the file)", merged.get("lora", ""))
    return found and found[1]


def _merge_one(base: dict[str, Tensor], module: str, sides: dict[str, Tensor], alpha: float, path: Path) -> int:
    """Add B A to the weight of one module, in float32. Returns the rank."""
    key = f"{module}.weight"
    if key not in base:
        why = f"it has no '{key}' to add it to"
        raise CheckpointError(f"{path} is an adapter without its model", why, USE_PEFT)
    weight, a, b = base[key], sides.get("A"), sides.get("B")
    fits = a is not None and b is not None and a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] > 0
    if a is None or b is None or not fits or weight.shape != (b.shape[0], a.shape[1]):
        shapes = [None if t is None else tuple(t.shape) for t in (weight, a, b)]
        raise CheckpointError(
            f"{path} has an adapter that does not fit",
            f"'{module}': weight {shapes[0]}, lora_A {shapes[1]}, lora_B {shapes[2]}",
            USE_PEFT,
        )
    rank: int = a.shape[0]
    base[key] = (weight.float() + alpha / rank * (b.float() @ a.float())).to(weight.dtype)
    return rank


def _find_alpha(metadata: Mapping[str, str], path: Path, given: float | None) -> tuple[float, str]:
    """alpha, and where it was found."""
    values: Mapping[str, object] = metadata
    place, origin = path, "the file"
    if "lora_alpha" not in metadata:
        place, origin = path.with_name(CONFIG), CONFIG
        values = _read_config(place, path)
    stated = values.get("lora_alpha")
    if given is not None:
        what = f"cannot merge {path} with {OPTION} {given:g}"
        if "lora_alpha" in values:
            raise UsageError(what, f"{place} states lora_alpha {stated}", f"leave out {OPTION}")
        check_alpha(given)
        return given, f"from {OPTION}"
    if "lora_alpha" not in values:
        raise CheckpointError(
            f"{path} has a LoRA adapter of unknown scale",
            f"there is no lora_alpha in the file, and {CONFIG} beside it {'has none' if values else 'does not exist'}",
            f'add {OPTION} NUMBER, as it was trained, or write {{"lora_alpha": NUMBER}} to {place}',
        )
    return _parse_alpha(stated, place), f"from {origin}"


def _read_config(file: Path, path: Path) -> dict[str, object]:
    """The adapter_config.json beside the file at `path`; empty if there is none.

    Raises: CheckpointError if it cannot be read, or describes an adapter that is more than W + (alpha / r) B A.
    """
    if not file.is_file():
        return {}
    try:
        config = strict_json.parse(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{file} cannot be read", str(problem), "fix the file or delete it") from None
    if used := [name for name in _UNSUPPORTED if config.get(name)]:
        raise CheckpointError(f"{path} cannot be merged by avarc", f"{CONFIG} sets {', '.join(used)}", USE_PEFT)
    if (start := config.get("init_lora_weights")) not in _ZERO_INITS:
        raise CheckpointError(
            f"{path} cannot be merged by avarc",
            f"with init_lora_weights {start!r} the training began by changing the model's own weights",
            f"{USE_PEFT}, or convert it with save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    return config


def _parse_alpha(value: object, path: Path) -> float:
    try:
        alpha = float(str(value))
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise CheckpointError(f"{path} has a lora_alpha that is not a finite number", repr(value), "fix it")
    return alpha
