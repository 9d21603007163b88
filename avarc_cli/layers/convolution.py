"""3x3 convolutions for inference on a CPU, faster than torch's where that is possible, and about as exact.

For channels-last tensors oneDNN adds the 9 C terms of an output one after the other in float32. With AVX-512 its sums
for the plain layout are in blocks and 3 to 6 times as exact. Here a convolution of many channels is Winograd's or a
matrix product, whose sums are in blocks as well. Either computes image by image, so that an image's activations do not
depend on its batch. Those of few channels remain oneDNN's. A module's state dict stays the same.

Shapes: B images, C and O channels in and out, H and W rows and columns in, h and w out, K = 9 C.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.mapped import give_back
from avarc_cli.layers.threads import share
from avarc_cli.layers.winograd import WinogradConv

STRIP = 2**21  # bytes of the columns multiplied at once
NARROW = 128  # C from which sums are worth a better order, C and O from which Winograd pays
WIDEST = 320 * 320  # C * O up to which Winograd pays: beyond, its weights take much memory
FEW = 20480  # numbers of an image for which torch has another algorithm


def speed_up(module: nn.Module) -> None:
    """Replace the 3x3 convolutions of a module; for inference only, the weights are fixed then."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, faster(child))
        else:
            speed_up(child)


def free_layouts(module: nn.Module) -> None:
    """Free what its convolutions made of their weights at their first use; the next use makes it again."""
    for conv in module.modules():
        if isinstance(conv, MatmulConv):
            vars(conv).pop("weight_KO", None)
        elif isinstance(conv, WinogradConv):
            vars(conv).pop("weight_36CO", None)


def to_channels_last(module: nn.Module) -> None:
    """Store four-dimensional weights channels last, as `nn.Module.to` does, but no more of them than are needed.

    Those of a part called `decoder` follow at its first use, which may never come, and those that `speed_up` has
    replaced stay as they are. Until then, weights that are mapped from a file take no memory.
    """
    for name, child in module.named_children():
        if name == "decoder":
            _convert_at_first_use(child)
        elif not isinstance(child, WinogradConv | MatmulConv):
            to_channels_last(child)
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _convert_at_first_use(module: nn.Module) -> None:
    def convert(*_: object) -> None:
        handle.remove()
        with torch.inference_mode(False):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it

    handle = module.register_forward_pre_hook(convert)


def faster(conv: nn.Conv2d) -> nn.Module:
    """What to use in the place of a convolution; the same object unless it is 3x3."""
    if not _is_plain(conv):
        return conv
    if conv.in_channels < NARROW:
        return NarrowConv(conv)
    return WinogradConv(conv) if _suits_winograd(conv) else MatmulConv(conv)


def _is_plain(conv: nn.Conv2d) -> bool:
    same = (conv.kernel_size, conv.groups, conv.dilation, conv.padding_mode) == ((3, 3), 1, (1, 1), "zeros")
    return same and not isinstance(conv.padding, str)


def _suits_winograd(conv: nn.Conv2d) -> bool:
    channels = conv.out_channels >= NARROW and conv.in_channels * conv.out_channels <= WIDEST
    return channels and (conv.stride, conv.padding) == ((1, 1), (1, 1))


class NarrowConv(nn.Module):
    """An `nn.Conv2d` whose output for an image does not depend on its batch.

    For one small image alone, torch would choose another algorithm than for several (use_mkldnn in ATen's
    Convolution.cpp).
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x_BCHW: Tensor) -> Tensor:
        alone = len(x_BCHW) == 1 and x_BCHW.numel() <= FEW
        batch = torch.cat([x_BCHW, x_BCHW]) if alone else x_BCHW
        return F.conv2d(batch, self.weight, self.bias, self.stride, self.padding)[: len(x_BCHW)]


class MatmulConv(nn.Module):
    """What an `nn.Conv2d(C, O, 3)` of any stride and padding computes, without gradients."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding = conv.stride, [int(p) for p in conv.padding]
        self.bias_O = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()

    @cached_property
    def weight_KO(self) -> Tensor:  # noqa: N802  # a tensor of this shape
        """The weight as a matrix, made at its first use."""
        weight_KO = self.weight.detach().permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        give_back(self.weight.detach())
        return weight_KO

    @torch.no_grad()
    def forward(self, x_BCHW: Tensor) -> Tensor:
        rows, columns = self.padding
        x_BHWC = F.pad(x_BCHW.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
        x_Bhw33C = x_BHWC.unfold(1, 3, self.stride[0]).unfold(2, 3, self.stride[1]).permute(0, 1, 2, 4, 5, 3)
        size, height, width = x_Bhw33C.shape[:3]
        y_BhwO = x_BCHW.new_empty(size, height, width, len(self.bias_O))
        k = len(self.weight_KO)
        at_once = max(1, STRIP // (width * k * x_BCHW.element_size()))

        def multiply(pieces: Iterator[tuple[int, int]]) -> None:
            for image, start in pieces:
                part = slice(start, start + at_once)
                columns = x_Bhw33C[image, part].reshape(-1, k)
                torch.addmm(self.bias_O, columns, self.weight_KO, out=y_BhwO[image, part].flatten(0, 1))

        share(multiply, [(image, start) for image in range(size) for start in range(0, height, at_once)])
        return y_BhwO.permute(0, 3, 1, 2)
