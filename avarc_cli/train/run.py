"""How a training runs. Nothing here changes what is learnt, but for roundings and the choice of the best weights."""

from __future__ import annotations

from dataclasses import dataclass

from avarc_cli import processes
from avarc_cli.errors import UsageError
from avarc_cli.words import counted

PRECISIONS = ("fp32", "bf16", "fp16")


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
    keep: int = 1
    """Checkpoints."""

    def __post_init__(self) -> None:
        for name in ("accumulate", "keep"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "it must be at least 1")
        if self.precision not in PRECISIONS:
            raise UsageError(f"cannot train in precision '{self.precision}'", f"there are {', '.join(PRECISIONS)}")

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
