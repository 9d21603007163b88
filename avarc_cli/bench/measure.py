"""Measure what scoring costs: every precision and backend that is present, and plain PyTorch, alternating.

Shapes: P pairs of one image and a class, L tokens, Z latent channels, C width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from avarc_cli.bench import plain
from avarc_cli.errors import UsageError
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.precision import tf32
from avarc_cli.models.var.config import VARConfig
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.network import VAR
from avarc_cli.scoring.plan import Plan
from avarc_kernels import triton_missing

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # VAR's at 256 px
OPS_SHOWN = 8
BATCH_TOKENS = 2048  # what scoring.batching gives a d16 on a CPU


@dataclass(frozen=True)
class Result:
    """One way to score. Times are of the fastest round.

    seconds: wall time of all pairs; cpu_seconds: of all threads together; flops: operations a second, useful ones
    only; share_of_peak: of the machine's own rate of matrix products (fp32 on a CPU, bf16 on CUDA); memory: bytes that
    it took at most beyond the weights; error_mean, error_max: nats a token against plain PyTorch.
    """

    name: str
    precision: str
    kernels: str
    seconds: float
    cpu_seconds: float
    pairs_per_second: float
    images_per_second: float
    tokens_per_second: float
    flops: float
    share_of_peak: float
    memory: int | None
    speedup: float
    error_mean: float
    error_max: float
    ops: tuple[tuple[str, float], ...]  # share of the time, largest first


@dataclass(frozen=True)
class Report:
    """A whole run. tokens_*: token log-probabilities of one image with `classes` candidates."""

    shape: str
    device: str
    threads: int
    pairs: int
    peak_flops: float
    results: tuple[Result, ...]
    plan: str
    classes: int
    tokens_exhaustive: int
    tokens_again: int  # under the plan, when every stage starts from nothing
    tokens_plan: int  # under the plan, when prefixes are kept


def parse_shape(text: str, scales: tuple[int, ...] = SCALES) -> VARConfig:
    """The configuration that "d16" or "DEPTH:WIDTH:HEADS" stands for. Raises UsageError for anything else."""
    numbers = text[1:] if text[:1] == "d" else text
    parts = numbers.split(":")
    if not all(p.isdecimal() and int(p) > 0 for p in parts) or len(parts) != (1 if text[:1] == "d" else 3):
        raise UsageError(f"no shape '{text}'", fix="write d16, or depth:width:heads like 4:256:4")
    depth, width, heads = (
        (int(p) for p in parts) if len(parts) == 3 else (int(numbers), 64 * int(numbers), int(numbers))
    )
    if width % heads:
        raise UsageError(f"no shape '{text}'", f"{width} channels do not divide among {heads} heads")
    c = VARConfig(
        depth=depth, width=width, heads=heads, num_classes=1000, patch_nums=scales, vocab_size=4096, z_channels=32
    )
    return replace(c, num_classes=100) if width < 512 else c


def random_var(config: VARConfig, seed: int = 0) -> VAR:
    """A VAR of this shape with random weights: linears keep the size of what they are given."""
    generator = torch.Generator().manual_seed(seed)
    var = VAR(config).eval().requires_grad_(False)
    for name, p in var.named_parameters():
        if p.ndim == 2:
            p.data.normal_(0, (0.5 if "ada_lin" in name else 1.0) / p.shape[1] ** 0.5, generator=generator)
        elif "scale_mul" not in name:
            p.data.normal_(0, 0.02, generator=generator)
    return var


class _Bench:
    """One image, P classes, the same weights for everyone."""

    def __init__(self, var: VAR, pairs: int, device: torch.device) -> None:
        self.config, self.device, self.pairs = var.config, device, pairs
        self.weights = {k: v.clone() for k, v in var.to(device).state_dict().items()}
        counts = torch.tensor([p * p for p in self.config.patch_nums])
        levels = torch.arange(len(counts)).repeat_interleave(counts)
        self.lvl_1L = levels[None].to(device)
        generator = torch.Generator().manual_seed(1)
        length = self.config.ends[-1]
        self.tokens_L = torch.randint(self.config.vocab_size, (length,), generator=generator).to(device)
        rest = length - self.config.ends[0]
        self.teacher = torch.randn(1, rest, self.config.z_channels, generator=generator).to(device)
        self.class_id_P = torch.arange(pairs, device=device) % self.config.num_classes

    def teacher_input(self, tokens_BL: Tensor) -> Tensor:
        """In the quantiser's place: the tokens are random anyway."""
        return self.teacher.expand(len(tokens_BL), -1, -1)

    def plain(self) -> Tensor:
        weights = self.weights | {"lvl_1L": self.lvl_1L}
        with tf32(False):
            return plain.token_log_prob(weights, self.tokens_L, self.teacher, self.class_id_P)

    def ours(self, precision: str, kernels: str) -> Callable[[], Tensor]:
        with torch.device("meta"):
            var = VAR(self.config)
        var.load_state_dict(dict(self.weights), assign=True)
        var = var.eval().requires_grad_(False)
        model = VARLikelihood(
            var.set_precision(precisions.find(precision, self.device)).set_kernels(kernels),
            self,  # type: ignore[arg-type]  # it has all of a quantiser that scoring uses
        )
        at_once = self.pairs if self.device.type == "cuda" else max(1, BATCH_TOKENS // self.config.ends[-1])

        def run() -> Tensor:
            rows = []
            for class_id_Q in self.class_id_P.split(at_once):
                state = model.begin(self.tokens_L[None], torch.zeros_like(class_id_Q), class_id_Q)
                rows.append(model.extend(state, len(self.config.ends), keep_cache_segments=0))
            return torch.cat(rows)

        return run


def measure(
    var: VAR, shape: str, *, plan: Plan, classes: int, pairs: int, rounds: int, device: torch.device,
    precision: str | None = None, kernels: str | None = None,
) -> Report:  # fmt: skip
    """Score `pairs` pairs of one image in every way that is present, `rounds` times, in turn.

    Args:
        plan, classes: what tokens are counted for.
        precision, kernels: only these (precisions comma-separated); None for all that are present.
    Raises: UsageError for a precision or kernels that are not.
    """
    bench = _Bench(var, pairs, device)
    asked = precisions.available(device) if precision is None else precision.split(",")
    names = [precisions.find(name.strip(), device).name for name in asked]
    backends = ("torch",) if triton_missing(device) else ("torch", "triton")
    ways: dict[tuple[str, str, str], Callable[[], Tensor]] = {("plain PyTorch", "fp32", "eager"): bench.plain}
    for name in names:
        for backend in backends if kernels is None else (kernels,):
            ways["avarc", name, backend] = bench.ours(name, backend)
    peak = _product_rate(device)
    truth = bench.plain().double()
    best: dict[tuple[str, str, str], tuple[float, float]] = {}
    outs, memory = {}, {}
    for round_ in range(rounds + 1):  # the first warms up, and is measured for memory
        peak = max(peak, _product_rate(device))  # again and again: another process may have disturbed one
        for key, run in ways.items():
            if round_ == 0:
                memory[key], outs[key] = _memory_of(run, device)
                continue
            wall, cpu = _timed(run, device)
            best[key] = min(best.get(key, (wall, cpu)), (wall, cpu))
    plain_seconds = best["plain PyTorch", "fp32", "eager"][0]
    results = []
    for key, run in ways.items():
        wall, cpu = best[key]
        error = (outs[key].double() - truth).abs()
        flops = var.config.flops * pairs / wall
        results.append(
            Result(
                name=key[0],
                precision=key[1],
                kernels=key[2],
                seconds=wall,
                cpu_seconds=cpu,
                pairs_per_second=pairs / wall,
                images_per_second=pairs / wall / classes,
                tokens_per_second=pairs * var.config.ends[-1] / wall,
                flops=flops,
                share_of_peak=flops / peak,
                memory=memory[key],
                speedup=plain_seconds / wall,
                error_mean=float(error.mean()),
                error_max=float(error.max()),
                ops=_breakdown(run, device),
            )
        )
    ends = var.config.ends
    return Report(
        shape=shape,
        device=str(device),
        threads=torch.get_num_threads(),
        pairs=pairs,
        peak_flops=peak,
        results=tuple(results),
        plan=str(plan),
        classes=classes,
        tokens_exhaustive=classes * ends[-1],
        tokens_again=tokens_again(plan, classes, ends),
        tokens_plan=plan.tokens(classes, ends),
    )


def tokens_again(plan: Plan, candidates: int, ends: tuple[int, ...]) -> int:
    """Tokens scored for one image when every stage scores all of its samples from the first token on."""
    total = 0
    for stage in plan.stages:
        total += candidates * stage.samples * ends[stage.segments - 1]
        candidates = min(candidates, stage.keep)
    return total


def _timed(run: Callable[[], Tensor], device: torch.device) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _memory_of(run: Callable[[], Tensor], device: torch.device) -> tuple[int | None, Tensor]:
    """The most bytes that a run took beyond what was there before; None where that cannot be told."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        out = run()
        return torch.cuda.max_memory_allocated(device) - before, out
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")  # the high-water mark starts again (Linux)
    except OSError:
        return None, run()
    before = _status("VmRSS")
    out = run()
    return max(0, _status("VmHWM") - before), out


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def _breakdown(run: Callable[[], Tensor], device: torch.device) -> tuple[tuple[str, float], ...]:
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        run()
    events = profiler.key_averages()
    spent = {e.key: float(e.self_device_time_total if cuda else e.self_cpu_time_total) for e in events}
    total = sum(spent.values()) or 1.0
    largest = sorted(spent.items(), key=lambda item: -item[1])[:OPS_SHOWN]
    return tuple((name, seconds / total) for name, seconds in largest)


def _product_rate(device: torch.device) -> float:
    """Operations a second of a matrix product of the sizes that matter: fp32 on a CPU, bf16 on CUDA."""
    cuda = device.type == "cuda"
    dtype, rows = (torch.bfloat16, 8192) if cuda else (torch.float32, 1024)
    a = torch.randn(rows, 8192 if cuda else 1024, device=device).to(dtype)
    b = torch.randn(a.shape[1], 8192 if cuda else 4096, device=device).to(dtype)
    a @ b
    seconds = min(_timed(lambda: a @ b, device)[0] for _ in range(5))
    return 2 * a.shape[0] * a.shape[1] * b.shape[1] / seconds
