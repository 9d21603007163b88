"""Rounding of the published VQ-VAE's encoder (random weights) on a CPU, and what an image's tokens depend on.

The distance of latents from float64, of plain PyTorch (NCHW), channels last, and as avarc runs it; then the latents and
tokens that change with the batch size, the order, or the number of threads; then the CPU seconds of avarc's encoder
with torch's own group norms, sums and strided convolutions, and with avarc's, in alternating rounds.
Results: docs/encoding.md. python tests/benchmarks/encoder_numerics.py [IMAGES [SIDE]] [--json]
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from unittest import mock

import torch
from encoder import PUBLISHED
from figure_tables import Cell, Table, show, wants_json
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers import winograd
from avarc_cli.layers.convolution import MatmulConv
from avarc_cli.layers.group_norm import GroupNorm
from avarc_cli.tokenizers.vqvae.network import VQVAE

TORCHS = "channels last, with torch's operations"


def encode(model: VQVAE, images: Tensor) -> Tensor:
    return model.encode(images).contiguous()


def errors(ways: dict[str, tuple[VQVAE, Tensor]]) -> Iterator[list[Cell]]:
    """A row of each way. The first is plain PyTorch."""
    plain, images = next(iter(ways.values()))
    truth = copy.deepcopy(plain).double().encode(images.double())
    expected = plain.quantize.double().tokenize(truth)
    plain.quantize.float()
    first = 0.0
    for name, (model, pixels) in ways.items():
        with torchs_sums() if name == TORCHS else nullcontext():
            latents = encode(model, pixels)
        error = ((latents - truth).square().mean().sqrt() / truth.std()).item()
        first = first or error
        flips = (model.tokenize(latents) != expected).sum()
        yield [name, error, error / first, f"{flips} of {expected.numel():,}"]


def changes(model: VQVAE, images: Tensor) -> Iterator[list[Cell]]:
    """A row of each way to divide the images, against all of them in one batch."""

    def encode_in(size: int, order: Tensor) -> tuple[Tensor, Tensor]:
        latents = torch.cat([encode(model, part) for part in images[order].split(size)])[order.argsort()]
        tokens = torch.cat([model.tokenize(part) for part in latents[order].split(size)])[order.argsort()]
        return latents, tokens

    same, shuffled = torch.arange(len(images)), torch.randperm(len(images))
    threads = torch.get_num_threads()
    latents, tokens = encode_in(len(images), same)

    def changed(what: str, found: tuple[Tensor, Tensor]) -> list[Cell]:
        bits, flips = (found[0] != latents).flatten(1).any(1).sum().item(), (found[1] != tokens).sum().item()
        return [what, f"{bits} of {len(images)}", f"{flips} of {tokens.numel():,}"]

    for size in sorted({1, 2, 3, 5, len(images)}):
        if size <= len(images):
            yield changed(f"batches of {size}", encode_in(size, same))
            yield changed(f"batches of {size}, shuffled", encode_in(size, shuffled))
    for other in sorted({1, 2, 4} - {threads}):
        torch.set_num_threads(other)
        yield changed(f"threads: {other} in place of {threads}", encode_in(len(images), same))
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


def cost(model: VQVAE, images: Tensor, rounds: int = 9) -> list[Cell]:
    """CPU seconds of an image with torch's sums and with avarc's, and how many times the former the latter are."""
    ratios, earlier, exact = [], [], []
    for _ in range(rounds):
        with torchs_sums():
            earlier.append(seconds(lambda: model.encode(images)))
        exact.append(seconds(lambda: model.encode(images)))
        ratios.append(exact[-1] / earlier[-1])
    return [median(earlier) / len(images), median(exact) / len(images), min(ratios), median(ratios), max(ratios)]


@torch.inference_mode()
def main(count: int, side: int, *, as_json: bool) -> None:
    torch.manual_seed(0)
    plain = VQVAE(PUBLISHED).eval()
    images = torch.rand(count, 3, side, side) * 2 - 1
    last = images.contiguous(memory_format=torch.channels_last)
    middle = copy.deepcopy(plain)
    middle.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it
    ours = copy.deepcopy(middle)
    ours.speed_up()
    of_cost = ["CPU seconds, torch's sums", "avarc's", "times as many, least", "median", "most"]
    tables = [Table([(name, ".2f") for name in of_cost], [cost(ours, last[:1])], "What exact sums cost")]
    if side == PUBLISHED.image_size:  # tokens are of this size only
        ways = {"plain eager, NCHW": (plain, images), TORCHS: (middle, last), "avarc": (ours, last)}
        columns = [("method", ""), ("error", ".1e"), ("times plain", ".1f"), ("tokens that differ from float64", "")]
        tables.append(Table(columns, [*errors(ways)], "Distance from float64"))
        columns = [("", ""), ("images whose latents changed", ""), ("tokens that changed", "")]
        tables.append(Table(columns, [*changes(ours, last)], "avarc, against all images in one batch"))
    show(*tables, as_json=as_json)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    main(*(int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 4), (2, 256))), as_json=as_json)
