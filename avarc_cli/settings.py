"""Values that options may have. There is no torch here, so that a wrong value is an error before torch is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from avarc_cli.errors import UsageError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8", "fp8")
KERNELS = ("auto", "triton", "torch")
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
_TORCH_TYPES = (*DEVICE_TYPES, "meta")  # meta is always there and computes nothing: `devices.pick_device` refuses it
AUGMENTATIONS = ("crop", "affine", "none")
METHODS = ("embedding", "adaln", "lora")  # of adding a class
MOST_GUIDANCE = 1000  # far beyond any use; float32 ends at 1e38


def check_exists(path: str | Path | None, named_by: str) -> None:
    """Raises UsageError where an option or argument names a file or folder that is not there, or a device."""
    if path is None:
        return
    why = f"it was given as {named_by}"
    if not Path(path).exists():
        raise UsageError(f"'{path}' does not exist", why, "check the path")
    if Path(path).is_char_device() or Path(path).is_block_device():  # /dev/zero would be read for ever
        raise UsageError(f"'{path}' is a device", why, "name a file")


def check_precision(name: str) -> None:
    """Raises: UsageError unless this is a precision; `layers.precision` knows where each is available."""
    _check("precision", name, PRECISIONS)


def check_encoder_precision(name: str) -> None:
    """Raises: UsageError unless images can be encoded in this precision."""
    if name not in ("fp32", "bf16"):
        raise UsageError(f"images are not encoded in {name}", "there are fp32 and, on a GPU, bf16")


def check_kernels(name: str) -> None:
    """Raises: UsageError unless this is a choice of kernels; `devices.pick_kernels` knows where they run."""
    _check("kernels", name, KERNELS)


def check_device(name: str) -> None:
    """Raises: UsageError unless this names a device, which may or may not be there (`devices.pick_device`)."""
    if name != "auto" and not re.fullmatch(rf"({'|'.join(_TORCH_TYPES)})(:[0-9]{{1,3}})?", name):
        why, fix = f"avarc runs on {', '.join(DEVICE_TYPES)}", "use auto or cpu; avarc doctor lists devices"
        raise UsageError(f"cannot use device '{name}'", why, fix)


def check_augmentation(name: str) -> None:
    """Raises: UsageError unless this is a way to change training images (`train.images.Augment`)."""
    _check("augmentation", name, AUGMENTATIONS)


def check_method(name: str) -> None:
    """Raises: UsageError unless this is a way to add a class (`incremental.fit`)."""
    _check("method", name, METHODS)


def check_learning_rate(lr: float) -> None:
    """Raises: UsageError."""
    if not (math.isfinite(lr) and lr > 0):
        raise UsageError(f"the learning rate is {lr}", "it must be a positive number", "write --lr 3e-4")


def check_class_dropout(fraction: float) -> None:
    """Raises: UsageError."""
    if not 0 <= fraction < 1:
        raise UsageError(f"class dropout is {fraction}", "it is a fraction in [0, 1)")


def check_contrast(beta: float, weight: float, class_dropout: float) -> None:
    """Raises: UsageError for numbers outside the ranges of `train.cca.Contrast`."""
    if not (math.isfinite(beta) and beta > 0 and math.isfinite(weight) and weight >= 0):
        raise UsageError(f"beta is {beta}, the weight {weight}", "beta is above 0, the weight at least 0")
    check_class_dropout(class_dropout)


def check_base_width(width: int) -> None:
    """Raises: UsageError unless the model that `avarc incremental` trains can have this number of channels."""
    if width % 64 or width < 64:
        raise UsageError(f"the base model's width is {width}", "it is a multiple of 64", "use --base-width 64")


def check_sampling(guidance: float | None, top_k: int, top_p: float) -> None:
    """Raises: UsageError for numbers outside the ranges of `sampling.Sampling`."""
    if not (0 <= (guidance or 0) <= MOST_GUIDANCE and top_k >= 0 and 0 <= top_p <= 1):
        raise UsageError(
            f"guidance {guidance}, top-k {top_k}, top-p {top_p}",
            f"guidance lies in [0, {MOST_GUIDANCE}], top-k is at least 0, top-p lies in [0, 1]",
        )


def _check(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise UsageError(f"no {what} '{name}'", f"there are {', '.join(known)}")
