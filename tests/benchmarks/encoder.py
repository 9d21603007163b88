"""The published VQ-VAE's encoder (random weights) on a CPU: plain eager NCHW, channels last, and as avarc runs it.

CPU seconds on one thread, which other processes on the machine disturb least; then wall seconds on all threads.
Results: docs/encoding.md. python tests/benchmarks/encoder.py [IMAGES] [--json]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch is imported

import torch
from figure_tables import Cell, Table, say, show, wants_json
from torch import Tensor
from torch.nn import functional as F

from avarc_cli import heap
from avarc_cli.layers import conv_blocks
from avarc_cli.tokenizers.vqvae.config import VQVAEConfig
from avarc_cli.tokenizers.vqvae.network import VQVAE
from avarc_cli.words import counted

PUBLISHED = VQVAEConfig(
    vocab_size=4096, z_channels=32, ch=160, ch_mult=(1, 1, 2, 2, 4), patch_nums=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
)


def best(encode: Callable[[Tensor], Tensor], images: Tensor, clock: Callable[[], float], repeats: int = 2) -> float:
    """Seconds an image."""
    encode(images[:1])
    seconds = []
    for _ in range(repeats):
        begin = clock()
        encode(images)
        seconds.append((clock() - begin) / len(images))
    return min(seconds)


def ways(images: Tensor) -> dict[str, tuple[VQVAE, Tensor, bool]]:
    """Name -> model, its input, and whether activations are computed in place."""
    torch.manual_seed(0)
    plain, last, ours = (VQVAE(PUBLISHED).eval() for _ in range(3))
    last.load_state_dict(plain.state_dict())
    ours.load_state_dict(plain.state_dict())
    for model in (last, ours):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours.speed_up()
    nhwc = images.contiguous(memory_format=torch.channels_last)
    return {
        "plain eager, NCHW": (plain, images, False),
        "channels last": (last, nhwc, True),
        "avarc": (ours, nhwc, True),
    }


@torch.inference_mode()
def main(count: int, *, as_json: bool) -> None:
    torch.manual_seed(1)
    images = torch.rand(count, 3, 256, 256) * 2 - 1
    made = ways(images)
    in_place, cores = conv_blocks.silu, torch.get_num_threads()
    columns: list[tuple[str, str]] = [("method", "")]
    cells: dict[str, list[Cell]] = {name: [name] for name in made}
    for threads, clock, unit in ((1, time.process_time, "CPU seconds"), (cores, time.perf_counter, "seconds")):
        torch.set_num_threads(threads)
        columns += [(f"{counted(threads, 'thread')}, {unit} per image", ".2f"), ("factor", ".2f")]
        first = 0.0
        for name, (model, pixels, ours) in made.items():
            setattr(conv_blocks, "silu", in_place if ours else F.silu)  # noqa: B010
            with heap.keep_freed_memory() if name == "avarc" else nullcontext():
                seconds = best(model.encode, pixels, clock)
            first = first or seconds
            cells[name] += [seconds, first / seconds]
    tokens = {name: model.tokenize(model.encode(pixels)) for name, (model, pixels, _) in made.items()}
    plain = tokens["plain eager, NCHW"]
    for name, other in tokens.items():
        say(f"{name}: {(other != plain).sum().item()} of {plain.numel()} tokens differ")
    show(Table(columns, list(cells.values())), as_json=as_json)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2, as_json=as_json)
