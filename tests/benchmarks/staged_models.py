"""What tests/benchmarks/paper_plan.py scores: models with random weights, images, and the same in plain PyTorch.

Shapes: G images, S samples (the image and its smoothing neighbours), P pairs, L tokens.
"""

import sys
from abc import ABC, abstractmethod
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import load_golden

from avarc_cli.devices import pick_kernels
from avarc_cli.layers.random_weights import random_weights
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.llamagen import reference as llamagen
from avarc_cli.models.llamagen.benchmark import LlamaGenWorkload
from avarc_cli.models.rar import benchmark as rar
from avarc_cli.models.rar import reference as rar_reference
from avarc_cli.models.rar.network import RAR
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.reference import token_log_probs
from avarc_cli.product_library import find

SAMPLES = 3
CHANGED = 0.1  # of a neighbour's tokens, where there is no quantizer to make neighbours by


class Subject(ABC):
    """A model with its images."""

    ends: tuple[int, ...]
    plan: str

    @abstractmethod
    def images(self, count: int, seed: int) -> Tensor:
        """Tokens of random images, (G, S, L) int64."""

    @abstractmethod
    def model(self, precision: str) -> LikelihoodModel:
        """A model as avarc scores with it, with workspaces of its own."""

    @abstractmethod
    def plain(self, tokens_L: Tensor, end: int, class_id_P: Tensor) -> Tensor:
        """log p of the first `end` tokens in one plain pass with all logits, (P, end)."""


class GoldenVAR(Subject):
    """The VAR of a golden file, with its own tokenizer."""

    def __init__(self, name: str, plan: str, device: torch.device) -> None:
        self.golden, self.plan, self.device = load_golden(name), plan, device
        self.quantizer = self.golden.vqvae().quantize.to(device)
        self.weights = {key: tensor.to(device) for key, tensor in self.golden.tensors("var").items()}
        self.ends = tuple(accumulate(side * side for side in self.golden.patch_nums))

    def images(self, count: int, seed: int) -> Tensor:
        channels, side = self.golden.meta["config"]["z_channels"], self.golden.patch_nums[-1]
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(count, 1, channels, side, side, generator=generator)
        noise = 0.1 * torch.randn(count, SAMPLES, channels, side, side, generator=generator)
        noise[:, 0] = 0
        tokens = self.quantizer.tokenize((latents + noise).flatten(0, 1).to(self.device))
        return tokens.view(count, SAMPLES, -1)

    def model(self, precision: str) -> VARLikelihood:
        network = self.golden.var().to(self.device).set_precision(find(precision, self.device))
        return VARLikelihood(network.set_kernels(pick_kernels("auto", self.device, precision)), self.quantizer)

    def plain(self, tokens_L: Tensor, end: int, class_id_P: Tensor) -> Tensor:
        teacher = self.quantizer.teacher_input(tokens_L[None])[:, : end - 1]
        return token_log_probs(self.weights, tokens_L[:end], teacher, class_id_P)


class Rows(Subject):
    """A model that reads a grid row by row: "llamagen-l", "rar-b" or another size of these."""

    plan = "10:10,16:3,16:1:3"  # of 16 rows as many tenths as the paper's of 10 scales

    def __init__(self, shape: str, device: torch.device) -> None:
        self.family, _, size = shape.rpartition("-")
        self.workload: LlamaGenWorkload | rar.RARWorkload
        if self.family == "llamagen":
            gpt = random_weights(LlamaGenWorkload.network(LlamaGenWorkload.parse_shape(size)))
            self.heads, self.weights, self.workload = gpt.config.heads, gpt.state_dict(), LlamaGenWorkload(gpt, device)
        else:
            network = random_weights(RAR(rar.parse_shape(size)))
            self.weights, self.workload = network.state_dict(), rar.RARWorkload(network, device)
        self.device, self.ends = device, self.workload.segment_ends
        self.weights = {key: tensor.to(device) for key, tensor in self.weights.items()}

    def images(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        tokens, length = self.workload.tokens_L.cpu(), self.ends[-1]
        image = torch.stack([tokens[torch.randperm(length, generator=generator)] for _ in range(count)])
        samples = image[:, None].repeat(1, SAMPLES, 1)
        other = samples[..., torch.randperm(length, generator=generator)]
        changed = torch.rand(samples.shape, generator=generator) < CHANGED
        changed[:, 0] = False
        return torch.where(changed, other, samples).to(self.device)

    def model(self, precision: str) -> LikelihoodModel:
        return self.workload.model(precision, pick_kernels("auto", self.device, precision))

    def plain(self, tokens_L: Tensor, end: int, class_id_P: Tensor) -> Tensor:
        if self.family == "rar":
            return rar_reference.token_log_probs(self.weights, tokens_L[:end], class_id_P)
        return llamagen.token_log_probs(self.weights, tokens_L[:end], class_id_P, heads=self.heads, cells=self.ends[-1])


def subject(shape: str, device: torch.device) -> Subject:
    """ "d16"; "tiny", a small VAR of four scales; or a shape of `Rows`."""
    if shape in ("d16", "tiny"):
        plan = "3:5,4:3,4:1:3" if shape == "tiny" else "paper"
        return GoldenVAR(f"var_{shape}", plan, device)
    return Rows(shape, device)
