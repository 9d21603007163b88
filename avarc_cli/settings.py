"""Values that options may have. There is no torch here, so that a wrong value is an error before torch is loaded."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path

from avarc_cli.errors import UsageError
from avarc_cli.words import counted

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int16", "int8", "fp8")
CASCADE = "cascade"
"""The precision of this name is `bf16+fp32`, or with fp16, int16 or int8 where the machine has no bf16."""
AUTO_PRECISION = "auto"
"""A cascade where it is much faster than fp32, and fp32 elsewhere."""
EXACT = "fp32"
"""The second precision of a cascade."""
BY_RULE, BY_TORCH, BY_ONEDNN, BY_AVARC = "rule", "torch", "onednn", "avarc"
LIBRARIES = (BY_TORCH, BY_ONEDNN, BY_AVARC)
PRODUCTS = ("auto", BY_RULE, *LIBRARIES)  # which library multiplies float32 matrices on a CPU
KERNELS = ("auto", "triton", "torch", "flash")
FLASH = "flash"
"""The kernels of this name are flash-attn's for attention, and others for the rest (`layers.kernels`)."""
_FULL_ATTENTION = ("fp32", "tf32")  # precisions that attend in float32
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
_TORCH_TYPES = (*DEVICE_TYPES, "meta")  # meta is always there and computes nothing: `devices.pick_device` refuses it
AUGMENTATIONS = ("crop", "whole", "affine", "none")
INITIALIZATIONS = SMALL, PUBLISHED = ("small", "published")  # of a VQ-VAE: for small ones, or as vaex
METHODS = ("embedding", "adaln", "lora")  # of adding a class
MASKED_NETWORKS = {"uvit": "maskgit", "bert": "maskgit-bert"}  # of a MaskGIT, and the families of such models
MOST_SHORT_SIDE = 8
MOST_GUIDANCE = 1000  # far beyond any use; float32 ends at 1e38

MAX_SCORE = 10.0  # of the LAION aesthetic predictor


def check_exists(path: str | Path | None, named_by: str) -> None:
    """Raises UsageError where an option or argument names a file or folder that is not there, or a device."""
    if path is None:
        return
    why = f"it was given as {named_by}"
    if not Path(path).exists():
        raise UsageError(f"'{path}' does not exist", why, "check the path")
    if Path(path).is_char_device() or Path(path).is_block_device():  # /dev/zero would be read for ever
        raise UsageError(f"'{path}' is a device", why, "name a file")


def check_file(path: str | Path | None, named_by: str) -> None:
    """As `check_exists`, of a file alone. Raises: UsageError."""
    check_exists(path, named_by)
    if path is not None and Path(path).is_dir():
        raise UsageError(f"'{path}' is a folder", f"it was given as {named_by}", "name a file")


def check_masked_network(name: str, dropout: float) -> None:
    """Raises: UsageError unless a MaskGIT can be such a network, with dropout where there is some."""
    _check("network", name, tuple(MASKED_NETWORKS))
    if dropout and name == "uvit":
        raise UsageError("a UViT has no dropout", fix="leave out --dropout, or add --network bert")


def check_lpips(vgg: Path | None, lpips: Path | None) -> None:
    """Raises: UsageError when one of the two files that make up LPIPS is missing."""
    if (vgg is None) == (lpips is None):
        return
    there, missing = ("--vgg", "--lpips") if vgg else ("--lpips", "--vgg")
    raise UsageError(
        f"{there} needs {missing}",
        "LPIPS weighs the features of torchvision's vgg16 (--vgg) with the weights of the lpips package (--lpips)",
        f"add {missing} with its file, or: avarc download vgg16 lpips",
    )


def check_precision(name: str) -> None:
    """Raises: UsageError unless this is a precision; `layers.precision` knows where each is available."""
    _check("precision", name, PRECISIONS)


def is_cascade(name: str) -> bool:
    """Whether the name of a precision means two of them (docs/cascade.md)."""
    return name == CASCADE or "+" in name


def precision_of_winners(name: str) -> str:
    """The precision that predictions are those of."""
    return EXACT if is_cascade(name) else name


