"""Rounding of the published VQ-VAE's encoder (random weights) on a CPU, and what an image's tokens depend on.

The distance of latents from float64, of plain PyTorch (NCHW), channels last, and as avarc runs it; then the latents and
tokens that change with the batch size, the order, or the number of threads; then the CPU seconds of avarc's encoder
with torch's own group norms, sums and strided convolutions, and with avarc's, in alternating rounds.
Results: docs/encoding.md. python tests/benchmarks/encoder_numerics.py [IMAGES [SIDE]]
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from unittest import mock

import torch
from encoder import PUBLISHED
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers import winograd
from avarc_cli.layers.convolution import MatmulConv
from avarc_cli.layers.group_norm import GroupNorm
from avarc_cli.tokenizers.vqvae.network import VQVAE


def encode(model: VQVAE, images: Tensor) -> Tensor:
    return model.encode(images).contiguous()


def print_errors(ways: dict[str, tuple[VQVAE, Tensor]]) -> None:
    plain, images = ways["plain NCHW"]
    truth = copy.deepcopy(plain).double().encode(images.double())
    expected = plain.quantize.double().tokenize(truth)
    plain.quantize.float()
    print(f"latents have a standard deviation of {truth.std().item():.3f}")
    for name, (model, pixels) in ways.items():
        latents = encode(model, pixels)
        error, flips = (latents - truth).square().mean().sqrt().item(), (model.tokenize(latents) != expected).sum()
        print(f"{name}: rms error {error:.2e}; {flips.item()} of {expected.numel()} tokens differ", flush=True)


def print_changes(model: VQVAE, images: Tensor) -> None:
    def encode_in(size: int, order: Tensor) -> tuple[Tensor, Tensor]:
        latents = torch.cat([encode(model, part) for part in images[order].split(size)])[order.argsort()]
        tokens = torch.cat([model.tokenize(part) for part in latents[order].split(size)])[order.argsort()]
        return latents, tokens

    same, shuffled = torch.arange(len(images)), torch.randperm(len(images))
    threads = torch.get_num_threads()
    latents, tokens = encode_in(len(images), same)

    def show(what: str, found: tuple[Tensor, Tensor]) -> None:
        bits, flips = (found[0] != latents).flatten(1).any(1).sum().item(), (found[1] != tokens).sum().item()
        print(f"{what}: latents of {bits} of {len(images)} images, {flips} of {tokens.numel()} tokens", flush=True)

    for size in sorted({1, 2, 3, 5, len(images)}):
        show(f"batches of {size}", encode_in(size, same))
        show(f"batches of {size}, shuffled", encode_in(size, shuffled))
    for other in {1, 2, 4} - {threads}:
        torch.set_num_threads(other)
        show(f"{other} threads in place of {threads}", encode_in(len(images), same))
    torch.set_num_threads(threads)


def _plain_conv(self: MatmulConv, x: Tensor) -> Tensor:
    return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


@contextmanager
def torchs_sums() -> Iterator[None]:
    with (
        mock.patch.object(GroupNorm, "forward", nn.GroupNorm.forward),
        mock.patch.object(MatmulConv, "forward", _plain_conv),
        mock.patch.object(winograd, "SUMMED", 10**6),
    ):
        yield


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def print_cost(model: VQVAE, images: Tensor, rounds: int = 9) -> None:
    ratios, earlier, exact = [], [], []
    for _ in range(rounds):
        with torchs_sums():
            earlier.append(seconds(lambda: model.encode(images)))
        exact.append(seconds(lambda: model.encode(images)))
        ratios.append(exact[-1] / earlier[-1])
    print(f"{median(exact) / len(images):.2f} CPU s an image; {median(ratios):.3f} times that with torch's sums")
    print(f"  fastest rounds: {min(earlier) / len(images):.2f} with torch's sums, {min(exact) / len(images):.2f} s")
    print("  ratios of the rounds:", " ".join(f"{ratio:.2f}" for ratio in sorted(ratios)))


@torch.inference_mode()
def main() -> None:
    count, side = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 4), (2, 256)))
    torch.manual_seed(0)
    plain = VQVAE(PUBLISHED).eval()
    images = torch.rand(count, 3, side, side) * 2 - 1
    last = images.contiguous(memory_format=torch.channels_last)
    middle = copy.deepcopy(plain)
    middle.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it
    ours = copy.deepcopy(middle)
    ours.speed_up()
    print_cost(ours, last[:1])
    if side == PUBLISHED.image_size:  # tokens are of this size only
        with torchs_sums():
            print_errors({"plain NCHW": (plain, images), "channels last": (middle, last), "earlier": (ours, last)})
        print_errors({"plain NCHW": (plain, images), "avarc": (ours, last)})
        print_changes(ours, last)


if __name__ == "__main__":
    main()
