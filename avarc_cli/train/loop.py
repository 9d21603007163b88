"""The training loop that tokenizer and generator share: AdamW, warm-up and decay, averaging, checkpoints, resume."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avarc_cli.errors import AvarcError, CheckpointError, Interrupted, UsageError, describe_differences
from avarc_cli.storage import remove_leftovers, replacing

Progress = Callable[[int, dict[str, float]], None]  # (steps done, running averages)
GoOn = Callable[[int, dict[str, Tensor]], bool]  # (steps done, averaged weights) -> whether to go on
LossOfStep = Callable[[int], tuple[Tensor, dict[str, float]]]  # step -> (loss, what to show)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how hard to train.

    steps: optimizer steps; lr: peak learning rate; warmup, flat: shares of the steps (linear up, then level);
    final: last learning rate as a share of the peak; clip: largest gradient norm;
    average: decay of the exponential moving average of the weights, which is what is saved;
    save_every: steps between checkpoints.
    """

    steps: int
    batch_size: int
    lr: float
    warmup: float = 0.05
    flat: float = 0.1
    final: float = 0.01
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 2.0
    average: float = 0.999
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "it must be at least 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"the learning rate is {self.lr}", "it must be a positive number", "write --lr 3e-4")

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up from 0.005 of the peak, level, then linear to `final` ("lin0")."""
        warm, level = self.warmup * self.steps, (self.warmup + self.flat) * self.steps
        if step < warm:
            return self.lr * (0.005 + 0.995 * step / warm)
        if step < level:
            return self.lr
        done = (step - level) / max(1.0, self.steps - level)
        return self.lr * (1 - (1 - self.final) * done)


def train(
    model: nn.Module,
    loss_of_step: LossOfStep,
    recipe: Recipe,
    checkpoint: Path | None,
    progress: Progress,
    *,
    subject: str,
    go_on: GoOn = lambda step, averaged: True,
) -> None:
    """Train in place; afterwards the model holds the averaged weights.

    Every `save_every` steps `checkpoint` is replaced in one rename; when it exists and was made by the same recipe on
    the same `subject` (what is trained on what), training goes on from there, with the same result as if it had not
    stopped.

    A checkpoint does not depend on the model's device; one begun on a GPU can be finished on a CPU.
    Without a `checkpoint` nothing is kept: for trainings of minutes. `go_on` may end the training before its time.

    Raises: CheckpointError when `checkpoint` is damaged or another training's; AvarcError when the loss is not finite;
    Interrupted on Ctrl-C.
    """
    identity = asdict(recipe) | {"betas": list(recipe.betas), "subject": subject}
    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas)
    averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
    start = _resume(checkpoint, identity, model, optimizer, averaged) if checkpoint else 0
    shown: dict[str, float] = {}
    model.train()
    with _interruptible(checkpoint):
        for step in range(start, recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            loss, values = loss_of_step(step)
            if not math.isfinite(loss.item()):
                raise AvarcError(
                    f"the loss is {loss.item()} at step {step}", "training diverged", "start again with a smaller --lr"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            decay = min(recipe.average, (1 + step) / (10 + step))  # a short memory while everything still moves
            for key, value in model.state_dict().items():
                averaged[key].lerp_(value, 1 - decay)
            shown = {k: 0.98 * shown.get(k, v) + 0.02 * v for k, v in values.items()}
            progress(step + 1, shown)
            if not go_on(step + 1, averaged):
                break
            if checkpoint and (step + 1) % recipe.save_every == 0:
                _save(checkpoint, identity, model, optimizer, averaged, step + 1)
    model.load_state_dict(averaged)
    model.eval()


def fingerprint(module: nn.Module) -> str:
    """A short digest of a module's weights, for the `subject` of a training that depends on them."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@contextmanager
def _interruptible(checkpoint: Path | None) -> Iterator[None]:
    """Ctrl-C as an Interrupted that says what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        saved = checkpoint is not None and checkpoint.exists()
        kept = f"the last checkpoint is in '{checkpoint}'" if saved else "nothing was saved yet"
        raise Interrupted("training was interrupted", kept, "run the same command again") from None


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """No decay on norms, biases, embeddings and positions: whatever is not the weight of a linear or a convolution."""
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


def _save(
    path: Path,
    identity: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor],
    step: int,
) -> None:
    state = {
        "identity": identity,
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averaged": averaged,
    }
    # To a file object: given a name, torch stores it in the archive, and the temporary name is random.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def _resume(
    path: Path,
    identity: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor],
) -> int:
    remove_leftovers(path.parent, lambda name: name == path.name)  # of a kill while saving
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        theirs = state["identity"]
    except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError) as error:
        why, fix = (str(error) or type(error).__name__).splitlines()[0], f"delete {path} to start over"
        raise CheckpointError(f"{path} is damaged, or no training checkpoint", why, fix) from None
    if differences := describe_differences({name: theirs.get(name) for name in identity}, identity):
        raise CheckpointError(
            f"{path} belongs to another training run",
            differences,
            f"repeat that run's options to continue it, or delete {path} to start over",
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for key, value in state["averaged"].items():
        averaged[key].copy_(value)
    return int(state["step"])
