"""Options for how a training runs: parts of batches, precision, memory, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli.settings import check_training_precision

if TYPE_CHECKING:
    from avarc_cli.train.run import Run

option = partial(typer.Option, rich_help_panel="Running")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    accumulate: Annotated[int, option("--accumulate", min=1, help="Passes a step, of part of the batch each.")] = 1
    precision: Annotated[
        str, option("--precision", help="Of products and activations: fp32, bf16, or fp16 (CUDA); weights are fp32.")
    ] = "fp32"
    checkpoint_activations: Annotated[
        bool, option("--checkpoint-activations", help="Recompute activations in the backward pass: less memory.")
    ] = False
    compile: Annotated[bool, option("--compile", help="Compile blocks with torch.compile.")] = False
    save_every: Annotated[int, option("--save-every", min=1, help="Steps between checkpoints.")] = 500
    keep: Annotated[int, option("--keep", min=1, help="Checkpoints to keep, older ones as OUT.ckpt.STEP.")] = 1

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        check_training_precision(self.precision)

    def run(self) -> Run:
        """How the training runs."""
        from avarc_cli.train.run import Run

        return Run(
            accumulate=self.accumulate,
            precision=self.precision,
            recompute=self.checkpoint_activations,
            compile=self.compile,
            keep=self.keep,
        )
