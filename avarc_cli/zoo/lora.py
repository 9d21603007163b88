"""LoRA adapters, as PEFT saves them inside a model, merged into the weights they adapt: W + (alpha / r) B A.

r is the adapter's own shape. alpha is the number `lora_alpha` in the file, else in the adapter_config.json beside it,
else r (so that B A is added as it is); which of these it was stands in the checkpoint's metadata under "lora".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from avarc_cli.errors import CheckpointError

CONFIG = "adapter_config.json"
BY_PEFT = "merge it with peft (merge_and_unload) where it was trained, and save the result"

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.(?P<adapter>[^.]+))?\.weight")
_UNMERGEABLE = ("alpha_pattern", "fan_in_fan_out", "use_dora", "use_rslora")


def merge(
    tensors: dict[str, Tensor], metadata: Mapping[str, str], path: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Merge every adapter of a state dict; one without adapters comes back as it is.

    Args:
        tensors: keys without wrapper prefixes; adapted linears as `x.base_layer.weight` (out, in),
            `x.lora_A.NAME.weight` (r, in) and `x.lora_B.NAME.weight` (out, r).
        metadata: may hold `lora_alpha`.
        path: of the file, for its neighbour adapter_config.json and for messages.

    Returns: the tensors under the base model's names, in its dtypes, and {"lora": what was done} if anything was.
    Raises: CheckpointError for what this merge would get wrong: DoRA, several adapters, an adapter without its model.
    """
    base: dict[str, Tensor] = {}
    factors: dict[str, dict[str, Tensor]] = {}
    adapters: set[str] = set()
    for key, tensor in tensors.items():
        if match := _FACTOR.fullmatch(key):
            factors.setdefault(match["module"], {})[match["side"]] = tensor
            adapters.add(match["adapter"] or "")
        elif "lora_" in key:
            raise CheckpointError(f"{path} holds an adapter of another kind than LoRA", f"'{key}'", BY_PEFT)
        elif ".original_module." not in key:  # PEFT's untouched copy of a module that was trained whole
            base[re.sub(r"\.modules_to_save\.[^.]+\.", ".", key).replace(".base_layer.", ".")] = tensor
    if not factors:
        return base, {}
    if len(adapters) > 1:
        raise CheckpointError(f"{path} holds several adapters", ", ".join(sorted(adapters)), "save it with one")

    alpha, origin = _alpha(metadata, path)
    ranks = {_merge_one(base, module, sides, alpha, path) for module, sides in factors.items()}
    said = f"{len(factors)} matrices of rank {', '.join(map(str, sorted(ranks)))}"
    return base, {"lora": f"{said} merged with alpha {'= rank' if alpha is None else f'{alpha:g}'} ({origin})"}


def _merge_one(base: dict[str, Tensor], module: str, sides: dict[str, Tensor], alpha: float | None, path: Path) -> int:
    key = f"{module}.weight"
    if key not in base:
        raise CheckpointError(f"{path} is an adapter without its model", f"there is no '{key}' to add it to", BY_PEFT)
    weight, a, b = base[key], sides.get("A"), sides.get("B")
    fits = a is not None and b is not None and a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] > 0
    if a is None or b is None or not fits or weight.shape != (b.shape[0], a.shape[1]):
        shapes = [None if t is None else tuple(t.shape) for t in (weight, a, b)]
        raise CheckpointError(
            f"{path} holds an adapter that does not fit",
            f"'{module}': weight {shapes[0]}, lora_A {shapes[1]}, lora_B {shapes[2]}",
            BY_PEFT,
        )
    rank: int = a.shape[0]
    scale = 1.0 if alpha is None else alpha / rank
    base[key] = (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
    return rank


def _alpha(metadata: Mapping[str, str], path: Path) -> tuple[float | None, str]:
    """alpha and where it was found; None means that it was not."""
    if "lora_alpha" in metadata:
        return _number(metadata["lora_alpha"], path), "from the file"
    beside = path.with_name(CONFIG)
    if not beside.is_file():
        return None, f"no lora_alpha in the file, and no {CONFIG} beside it"
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{beside} cannot be read", str(problem), "repair it, or take it away") from None
    if not isinstance(config, dict) or "lora_alpha" not in config:
        raise CheckpointError(f"{beside} has no lora_alpha", "LoRA weights beside it need one", "repair or remove it")
    if used := [name for name in _UNMERGEABLE if config.get(name)]:
        raise CheckpointError(f"{path} cannot be merged here", f"{CONFIG} says {', '.join(used)}", BY_PEFT)
    return _number(config["lora_alpha"], beside), f"from {CONFIG}"


def _number(value: object, path: Path) -> float:
    try:
        alpha = float(str(value))
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise CheckpointError(f"{path} has a lora_alpha that is no number", repr(value), "repair it")
    return alpha