def check_scoring_precision(name: str) -> None:
    """Raises: UsageError unless this is a precision, a cascade of two, or auto."""
    cheap, plus, exact = name.partition("+")
    if name in (CASCADE, AUTO_PRECISION):
        return
    if plus and (exact != EXACT or cheap == EXACT):
        raise UsageError(
            f"no cascade '{name}'", f"its second precision is {EXACT}, its first a faster one", "write bf16+fp32"
        )
    _check("precision", cheap, PRECISIONS if plus else (*PRECISIONS, f"bf16+{EXACT}", CASCADE, AUTO_PRECISION))


def precision_for(name: str, *, cascade: bool) -> str:
    """The precision that is asked for, where auto is fp32 unless a cascade can give the scores that are wanted."""
    return EXACT if name == AUTO_PRECISION and not cascade else name


def check_one_precision(name: str, what: str) -> None:
    """Raises: UsageError for a cascade, where `what` needs every score in one precision."""
    if is_cascade(name):
        raise UsageError(
            f"--precision {name} is not for {what}",
            "a cascade drops classes in one precision and decides close ones in another",
            f"use --precision {EXACT}: predictions are the same",
        )


ENCODER_PRECISIONS = ("fp32", "bf16")


def check_encoder_precision(name: str) -> None:
    """Raises: UsageError unless images can be encoded in this precision."""
    if name not in ENCODER_PRECISIONS:
        raise UsageError(f"images are not encoded in {name}", "there are fp32 and, on a GPU, bf16")


def check_kernels(name: str) -> None:
    """Raises: UsageError unless this is a choice of kernels; `devices.pick_kernels` knows where they run."""
    _check("kernels", name, KERNELS)
    if name == FLASH and importlib.util.find_spec("flash_attn") is None:
        raise UsageError(
            "cannot use flash-attn",
            "the package flash-attn is not installed",
            "pip install 'avarc[flash]', or use auto",
        )


def attends_in_half(precision: str) -> bool:
    """Whether attention is in half precision on a GPU. precision: one of its own, not a cascade."""
    return precision not in _FULL_ATTENTION


def flash_refuses(precision: str) -> str | None:
    """Why flash-attn does not compute in this precision; None if it does."""
    if precision == AUTO_PRECISION or is_cascade(precision):
        return f"{EXACT}, in which a cascade decides, attends in float32"
    return None if attends_in_half(precision) else f"{precision} attends in float32"


def check_kernels_compute(kernels: str, precision: str) -> None:
    """Raises: UsageError for flash-attn in a precision that it does not compute.

    Args:
        kernels: as asked for, or as `devices.pick_kernels` chose.
    """
    why = flash_refuses(precision)
    if kernels.startswith(FLASH) and why is not None:
        raise UsageError(
            f"flash-attn does not go with --precision {precision}",
            f"it computes in half precision, and {why}",
            "use --precision bf16, or --kernels auto",
        )


def check_products(name: str) -> None:
    """Raises: UsageError unless this says which library multiplies (`product_library.resolve`)."""
    _check("library of products", name, PRODUCTS)


def check_device(name: str) -> None:
    """Raises: UsageError unless this names a device, which may or may not be there (`devices.pick_device`)."""
    if name != "auto" and not re.fullmatch(rf"({'|'.join(_TORCH_TYPES)})(:[0-9]{{1,3}})?", name):
        why, fix = f"avarc runs on {', '.join(DEVICE_TYPES)}", "use auto or cpu; avarc doctor lists devices"
        raise UsageError(f"cannot use device '{name}'", why, fix)


TRAINING_PRECISIONS = ("fp32", "bf16", "fp16")


def check_training_precision(precision: str) -> None:
    """Raises: UsageError for one that models are not trained in."""
    _check("training precision", precision, TRAINING_PRECISIONS)


def check_augmentation(name: str) -> None:
    """Raises: UsageError unless this is a way to change training images (`train.images.Augment`)."""
    _check("augmentation", name, AUGMENTATIONS)


def check_short_side(sides: tuple[float, float]) -> None:
    """Raises: UsageError unless these are bounds of a shorter side, in sides of what is cut from it."""
    if not 1 <= sides[0] <= sides[1] <= MOST_SHORT_SIDE:
        raise UsageError(
            f"--short-side is {sides[0]:g},{sides[1]:g}",
            f"the first is at least 1, and at most the second, which is at most {MOST_SHORT_SIDE}",
            "write --short-side 1,1.25",
        )


def check_initialization(name: str) -> None:
    """Raises: UsageError unless a VQ-VAE can begin like this."""
    _check("initialization", name, INITIALIZATIONS)


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


