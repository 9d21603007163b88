"""How a training runs. Nothing here changes what is learnt, but for roundings and the choice of the best weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from avarc_cli import processes
from avarc_cli.errors import UsageError
from avarc_cli.progress import Notify, no_message
from avarc_cli.settings import check_training_precision
from avarc_cli.train.left_out import LeftOut
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.train.rehearsal import Rehearsal


@dataclass(frozen=True, kw_only=True)
class Run:
    """Raises: UsageError for numbers out of range."""

    accumulate: int = 1
    """Passes a step, of part of the batch each."""
    precision: str = "fp32"
    """Of products and activations; weights and optimizer are float32."""
    recompute: bool = False
    """Keep no activations inside of blocks; the backward pass computes them again."""
    compile: bool = False
    """Compile blocks with torch.compile."""
    shard: bool = False
    """Divide weights, gradients and the optimizer's state among the processes."""
    keep: int = 1
    """Checkpoints."""
    validate_every: int = 500
    """Steps, where there is validation data; besides after the last one."""
    log: Path | None = None
    """Folder for numbers and pictures."""
    tensorboard: Path | None = None
    """Folder for TensorBoard's event files."""
    wandb: str | None = None
    """Project of Weights & Biases."""
    log_every: int = 50
    """Steps."""
    pictures_every: int = 0
    """Steps; 0 for no pictures."""
    rehearse: Callable[[Rehearsal], None] | None = None
    """A dry run: called with what the training would take. Nothing is trained or written."""
    note: Notify = no_message
    """Called with the step whose weights were the best."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """What the images that cannot be read are added to."""

    def __post_init__(self) -> None:
        for name in ("accumulate", "keep", "validate_every", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "it must be at least 1")
        check_training_precision(self.precision)

    def check_batch(self, batch_size: int) -> None:
        """Raises: UsageError when some process or pass would have no image."""
        parts = processes.count() * self.accumulate
        if parts > batch_size:
            raise UsageError(
                f"a batch of {counted(batch_size, 'image')} is too small for {counted(parts, 'part')}",
                f"{counted(processes.count(), 'process')} with {counted(self.accumulate, 'pass')} "
                "a step need an image for each",
                "use a larger --batch-size, fewer processes or a smaller --accumulate",
            )
