"""The published VQ-VAE's encoder (random weights) on a CPU: plain eager NCHW, channels last, and as avarc runs it.

CPU seconds on one thread, which other processes on the machine disturb least; then wall seconds on all threads.
Results: docs/encoding.md. python tests/benchmarks/encoder.py [IMAGES]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch is imported

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli import heap
from avarc_cli.layers import conv_blocks
from avarc_cli.tokenizers.vqvae.config import VQVAEConfig
from avarc_cli.tokenizers.vqvae.network import VQVAE

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
def main() -> None:
    torch.manual_seed(1)
    images = torch.rand(int(sys.argv[1]) if len(sys.argv) > 1 else 2, 3, 256, 256) * 2 - 1
    made = ways(images)
    in_place, cores = conv_blocks.silu, torch.get_num_threads()
    for threads, clock in ((1, time.process_time), (cores, time.perf_counter)):
        torch.set_num_threads(threads)
        print(f"{threads} thread(s), {clock.__name__}\n| way | s an image | factor |\n|---|---|---|")
        first = 0.0
        for name, (model, pixels, ours) in made.items():
            setattr(conv_blocks, "silu", in_place if ours else F.silu)  # noqa: B010
            with heap.keep_freed_memory() if name == "avarc" else nullcontext():
                seconds = best(model.encode, pixels, clock)
            first = first or seconds
            print(f"| {name} | {seconds:.2f} | {first / seconds:.2f} |", flush=True)
    tokens = {name: model.tokenize(model.encode(pixels)) for name, (model, pixels, _) in made.items()}
    plain = tokens["plain eager, NCHW"]
    for name, other in tokens.items():
        print(f"{name}: {(other != plain).sum().item()} of {plain.numel()} tokens differ")


if __name__ == "__main__":
    main()