def check_fraction(fraction: float, named_by: str) -> None:
    """Raises: UsageError."""
    if not 0 <= fraction <= 1:
        raise UsageError(f"{named_by} is {fraction}", "it is a fraction in [0, 1]")


def check_aesthetic_score(score: float | None) -> None:
    """Raises: UsageError unless it is None or a number from 0."""
    if score is not None and not (math.isfinite(score) and score >= 0):
        raise UsageError(f"--aesthetic-score {score:g}", "it is a number, at least 0")


def check_contrast(beta: float, weight: float, class_dropout: float) -> None:
    """Raises: UsageError for numbers outside the ranges of `train.cca.Contrast`."""
    if not (math.isfinite(beta) and beta > 0 and math.isfinite(weight) and weight >= 0):
        raise UsageError(f"beta is {beta}, the weight {weight}", "beta is above 0, the weight at least 0")
    check_class_dropout(class_dropout)


def check_width(width: int, what: str, *, multiple: int = 64) -> None:
    """Raises: UsageError unless `what`, a network to train, can have this number of channels."""
    if width % multiple or width < multiple:
        raise UsageError(f"{what} of width {width}", f"it is a multiple of {multiple}")


def check_patch(image_size: int, patch: int) -> None:
    """Raises: UsageError unless patches of this side fill an image."""
    if image_size % patch:
        raise UsageError(f"patches of {patch} pixels do not fill images of {image_size}", fix="choose a divisor")


def check_heads(width: int, heads: int | None, what: str) -> None:
    """Raises: UsageError unless `what`, a generator to train with rotary embeddings, can have this many heads.

    Args:
        heads: None for as many as have 64 channels.
    """
    count = heads or max(width // 64, 1)
    if width % (4 * count):
        raise UsageError(
            f"{what} of width {width} cannot have {counted(count, 'head')}",
            "each takes the same number of channels, a multiple of 4",
            f"choose a width that {4 * count} divides, or other heads",
        )


def check_levels(image_size: int, multipliers: Sequence[int], width: int) -> None:
    """Check the shape of a convolutional tokenizer that is to be trained, with one grid of tokens.

    Args:
        image_size: pixels a side. multipliers: channels of each level as a multiple of `width`.
    Raises: UsageError for values that do not fit together.
    """
    downsampling = 2 ** (len(multipliers) - 1)
    if image_size % downsampling or width % 32:
        raise UsageError(
            f"multipliers {','.join(map(str, multipliers))}, width {width} do not fit {image_size}-pixel images",
            "each multiplier but one halves the side; a width is 32, 64, ...",
            f"choose an image size that {downsampling} divides, or fewer multipliers",
        )


def check_tokenizer_shape(image_size: int, scales: Sequence[int], multipliers: Sequence[int], width: int) -> None:
    """Check the shape of a multi-scale VQ-VAE that is to be trained.

    Args:
        image_size: pixels a side. scales: sides of the token grids, coarse to fine.
        multipliers: channels of each level as a multiple of `width`.
    Raises: UsageError for values that do not fit together.
    """
    downsampling = 2 ** (len(multipliers) - 1)
    pixels = scales[-1] * downsampling
    if pixels != image_size or width % 32 or list(scales) != sorted(set(scales)):
        sides, factors = (",".join(map(str, numbers)) for numbers in (scales, multipliers))
        raise UsageError(
            f"scales {sides}, multipliers {factors}, width {width} do not fit {image_size}-pixel images",
            f"they are for {pixels} pixels ({scales[-1]} x {downsampling}); a width is 32, 64, ...",
            "scales increase, and the last times 2 for every multiplier but one gives the image size",
        )


def parse_dimensions(text: str) -> tuple[int, ...]:
    """Positive whole numbers with colons between, as in DEPTH:WIDTH:HEADS; () for any other text."""
    parts = text.split(":")
    readable = all(re.fullmatch("[0-9]{1,9}", part) and int(part) > 0 for part in parts)
    return tuple(int(part) for part in parts) if readable else ()


def parse_pair(text: str, named_by: str) -> tuple[float, float]:
    """Two numbers with a comma between them. Raises: UsageError for any other text."""
    number = r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?"
    found = re.fullmatch(rf"\s*({number})\s*,\s*({number})\s*", text)
    if found is None:
        raise UsageError(f"cannot read {named_by} '{text}'", "it is two numbers", f"write {named_by} 0.5,0.9")
    return float(found[1]), float(found[2])


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
