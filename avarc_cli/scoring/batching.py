"""How much to score at once, and what it will cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from avarc_cli.errors import UsageError
from avarc_cli.layers.linears import convert_linears, linear
from avarc_cli.layers.precision import PRECISIONS, tf32
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.plan import Plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.words import counted

# Memory of a batch on a CPU; its largest tensor, the MLP's, takes a quarter of it. From 32 MiB (the largest value of
# glibc's mmap threshold, mallopt(3)) malloc maps and unmaps a tensor at every use: larger batches took 2.5 times as
# long on the digits.
CPU_BYTES = 128 << 20
# Of a batch on a GPU whose free memory must not matter: 12,500 tokens of a d16 in bf16, which an H200 computes in the
# time that it takes to launch them (docs/gpu.md).
GPU_BYTES = 2 << 30
GPU_FRACTION = 0.5  # of the free GPU memory; the rest is for the KV caches of survivors. Not measured
# Largest batch. A batch of this size takes an H200 120 ms for a d16 in bf16, and its launches 10 ms (docs/gpu.md).
MAX_TOKENS = 1 << 17
PROCESS_BYTES = 512 << 20  # Python, torch and the tokens of a group: 260 MiB once the digits model is loaded on a CPU
# Of this machine's matrix product rate, to estimate times. With a d16 on a Xeon plain PyTorch reaches 60 %, avarc in
# fp32 69 % (docs/performance.md); in bf16 on an H200, most models 53 to 68 %, a RAR 4 % (docs/gpu.md).
FRACTION_OF_PEAK = 0.6
ROUNDS, MOST_SECONDS = 5, 0.3  # of measuring that rate


def auto_tokens(
    model: LikelihoodModel,
    plan: Plan,
    device: torch.device,
    *,
    fixed: bool,
    memory: int | None = None,
    other_weights: int = 0,
) -> int:
    """Tokens of one forward pass.

    On a CPU, and if batches must not depend on the state of the machine (`fixed`), this is a function of model, plan,
    `memory` and `other_weights` alone. A batch that is cached needs memory for its keys and values twice: where they
    are written, and for the copy of the survivors. The caches of a group's survivors take at most as much as a batch.

    Args:
        fixed: do not look at the free memory.
        memory: bytes that the whole run may take on its device, weights included; None for no limit.
        other_weights: bytes of it that the weights of other precisions take.
    Raises: UsageError if `memory` is too little for the weights and the smallest batch.
    """
    budget, least = GPU_BYTES if device.type == "cuda" else CPU_BYTES, model.segment_ends[-1] // 4
    if device.type == "cuda" and not fixed:
        budget = int(torch.cuda.mem_get_info(device)[0] * GPU_FRACTION)
    per_token = model.bytes_per_token(cached=False)
    if (device.type == "cuda" or memory is not None) and (len(plan.stages) > 1 or plan.samples > 1):
        per_token += 2 * model.bytes_per_token(cached=True)
    if memory is not None:
        resident = model.resident_bytes + other_weights + PROCESS_BYTES
        free = (memory - resident) // 2  # the other half is for the KV caches of survivors
        if free < least * per_token:
            needs = -(-(resident + 2 * least * per_token) // 2**20)
            raise UsageError(
                f"{memory >> 20:,} MiB is too little",
                f"this model and plan need {needs:,} MiB",
                f"use --memory {needs}MiB or more",
            )
        budget = free if device.type == "cuda" else min(budget, free)
    return max(least, min(MAX_TOKENS, budget // per_token))


def cached_tokens_per_batch(model: LikelihoodModel, device: torch.device) -> int | None:
    """Tokens whose keys and values a batch on a CPU stores: as much memory as its rest, or a 16th of the model's.

    They lie beside those of all survivors so far. With twice as many, a d16 and a LlamaGen-L were as fast within 2 %.
    Large models need the 16th: every pass reads all weights, which takes long for a few tokens. None, no limit, on a
    GPU, where `auto_tokens` allows for them, and for a model that caches nothing.
    """
    per_token = model.bytes_per_token(cached=True)
    if device.type != "cpu" or not per_token:
        return None
    return max(CPU_BYTES, model.resident_bytes // 16) // per_token


def max_cached_tokens(model: LikelihoodModel, memory: int | None, other_weights: int = 0) -> int | None:
    """Tokens whose keys and values fit in the half of `memory` that batches do not use; None without a limit.

    Args:
        memory, other_weights: as in `auto_tokens`.
    """
    per_token = model.bytes_per_token(cached=True)
    if memory is None or not per_token:  # a model of hidden tokens caches nothing
        return None
    resident = model.resident_bytes + other_weights + PROCESS_BYTES
    return max(0, (memory - resident) // 2) // per_token


@dataclass(frozen=True)
class Cost:
    """What a run takes."""

    pairs: int
    """Pairs of image and class."""
    tokens: int
    """Token log-probabilities."""
    seconds: float
    """Estimate."""
    memory: int
    """Estimate, in bytes."""

    def __str__(self) -> str:
        needs = f"about {_duration(self.seconds)} and {self.memory >> 20:,} MiB"
        return f"{counted(self.tokens, 'token')}, {needs}"


def estimate(
    model: LikelihoodModel, request: ScoringRequest, images: int, device: torch.device, precision: str
) -> Cost:
    """The cost of scoring this many images, from the model's arithmetic and this machine's matrix product rate.

    Args:
        precision: a name, or a cascade, of which only the first precision is estimated. Stages in others count as in
            this one.
    """
    tokens = images * request.tokens_per_image(model)
    survivors = request.cached_tokens(model) * request.images_per_group(model)
    stored = min(request.tokens_per_batch, request.cached_tokens_per_batch or request.tokens_per_batch)
    cached = survivors + (stored if survivors else 0)  # a batch beside those that survived before it
    memory = cached * model.bytes_per_token(cached=True) + request.tokens_per_batch * model.bytes_per_token(
        cached=False
    )
    rate = _flops_per_second(device, precision.partition("+")[0])
    seconds = tokens * model.flops_per_token / (FRACTION_OF_PEAK * rate)
    return Cost(images * request.columns, tokens, seconds, memory)


@cache
def _flops_per_second(device: torch.device, name: str) -> float:
    """Of a linear of a model in the precision of this name; on a GPU 8-bit numbers count as bfloat16."""
    side, precision, seconds = (4096 if device.type == "cuda" else 768), PRECISIONS[name], list[float]()
    if device.type == "cuda" and precision.quantized:
        precision = PRECISIONS["bf16"]
    block = nn.ModuleDict({"layer": nn.Linear(side, side, device=device)})
    convert_linears(block, ["layer"], precision)
    x = torch.randn(side, side, device=device).to(precision.activations)
    with torch.inference_mode(), tf32(name == "tf32"):
        while len(seconds) < 2 or (len(seconds) < ROUNDS and sum(seconds) < MOST_SECONDS):
            started = time.perf_counter()
            linear(block["layer"], x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds[1:])  # the first warms up


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
