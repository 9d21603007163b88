"""The rounding noise of one token's log-probability, in nats, that scoring.scores.TOKEN_NOISE is set from.

fp32 is compared with the reference implementation's float32, the others with our fp32; on golden models. tf32 is
computed on the CPU with the numbers that a GPU would multiply.

usage: python tests/benchmarks/token_noise.py [GOLDEN ...] [--json]
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import Golden, load_golden
from figure_tables import Cell, Table, say, show, wants_json

from avarc_cli.layers.precision import PRECISIONS, Precision, find
from avarc_cli.models.var.likelihood import VARLikelihood


def tf32(x: Tensor) -> Tensor:
    """Rounded to the 10 bits of mantissa that TF32 products see; their sums are float32."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class TF32(TorchFunctionMode):
    """Linears and attention on rounded numbers."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function is F.linear:
            args = (tf32(args[0].contiguous()), tf32(args[1].contiguous()), *args[2:])
        if function is F.scaled_dot_product_attention:
            args = (*(tf32(x.contiguous()) for x in args[:3]), *args[3:])
        return function(*args, **(kwargs or {}))


def precision_of(name: str) -> Precision:
    """As this CPU computes it; what it does not have, as written down, by the products that `TF32` changes."""
    return replace(PRECISIONS[name], library="torch") if name in ("tf32", "fp8") else find(name, torch.device("cpu"))


def token_log_prob(golden: Golden, precision: str) -> Tensor:
    model = VARLikelihood(golden.var().set_precision(precision_of(precision)), golden.vqvae().quantize)
    tokens, classes = golden.tokens(), torch.from_numpy(golden.arrays["classes"]).long()
    pairs = torch.cartesian_prod(torch.arange(len(tokens)), torch.arange(len(classes)))
    state = model.begin(tokens, pairs[:, 0], classes[pairs[:, 1]])
    return model.extend(state, len(model.segment_ends), keep_cache_segments=0).view(len(tokens), len(classes), -1)


def main(names: list[str], *, as_json: bool) -> None:
    rows: list[list[Cell]] = []
    low = ("bf16", "fp16", "int16", "int8", "fp8")  # on a CPU without VNNI int8 has 7-bit weights: the coarser kind
    for name in names:
        golden = load_golden(name)
        fp32 = token_log_prob(golden, "fp32")
        reference = torch.from_numpy(golden.arrays["token_log_prob"])
        with TF32():
            found = {"fp32": fp32 - reference, "tf32": token_log_prob(golden, "tf32") - fp32}
        found |= {precision: token_log_prob(golden, precision) - fp32 for precision in low}
        rows.append([f"`{name}`", *(float(error.std()) for error in found.values())])
        say(f"{name} measured")
    columns = [(precision, ".1e") for precision in ("fp32", "tf32", *low)]
    show(Table([("noise of a token, nats", ""), *columns], rows), as_json=as_json)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    main(sys.argv[1:] or ["var_tiny", "var_tiny_shared_aln", "var_tiny_no_qk_norm", "var_d16"], as_json=as_json)
