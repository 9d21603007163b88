"""How much to score at once, and what it will cost."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

from avarc_cli.errors import UsageError
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.engine import Request
from avarc_cli.scoring.plan import Plan

# Of a batch on a CPU. Its largest tensor, the MLP's, is a quarter of that: from 32 MiB on malloc maps and unmaps a
# tensor at every use, and what goes over it is three times slower.
CPU_BYTES = 128 << 20
GPU_SHARE = 0.5  # of the free memory; the prefix of the survivors needs room too
MAX_TOKENS = 1 << 17
PROCESS_BYTES = 512 << 20  # Python, torch, the tokens of a group
SHARE_OF_PEAK = 0.6  # what a forward pass reaches of the matrix product rate; only for the estimate of time


def auto_tokens(
    model: LikelihoodModel, plan: Plan, device: torch.device, *, fixed: bool, memory: int | None = None
) -> int:
    """Tokens of one forward pass.

    On a CPU, and where batches must not depend on the state of the machine (`fixed`), a function of model, plan and
    `memory` alone. A batch whose prefix is kept needs room for it twice: while it is made, and while survivors are
    selected; the prefixes of a group's survivors take at most as much as a batch.

    Args:
        memory: bytes that the whole run may take on its device, weights included; None for no limit of one's own.
    Raises: UsageError when `memory` does not hold the weights and the smallest batch.
    """
    budget, least = CPU_BYTES, model.segment_ends[-1] // 4
    if device.type == "cuda" and not fixed:
        budget = int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    per_token = model.bytes_per_token(kept=False)
    if (device.type == "cuda" or memory is not None) and (len(plan.stages) > 1 or plan.samples > 1):
        per_token += 2 * model.bytes_per_token(kept=True)
    if memory is not None:
        resident = int(getattr(model, "resident_bytes", 0)) + PROCESS_BYTES
        free = (memory - resident) // 2  # the other half for survivors' prefixes
        if free < least * per_token:
            needs = -(-(resident + 2 * least * per_token) // 2**20)
            raise UsageError(
                f"{memory >> 20:,} MiB is too little",
                f"this model and plan need {needs:,} MiB",
                f"use --memory {needs}MiB or more",
            )
        budget = free if device.type == "cuda" else min(budget, free)
    return max(least, min(MAX_TOKENS, budget // per_token))


def prefix_tokens(model: LikelihoodModel, memory: int | None) -> int | None:
    """Tokens whose keys and values fit into the half of `memory` that batches leave; None without a limit."""
    if memory is None:
        return None
    resident = int(getattr(model, "resident_bytes", 0)) + PROCESS_BYTES
    return max(0, (memory - resident) // 2) // model.bytes_per_token(kept=True)


def parse_bytes(text: str) -> int:
    """Bytes from "8GiB", "500MiB" or "8GB". Raises UsageError for anything else."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([GM])(i?)B", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"cannot read '{text[:20]}' as an amount of memory", fix="write it as 8GiB or 500MiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** (3 if match[2] == "G" else 2))


@dataclass(frozen=True)
class Cost:
    """What a run will take: pairs of image and class, token log-probabilities, seconds and bytes (both estimates)."""

    pairs: int
    tokens: int
    seconds: float
    memory: int

    def __str__(self) -> str:
        needs = f"about {_duration(self.seconds)} and {self.memory >> 20:,} MiB"
        return f"{self.pairs:,} pairs, {self.tokens:,} tokens, {needs}"


def estimate(model: LikelihoodModel, request: Request, images: int, device: torch.device) -> Cost:
    """The cost of scoring so many images, from the model's arithmetic and this machine's matrix product rate."""
    tokens = images * request.tokens_per_image(model)
    kept = request.kept_tokens(model) * request.images_per_group(model)
    memory = kept * model.bytes_per_token(kept=True) + request.tokens_per_batch * model.bytes_per_token(kept=False)
    seconds = tokens * model.flops_per_token / (SHARE_OF_PEAK * _flops_per_second(device))
    return Cost(images * request.columns, tokens, seconds, memory)


def _flops_per_second(device: torch.device, side: int = 768) -> float:
    a = torch.randn(side, side, device=device)
    for repetitions in (1, 4):  # the first warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(repetitions):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return repetitions * 2 * side**3 / (time.perf_counter() - started)


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
