"""Frozen networks that trainings and metrics see images through: where they are published, and where they are here.

The sha256 of VGG16, ConvNeXt-S and Inception begin with the digits that end the names of their files, torch.hub's
convention. That of LPIPS is of the file in the lpips package (PyPI, 0.1.4). For DINO none is published.
"""

from __future__ import annotations

from pathlib import Path

from avarc_cli.zoo import local_files
from avarc_cli.zoo.card import NetworkCard, WebFile

VGG16, LPIPS, CONVNEXT, DINO, INCEPTION = "vgg16", "lpips", "convnext-small", "dino-vits16", "inception"
NETWORKS = (
    NetworkCard(
        name=VGG16,
        title="torchvision's vgg16 (ImageNet)",
        use="LPIPS",
        option="--vgg",
        weights=WebFile(
            url="https://download.pytorch.org/models/vgg16-397923af.pth",
            filename="vgg16-397923af.pth",
            sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        ),
        license="BSD-3-Clause",
        source="arXiv:1409.1556",
    ),
    NetworkCard(
        name=LPIPS,
        title="linear weights of LPIPS for vgg16, v0.1",
        use="LPIPS",
        option="--lpips",
        weights=WebFile(
            url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
            filename="lpips-v0.1-vgg-a78928a0.pth",
            sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        ),
        license="BSD-2-Clause",
        source="arXiv:1801.03924",
    ),
    NetworkCard(
        name=CONVNEXT,
        title="torchvision's convnext_small (ImageNet)",
        use="TiTok's loss",
        option="--convnext",
        weights=WebFile(
            url="https://download.pytorch.org/models/convnext_small-0c510722.pth",
            filename="convnext_small-0c510722.pth",
            sha256="0c510722adfd92966a2bd72b92f785ca05966bbac03cafe2f7a90b1f54bfab9a",
        ),
        license="BSD-3-Clause",
        source="arXiv:2201.03545",
    ),
    NetworkCard(
        name=DINO,
        title="DINO's ViT-S/16",
        use="VAR's discriminator",
        option="--dino",
        weights=WebFile(
            url="https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
            filename="dino_deitsmall16_pretrain.pth",
        ),
        license="Apache-2.0",
        source="arXiv:2104.14294",
    ),
    NetworkCard(
        name=INCEPTION,
        title="Inception of 2015, as torch-fidelity has it",
        use="FID",
        option="--inception",
        weights=WebFile(
            url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            filename="weights-inception-2015-12-05-6726825d.pth",
            sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        ),
        license="Apache-2.0",
        source="arXiv:1512.00567",
    ),
)


def find(name: str) -> NetworkCard | None:
    """The card of that name, if there is one."""
    return next((card for card in NETWORKS if card.name == name), None)


def downloaded(name: str) -> Path | None:
    """The file of a network that was downloaded, by avarc or by torch.hub; None where it is not on this machine.

    Raises: KeyError for a name that is not in `NETWORKS`.
    """
    return local_files.locate({card.name: card for card in NETWORKS}[name].weights)
