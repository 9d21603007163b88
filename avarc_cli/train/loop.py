"""The training loop of tokenizers and generators: AdamW, learning-rate schedule, weight averaging, checkpoints."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from avarc_cli.errors import AvarcError, CheckpointError, Interrupted, UsageError, describe_differences
from avarc_cli.progress import MetricsProgress, Notify, no_message
from avarc_cli.settings import check_learning_rate
from avarc_cli.storage import remove_leftovers_of
from avarc_cli.train import checkpoint_file

ShouldContinue = Callable[[int, dict[str, Tensor]], bool]  # (steps done, averaged weights) -> whether to continue
LossOfStep = Callable[[int], tuple[Tensor, dict[str, float]]]  # step -> (loss, what to show)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of a training; the defaults are VAR's (arXiv:2404.02905) where it has them.

    Raises: UsageError for numbers out of range.
    """

    steps: int  # optimizer steps
    batch_size: int  # images per step
    lr: float  # peak learning rate
    warmup: float = 0.05  # fraction of the steps with a linearly rising rate
    hold: float = 0.1  # fraction of the steps at the peak, after the warm-up
    final: float = 0.01  # last learning rate / peak
    weight_decay: float = 0.05  # of the weights of linears and convolutions
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    clip: float = 2.0  # largest gradient norm
    ema_decay: float = 0.999  # of the exponential moving average of the weights, which is what is saved
    save_every: int = 500  # steps between checkpoints
    seed: int = 0  # of data order and initialization

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "it must be at least 1")
        check_learning_rate(self.lr)

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up from 0.005 of the peak, constant, then linear to `final`.

        Source: the schedule "lin0" of VAR's code.
        """
        warm, level = self.warmup * self.steps, (self.warmup + self.hold) * self.steps
        if step < warm:
            return self.lr * (0.005 + 0.995 * step / warm)
        if step < level:
            return self.lr
        done = (step - level) / max(1.0, self.steps - level)
        return self.lr * (1 - (1 - self.final) * done)


class Kept(Protocol):
    """What a loss keeps from step to step, such as a discriminator. `family.TokenizerLoss` is one."""

    def before_update(self, step: int, steps: int) -> None:
        """Called once a step: after the gradients, before the weights change."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: what the wrong types raise."""
        ...


def train(
    model: nn.Module,
    loss_of_step: LossOfStep,
    recipe: Recipe,
    checkpoint: Path | None,
    progress: MetricsProgress,
    *,
    subject: str,
    kept: Kept | None = None,
    should_continue: ShouldContinue = lambda step, averaged: True,
    say: Notify = no_message,
) -> None:
    """Train in place; afterwards the model holds the averaged weights.

    `checkpoint` is replaced every `save_every` steps. When it exists and was made with the same recipe and `subject`
    (what is trained, and on what), training resumes from it, with the same result as if it had never stopped. It does
    not depend on the device: a training begun on a GPU can be finished on a CPU.

    Args:
        loss_of_step: the loss of a step, and numbers to show; a function of the step alone.
        checkpoint: None saves nothing, for trainings of minutes.
        kept: what the loss keeps from step to step. None for a loss that keeps nothing.
        should_continue: called after each step; false ends the training early.
        say: called with a message when `checkpoint` is too old to be verified.

    Raises: CheckpointError when `checkpoint` is corrupt or another training's; AvarcError when the loss is not finite;
    Interrupted on Ctrl-C.
    """
    identity = asdict(recipe) | {"betas": list(recipe.betas), "subject": subject}
    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas)
    averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
    state = _State(identity, model, optimizer, averaged, kept)
    start = state.resume(checkpoint, say) if checkpoint else 0
    shown: dict[str, float] = {}
    model.train()
    with _interruptible(checkpoint):
        for step in range(start, recipe.steps):
            loss, values = loss_of_step(step)
            _update(model, optimizer, loss, recipe, step, kept)
            _average(averaged, model, recipe, step)
            shown = {k: 0.98 * shown.get(k, v) + 0.02 * v for k, v in values.items()}  # over about 50 steps
            progress(step + 1, shown)
            if not should_continue(step + 1, averaged):
                break
            if checkpoint and (step + 1) % recipe.save_every == 0:
                state.save(checkpoint, step + 1)
    model.load_state_dict(averaged)
    model.eval()


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, recipe: Recipe, step: int, kept: Kept | None
) -> None:
    """One optimizer step. Raises: AvarcError when the loss is not finite."""
    if not math.isfinite(loss.item()):
        raise AvarcError(
            f"the loss is {loss.item()} at step {step}", "training diverged", "start again with a smaller --lr"
        )
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    if kept is not None:
        kept.before_update(step, recipe.steps)
    optimizer.step()


