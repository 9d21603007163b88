"""Options of commands that compute FID, and what they say about the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console

if TYPE_CHECKING:
    from avarc_cli.metrics.inception import Extractor

InceptionOpt = Annotated[
    Path | None,
    typer.Option("--inception", help="File of FID's Inception network. Default: what avarc download inception got."),
]
AllowFewOpt = Annotated[
    bool, typer.Option("--allow-few", help="Compute FID of fewer than 50,000 images, which is biased upwards.")
]


def load(path: Path, device: str) -> Extractor:
    """The network on a device; warns of other weights than the published ones."""
    from avarc_cli.devices import pick_device
    from avarc_cli.metrics import inception

    network = inception.load(path, pick_device(device))
    if not network.is_published:
        console.warn(f"'{path}' does not have the published weights: its numbers do not compare with published ones")
    return network
