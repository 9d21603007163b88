"""Options for how a training runs: parts of batches, precision, memory, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console, processes
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _images, _summary
from avarc_cli.commands._groups import NO_OPTION
from avarc_cli.errors import UsageError
from avarc_cli.settings import check_training_precision
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.tokens.source import Source
    from avarc_cli.train.rehearsal import Rehearsal
    from avarc_cli.train.run import Run

GIB = 1 << 30
option = partial(typer.Option, rich_help_panel="Running")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    accumulate: Annotated[int, option("--accumulate", min=1, help="Passes a step, of part of the batch each.")] = 1
    precision: Annotated[
        str,
        option(
            "--precision",
            help="Of products and activations: fp32, bf16, or fp16 (CUDA); weights are fp32.",
            autocompletion=complete.training_precisions,
        ),
    ] = "fp32"
    checkpoint_activations: Annotated[
        bool, option("--checkpoint-activations", help="Recompute activations in the backward pass: less memory.")
    ] = False
    compile: Annotated[bool, option("--compile", help="Compile blocks with torch.compile.")] = False
    shard: Annotated[
        bool, option("--shard", help="Divide weights and optimizer among torchrun's processes: large generators.")
    ] = False
    save_every: Annotated[int, option("--save-every", min=1, help="Steps between checkpoints.")] = 500
    keep: Annotated[int, option("--keep", min=1, help="Checkpoints to keep, older ones as OUT.ckpt.STEP.")] = 1
    validation: Annotated[
        list[Path] | None,
        option("--validation", help="Images or a token cache to validate on: OUT gets the weights that do best."),
    ] = None
    hold_out: Annotated[
        float | None, option("--hold-out", help="Validate on this fraction of each class instead, 0.1 of DATA, say.")
    ] = None
    validate_every: Annotated[int, option("--validate-every", min=1, help="Steps between validations.")] = 500
    log: Annotated[Path | None, option("--log-to", help="Folder for metrics.jsonl and pictures.")] = None
    log_every: Annotated[int, option("--log-every", min=1, help="Steps between the lines of logs.")] = 50
    pictures_every: Annotated[
        int, option("--pictures-every", min=0, help="Steps between pictures in logs: reconstructions or samples.")
    ] = 0
    tensorboard: Annotated[Path | None, option("--tensorboard", help="Folder for TensorBoard's logs.")] = None
    wandb: Annotated[str | None, option("--wandb", help="Project of Weights & Biases to log to.")] = None
    dry_run: Annotated[
        bool, option("--dry-run", help="Time a few steps and say what the training would take; write nothing.")
    ] = False

    unreadable: dict[str, str] = field(default_factory=dict, metadata={NO_OPTION: "what the training finds"})
    """Why, by name of the image."""

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        check_training_precision(self.precision)
        if self.shard and processes.count() == 1:
            raise UsageError(
                "--shard divides a training among processes, and there is one",
                fix="start several: torchrun --nproc-per-node 8 -m avarc_cli train ...; or leave out --shard",
            )
        if self.hold_out is not None and not 0 < self.hold_out < 1:
            raise UsageError(f"--hold-out {self.hold_out}", "it is a fraction between 0 and 1", "write --hold-out 0.1")
        if self.hold_out is not None and self.validation:
            raise UsageError(
                "--validation and --hold-out cannot be used together",
                "each chooses the images",
                "leave out one of them",
            )
        if self.pictures_every and self.log is None and self.tensorboard is None and self.wandb is None:
            raise UsageError("--pictures-every has nowhere to write", fix="add --log-to FOLDER")
        for package, asked in (("tensorboard", self.tensorboard), ("wandb", self.wandb)):
            if asked is not None and find_spec(package) is None:
                raise UsageError(f"{package} is not installed", fix=f"pip install {package}, or leave out --{package}")
        for folder in (self.log, self.tensorboard):
            if folder is not None and processes.is_first() and not folder.parent.is_dir():
                raise UsageError(f"cannot write '{folder}'", f"'{folder.parent}' is not a folder")

    def parts(
        self, source: Source, seed: int, dataset: str | None, *, allow_outside: bool
    ) -> tuple[Source, Source | None]:
        """What to train on, and what to validate on, if anything.

        Args:
            dataset, allow_outside: that `source` was opened with.
        """
        if self.validation:
            return source, open_source(self.validation, dataset, allow_outside=allow_outside)
        if self.hold_out is None:
            return source, None
        from avarc_cli.train.validation import hold_out

        return hold_out(source, self.hold_out, seed)

    def run(self, out: Path) -> Run:
        """How the training runs. out: where its weights go."""
        from avarc_cli.train.left_out import LeftOut
        from avarc_cli.train.run import Run

        return Run(
            left_out=LeftOut(console.warn, self.unreadable),
            validate_every=self.validate_every,
            log=self.log,
            log_every=self.log_every,
            pictures_every=self.pictures_every,
            tensorboard=self.tensorboard,
            wandb=self.wandb,
            rehearse=(lambda found: _show(found, self._files(out))) if self.dry_run else None,
            note=console.note,
            accumulate=self.accumulate,
            precision=self.precision,
            recompute=self.checkpoint_activations,
            compile=self.compile,
            shard=self.shard,
            keep=self.keep,
        )

    def _files(self, out: Path) -> list[Path]:
        """What the training would write."""
        from avarc_cli.train.resume import resume_file

        return [out, resume_file(out), *(folder for folder in (self.log, self.tensorboard) if folder is not None)]


def caches_of(data: list[Path]) -> list[Path]:
    """The token caches that DATA is; none for images. Raises: UsageError for both."""
    found = [path for path in data if _summary.is_cache([path])]
    if found and len(found) < len(data):
        other = next(path for path in data if path not in found)
        why = f"'{found[0]}' is a token cache, and '{other}' is not"
        raise UsageError("a training reads images or token caches", why, "name one kind; avarc encode makes caches")
    return found


def open_source(data: list[Path], dataset: str | None = None, *, allow_outside: bool = False) -> Source:
    """All images of DATA, or the token caches that it is; notes what was recognized. Raises: UsageError; CacheError."""
    paths = caches_of(data)
    if not paths:
        return _images.open_noted(data, dataset, allow_outside=allow_outside)
    from avarc_cli.tokens.cache import read
    from avarc_cli.tokens.mixed import mixed

    return mixed([read(path) for path in paths])


def _show(found: Rehearsal, files: list[Path]) -> None:
    """Print what a dry run found."""
    shown: dict[str, object] = {
        "parameters": f"{found.parameters:,}"
        + ("" if found.trained == found.parameters else f", {found.trained:,} trained"),
        "images of an epoch": f"{found.images:,}",
        "tokens of an epoch": f"{found.tokens:,}",
        "steps of an epoch": f"{found.steps_per_epoch:,}",
        "epochs": f"{found.epochs:,.3g}",
        "memory": f"{found.memory / GIB:.2f} GiB at most, in the steps that were timed",
        "time of a step": f"{found.seconds_per_step:.3g} s",
        "time": f"{console.duration(found.seconds)} for {counted(found.steps, 'step')}",
        "would write": ", ".join(map(str, files)),
    }
    computed = ("steps_per_epoch", "epochs", "seconds")
    data = vars(found) | {name: getattr(found, name) for name in computed} | {"files": files}
    console.result(data, console.fields("what the training would take", shown))
