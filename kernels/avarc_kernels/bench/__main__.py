"""Check every kernel against float64 and time it next to the alternatives: `python -m avarc_kernels.bench`.

Run it on a machine with a GPU for the whole table. Without one, the kernels run in Triton's interpreter on small shapes
and are checked only; PyTorch's implementations are timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product

import torch

from avarc_kernels.bench.measure import HAS_GPU, Case, Figure, matmul_rate, measure
from avarc_kernels.bench.models import ON_A_GPU, QUICK, SMALL, Model

OPS = (  # each is a module of this folder
    "linear_log_prob",
    "block_causal_attention",
    "adaln",  # and gated_residual_adaln
    "linear_gelu",
    "nearest_code",
    "quantize_rows",
    "causal_attention",
    "rms_norm",
    "head_layer_norm",
    "rotary",
    "swiglu",
)
MODELS = {model.name: model for model in (ON_A_GPU if HAS_GPU else SMALL)}
CPU_IMPLEMENTATIONS = ("torch", "full logits", "dense mask", "full matrix")
HAS_TRITON = importlib.util.find_spec("triton") is not None


def main() -> int:
    """Return 0 if all our implementations ran and stayed within their error bounds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m avarc_kernels.bench", description=__doc__)
    parser.add_argument("--op", choices=OPS, action="append", help="only this operation; repeatable")
    parser.add_argument("--model", choices=MODELS, action="append", help="only shapes of this model; repeatable")
    parser.add_argument("--quick", action="store_true", help="one size a family, fewer pairs, one half precision")
    parser.add_argument("--eager", action="store_true", help="leave out compiled PyTorch, which takes minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args()
    ops, asked = options.op or OPS, options.model or (QUICK if options.quick and HAS_GPU else tuple(MODELS))
    models = [MODELS[name] for name in asked]
    if not any(op in model.operations for op in ops for model in models):
        parser.error(f"{', '.join(asked)} and {', '.join(ops)}: no such model has such an operation")
    if not HAS_GPU:
        os.environ["TRITON_INTERPRET"] = "1"  # triton is not imported yet
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    dtypes = [torch.float32, torch.bfloat16, torch.float16] if HAS_GPU else [torch.float32]
    dtypes = dtypes[:2] if options.quick else dtypes
    peaks = {str(d).removeprefix("torch."): matmul_rate(d) for d in dtypes}
    machine = _machine() | {"matmul_rate": peaks}
    if not options.json:
        print(_headline(machine), flush=True)
    figures = []
    for case in _cases(ops, dtypes, models, pairs=_pairs(quick=options.quick)):
        names = [name for name in case.calls if _can_run(name) and not (options.eager and _compiles(name))]
        of_case = [measure(case, name, timed=HAS_GPU or name != "triton") for name in names]
        figures += of_case
        if not options.json:
            _show(case, of_case, peaks)
    wrong = [f for f in figures if f.wrong]
    if options.json:
        print(json.dumps(machine | {"figures": [asdict(f) for f in figures], "wrong": len(wrong)}))
    else:
        print(f"\n{len(wrong)} of our implementations failed or exceeded their error bounds.")
    return 1 if wrong else 0


def _can_run(name: str) -> bool:
    """Whether this machine can run the implementation: without a GPU, ours and eager PyTorch only."""
    if name == "triton":
        return HAS_TRITON
    return HAS_GPU or name in CPU_IMPLEMENTATIONS


def _compiles(name: str) -> bool:
    return name.endswith(", compiled") or name == "FlexAttention"


def _pairs(*, quick: bool) -> int:
    """Pairs of image and class in a batch."""
    return (8 if quick else 64) if HAS_GPU else 1


def _cases(ops: Sequence[str], dtypes: list[torch.dtype], models: Sequence[Model], *, pairs: int) -> Iterator[Case]:
    for op in ops:
        module = importlib.import_module(f"avarc_kernels.bench.{op}")
        for dtype, model in product(dtypes, models):
            if op in model.operations:
                yield from module.cases(dtype, pairs=pairs, model=model)


def _machine() -> dict[str, object]:
    triton = importlib.import_module("triton").__version__ if HAS_TRITON else None
    name = torch.cuda.get_device_name() if HAS_GPU else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__, "triton": triton}


def _headline(machine: dict[str, object]) -> str:
    lines = [f"{machine['device']}, torch {machine['torch']}, triton {machine['triton']}"]
    if not HAS_TRITON:
        lines.append("triton is not installed: PyTorch's implementations only.")
    elif not HAS_GPU:
        lines.append("No GPU: kernels are checked in Triton's interpreter on small shapes, and not timed.")
    peaks = machine["matmul_rate"]
    assert isinstance(peaks, dict)
    lines.append("matmul: " + ", ".join(f"{d} {rate / 1e12:.3g} TFLOP/s" for d, rate in peaks.items()))
    return "\n".join(lines)


def _show(case: Case, figures: list[Figure], peaks: dict[str, float]) -> None:
    ours = next((f for f in figures if f.name == "triton"), figures[0])
    print(f"\n{case.op}  {case.shape}  {ours.dtype}")
    print(
        f"  {'':24}{'ms':>10}{'ours x':>9}{'of peak':>9}{'GB/s':>8}{'MiB':>9}{'ours/it':>9}{'error':>11}{'allowed':>11}"
    )
    for f in figures:
        if f.failed:
            print(f"  {f.name:24}{f.failed}")
            continue
        cells = [
            _cell(f.seconds and f.seconds * 1e3, 10, ".3f"),
            _cell(f.seconds and ours.seconds and f.seconds / ours.seconds, 9, ".2f"),
            _cell(f.flops_per_second and f.flops_per_second / peaks[f.dtype], 9, ".0%"),
            _cell(f.bytes_per_second and f.bytes_per_second / 1e9, 8, ".0f"),
            _cell(f.memory and f.memory / 2**20, 9, ".1f"),
            _cell(f.memory and ours.memory and ours.memory / f.memory, 9, ".1%"),
            _cell(f.error, 11, ".1e"),
            _cell(f.allowed, 11, ".1e"),
        ]
        print(f"  {f.name:24}" + "".join(cells) + (f"  WRONG: {f.mismatch}" if f.wrong else ""), flush=True)


def _cell(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


if __name__ == "__main__":
    sys.exit(main())
