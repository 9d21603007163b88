"""The Inception network of FID: TensorFlow's of 2015-12-05, with the weights that torch-fidelity converted.

It differs from torchvision's Inception in three ways, which change FID: images are resized as TensorFlow 1 did,
averages leave out the padding, and the last block pools by maximum. It is written here, not imported, because
torch-fidelity needs torchvision, whose wheels do not load beside a torch for CPUs; tests/golden/inception_tiny.npz has
outputs of torch-fidelity's network.

Shapes: B images, H their side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avarc_cli.devices import pick_device
from avarc_cli.errors import CheckpointError, shorten_list
from avarc_cli.layers.precision import tf32
from avarc_cli.loaded import check_unchanged
from avarc_cli.metrics.protocol import POOLED
from avarc_cli.zoo import checkpoint, networks

SIDE = 299  # that images are resized to
SPATIAL_CHANNELS = 7


class _Conv(nn.Module):
    def __init__(self, channels: int, out: int, size: int | tuple[int, int] = 1, *, stride: int = 1, pad: bool = True):
        super().__init__()
        sides = (size, size) if isinstance(size, int) else size
        padding = (sides[0] // 2, sides[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(channels, out, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Block(nn.Module):
    """Branches whose outputs are joined: `branches` names their convolutions, `splits` the two ends that some have."""

    branches: Sequence[Sequence[str]]
    splits: ClassVar[Mapping[str, Sequence[str]]] = {}
    pool = "average"  # "average", whose convolution is branch_pool; "maximum", the same; "reduce", which has none

    def forward(self, x: Tensor) -> Tensor:
        joined = []
        for names in self.branches:
            y = x
            for name in names:
                y = self.get_submodule(name)(y)
            ends = self.splits.get(names[-1])
            joined += [self.get_submodule(end)(y) for end in ends] if ends else [y]
        if self.pool == "reduce":
            return torch.cat([*joined, F.max_pool2d(x, 3, stride=2)], dim=1)
        if self.pool == "average":
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        else:
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([*joined, self.get_submodule("branch_pool")(pooled)], dim=1)


class _BlockA(_Block):
    branches = (["branch1x1"], ["branch5x5_1", "branch5x5_2"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"])

    def __init__(self, channels: int, pooled: int):
        super().__init__()
        self.branch1x1 = _Conv(channels, 64)
        self.branch5x5_1 = _Conv(channels, 48)
        self.branch5x5_2 = _Conv(48, 64, 5)
        self.branch3x3dbl_1 = _Conv(channels, 64)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3)
        self.branch_pool = _Conv(channels, pooled)


class _BlockB(_Block):
    branches = (["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"])
    pool = "reduce"

    def __init__(self, channels: int):
        super().__init__()
        self.branch3x3 = _Conv(channels, 384, 3, stride=2, pad=False)
        self.branch3x3dbl_1 = _Conv(channels, 64)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2, pad=False)


class _BlockC(_Block):
    branches = (
        ["branch1x1"],
        ["branch7x7_1", "branch7x7_2", "branch7x7_3"],
        [f"branch7x7dbl_{i}" for i in range(1, 6)],
    )

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.branch1x1 = _Conv(channels, 192)
        self.branch7x7_1 = _Conv(channels, inner)
        self.branch7x7_2 = _Conv(inner, inner, (1, 7))
        self.branch7x7_3 = _Conv(inner, 192, (7, 1))
        self.branch7x7dbl_1 = _Conv(channels, inner)
        self.branch7x7dbl_2 = _Conv(inner, inner, (7, 1))
        self.branch7x7dbl_3 = _Conv(inner, inner, (1, 7))
        self.branch7x7dbl_4 = _Conv(inner, inner, (7, 1))
        self.branch7x7dbl_5 = _Conv(inner, 192, (1, 7))
        self.branch_pool = _Conv(channels, 192)


class _BlockD(_Block):
    branches = (["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{i}" for i in range(1, 5)])
    pool = "reduce"

    def __init__(self, channels: int):
        super().__init__()
        self.branch3x3_1 = _Conv(channels, 192)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2, pad=False)
        self.branch7x7x3_1 = _Conv(channels, 192)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2, pad=False)


class _BlockE(_Block):
    branches = (["branch1x1"], ["branch3x3_1"], ["branch3x3dbl_1", "branch3x3dbl_2"])
    splits: ClassVar = {
        "branch3x3_1": ["branch3x3_2a", "branch3x3_2b"],
        "branch3x3dbl_2": ["branch3x3dbl_3a", "branch3x3dbl_3b"],
    }

    def __init__(self, channels: int, pool: str):
        super().__init__()
        self.pool = pool
        self.branch1x1 = _Conv(channels, 320)
        self.branch3x3_1 = _Conv(channels, 384)
        self.branch3x3_2a = _Conv(384, 384, (1, 3))
        self.branch3x3_2b = _Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = _Conv(channels, 448)
        self.branch3x3dbl_2 = _Conv(448, 384, 3)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1))
        self.branch_pool = _Conv(channels, 192)


class Inception(nn.Module):
    """The network up to its pooled features; keys of the weights are torch-fidelity's."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, pad=False)
        self.Mixed_5b = _BlockA(192, 32)
        self.Mixed_5c = _BlockA(256, 64)
        self.Mixed_5d = _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(768, 128)
        self.Mixed_6c = _BlockC(768, 160)
        self.Mixed_6d = _BlockC(768, 160)
        self.Mixed_6e = _BlockC(768, 192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b = _BlockE(1280, "average")
        self.Mixed_7c = _BlockE(2048, "maximum")
        self.fc = nn.Linear(POOLED, 1008)

    def forward(self, images_B3HH: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (B, 2048), and spatial ones (B, 2023), of images whose values run from 0 to 255.

        The latter are the first 7 channels of Mixed_6d's 1x1 branch, place by place, as ADM's evaluator has them.
        """
        x = (resize(images_B3HH) - 128) / 128
        x = x.contiguous(memory_format=torch.channels_last)  # 1.4 times as fast on a CPU
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))
        spatial_B2023 = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        return x.mean(dim=(2, 3)), spatial_B2023


def resize(images_B3HH: Tensor) -> Tensor:
    """Scale to 299 x 299 as TensorFlow 1 did: linearly between the pixel to the left and the one to the right."""
    side = images_B3HH.shape[-1]
    place_S = torch.arange(SIDE, dtype=torch.float32, device=images_B3HH.device) * np.float32(side / SIDE).item()
    low_S = place_S.long()
    high_S, part_S = (low_S + 1).clamp(max=side - 1), place_S - low_S
    rows_low, rows_high = images_B3HH[:, :, low_S], images_B3HH[:, :, high_S]
    low = rows_low[..., low_S] + (rows_low[..., high_S] - rows_low[..., low_S]) * part_S
    high = rows_high[..., low_S] + (rows_high[..., high_S] - rows_high[..., low_S]) * part_S
    return low + (high - low) * part_S[:, None]


@dataclass(frozen=True)
class Extractor:
    """A loaded network."""

    network: Inception
    file: Path
    """Where its weights were read."""
    sha256: str
    """Of the file."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.network.fc.weight.device

    @property
    def is_published(self) -> bool:
        """Whether these are the weights that all published numbers were computed with."""
        card = networks.find(networks.INCEPTION)
        return card is not None and self.sha256 == card.weights.sha256

    @property
    def output_weights(self) -> np.ndarray:
        """From pooled features to the 1008 outputs, (2048, 1008), without the bias."""
        return self.network.fc.weight.detach().T.cpu().numpy()

    @torch.inference_mode()
    def __call__(self, images_BHH3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pooled and spatial features of uint8 images, (B, 2048) and (B, 2023) float32."""
        pixels = torch.from_numpy(images_BHH3).to(self.device).permute(0, 3, 1, 2).float()
        with tf32(False):
            pooled, spatial = self.network(pixels)
        return pooled.cpu().numpy(), spatial.cpu().numpy()

    def loader(self) -> Callable[[str], Extractor]:
        """Loads this network in another process, on the device that it is called with. Picklable."""
        return partial(_load_unchanged, self.file, self.sha256)


def load(path: Path, device: torch.device) -> Extractor:
    """The network with the weights of a file.

    Raises: CheckpointError unless the file has exactly this network's tensors; as `zoo.checkpoint.read`.
    """
    found = checkpoint.read(path)
    network = Inception()
    wanted = {key: tensor.shape for key, tensor in network.state_dict().items() if "num_batches" not in key}
    tensors = {key: tensor for key, tensor in found.tensors.items() if "num_batches" not in key}
    found_shapes = {key: tensor.shape for key, tensor in tensors.items()}
    if misfits := sorted({key for key, _ in wanted.items() ^ found_shapes.items()}):
        raise CheckpointError(
            f"'{path}' is not the Inception network of FID",
            f"other tensors, or other shapes: {shorten_list(misfits)}",
            f"run avarc download {networks.INCEPTION}",
        )
    network.load_state_dict(tensors, strict=False)  # without the counters of batches, which nothing reads
    return Extractor(network.eval().requires_grad_(False).to(device), path, found.sha256)


def _load_unchanged(path: Path, sha256: str, device: str) -> Extractor:
    """As `load`. Raises: CheckpointError as well when the file has changed."""
    found = load(path, pick_device(device))
    check_unchanged(str(path), sha256, found.sha256)
    return found