def _average(averaged: dict[str, Tensor], model: nn.Module, recipe: Recipe, step: int) -> None:
    """Update the exponential moving average of the weights."""
    # A short memory at first, while the weights still change fast: the warm-up of TensorFlow's moving averages.
    decay = min(recipe.ema_decay, (1 + step) / (10 + step))
    for key, value in model.state_dict().items():
        averaged[key].lerp_(value, 1 - decay)


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
    """Weight decay for the weights of linears and convolutions only: not for norms, biases, embeddings, positions."""
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class _State:
    """What a checkpoint stores of a training, besides the step."""

    identity: dict[str, Any]  # recipe and subject: a checkpoint of another training is refused
    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: dict[str, Tensor]  # moving average of the weights
    kept: Kept | None  # by the loss

    def save(self, path: Path, step: int) -> None:
        """Write a checkpoint after `step` steps. Raises: OSError."""
        state = {
            "identity": self.identity,
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged,
            "kept": {} if self.kept is None else self.kept.state_dict(),
        }
        checkpoint_file.write(path, state)

    def resume(self, path: Path, say: Notify) -> int:
        """Load the checkpoint, if there is one; the number of steps done. Raises: CheckpointError."""
        remove_leftovers_of(path)  # of a kill while saving
        if not path.exists():
            return 0
        state, verified = checkpoint_file.read(path)
        theirs = state.get("identity")
        if not isinstance(theirs, dict):
            raise checkpoint_file.corrupt(path, "it does not say which training it is of")
        if differences := describe_differences({name: theirs.get(name) for name in self.identity}, self.identity):
            raise CheckpointError(
                f"{path} belongs to another training run",
                differences,
                f"repeat that run's options to continue it, or delete {path} to start over",
            )
        try:
            self._check(state)
            if self.kept is not None and "kept" in state:
                self.kept.load_state_dict(state["kept"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise checkpoint_file.corrupt(path, why) from None
        self.model.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]  # the recipe decides about these
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        for key, value in state["averaged"].items():
            self.averaged[key].copy_(value)
        if not verified:
            say(f"{path} was written by an older avarc, without a digest: damage would not be noticed")
        step: int = state["step"]
        return step

    def _check(self, state: Mapping[str, Any]) -> None:
        """Raises: what the wrong types raise, or ValueError, unless this training can have saved the state."""
        if type(state["step"]) is not int or not 0 < state["step"] <= self.identity["steps"]:
            raise ValueError(f"its number of steps is {state['step']!r}")
        for name in ("model", "averaged"):
            _check_tensors(name, state[name], self.averaged)
        if not state["optimizer"]["state"]:
            raise ValueError("its optimizer has no state")
        parameters = dict(enumerate(p for group in self.optimizer.param_groups for p in group["params"]))
        for number, moments in state["optimizer"]["state"].items():
            parameter = parameters[number]
            expected = {"step": torch.tensor(0.0), "exp_avg": parameter, "exp_avg_sq": parameter}
            _check_tensors("optimizer", moments, expected)


def _check_tensors(name: str, there: Mapping[str, Any], here: Mapping[str, Tensor]) -> None:
    """Raises: ValueError, AttributeError unless both are tensors of the same names, shapes and dtypes."""
    if there.keys() != here.keys():
        raise ValueError(f"{name} has other tensors")
    for key, tensor in here.items():
        found, form = there[key], (tensor.shape, tensor.dtype, tensor.layout)
        if not isinstance(found, Tensor) or (found.shape, found.dtype, found.layout) != form:
            raise ValueError(f"{name}: {key} is not a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}")
