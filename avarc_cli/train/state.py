"""What a checkpoint stores of a training: enough to go on to identical bits."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from avarc_cli.errors import AvarcError, CheckpointError, describe_differences
from avarc_cli.layers import collectives
from avarc_cli.progress import Notify
from avarc_cli.storage import beside, remove_leftovers_of
from avarc_cli.train import checkpoint_file, sharding
from avarc_cli.train.best import Best
from avarc_cli.train.listing import Listing

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, of every parameter
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)  # what content of wrong types raises


class Kept(Protocol):
    """What a loss keeps from step to step, such as the use of codes. `family.TokenizerLoss` is one."""

    def before_update(self, step: int, steps: int) -> None:
        """Called once a step, by all processes: after the gradients of every part, before the weights change."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; the same in all processes."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: what the wrong types raise."""
        ...


@dataclass(frozen=True)
class State:
    """What a checkpoint stores of a training, besides the step."""

    identity: dict[str, Any]  # recipe and subject: a checkpoint of another training is refused
    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: dict[str, Tensor]  # moving average of the weights
    scaler: torch.amp.GradScaler  # of fp16
    kept: Kept | None  # by the loss
    best: Best  # on validation data
    listing: Callable[[], Listing] | None = None  # of the images that are trained on

    @cached_property
    def images(self) -> dict[str, Tensor]:
        """The images one by one; {} for a training on something else."""
        return {} if self.listing is None else self.listing().state_dict()

    def save(self, path: Path, step: int, *, keep: int = 1) -> None:
        """Write a checkpoint after `step` steps, as the first process; older ones beyond the last `keep` are deleted.

        It is the same for any number of processes, sharded or not. All processes come here together.

        Raises: in all processes, AvarcError when it cannot be written; then the one before is as it was.
        """
        state = {
            "identity": self.identity,
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged,
            "scaler": self.scaler.state_dict(),
            "best": self.best.state_dict(),
            "kept": {} if self.kept is None else self.kept.state_dict(),
            "images": self.images if collectives.rank() == 0 else {},
        }
        state = sharding.whole(state)
        collectives.by_first(lambda: _write(path, state, step, keep))

    def resume(self, path: Path, say: Notify) -> int:
        """Load the checkpoint, if there is one; the number of steps done.

        Only the first process reads the file. Raises: in all processes, CheckpointError.
        """
        weights: dict[str, dict[Any, Tensor]] = {}  # in the first process
        state = collectives.by_first(lambda: self._read(path, weights, say))
        if state is None:
            return 0
        try:
            if self.kept is not None and "kept" in state:
                self.kept.load_state_dict(state["kept"])
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
        except _DAMAGE as error:
            raise _corrupt(path, error) from None
        parameters = self._parameters()
        trained = {number: parameters[number] for number in state["optimizer_steps"]}
        here: dict[str, dict[Any, Tensor]] = {
            "averaged": self.averaged,
            "model": self.model.state_dict(),
            **dict.fromkeys(MOMENTS, trained),
        }
        if state["best"] is not None:
            here["best"] = self.averaged
        got = {name: sharding.received(tensors, weights.get(name)) for name, tensors in here.items()}
        self.model.load_state_dict(got["model"])
        moments = {
            number: {"step": step, **{moment: got[moment][number] for moment in MOMENTS}}
            for number, step in state["optimizer_steps"].items()
        }
        groups = self.optimizer.state_dict()["param_groups"]  # the recipe decides about these
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for key, value in got["averaged"].items():
            self.averaged[key].copy_(value)
        if state["best"] is not None:
            self.best.load_state_dict({**state["best"], "weights": got["best"]})
        done: int = state["step"]
        return done

    def _read(self, path: Path, weights: dict[str, dict[Any, Tensor]], say: Notify) -> dict[str, Any] | None:
        """What a checkpoint says, but for its large tensors, which are put into `weights`.

        Raises: CheckpointError.
        """
        remove_leftovers_of(path)  # of a kill while saving
        if not path.exists():
            return None
        state, verified = checkpoint_file.read(path)
        self._check_identity(path, state)
        try:
            self._check(state)
            best = state.pop("best", None)
            if best is not None:
                weights["best"] = best.pop("weights")
                _check_tensors("best", weights["best"], self.averaged)
                Best().load_state_dict({**best, "weights": {}})
        except _DAMAGE as error:
            raise _corrupt(path, error) from None
        moments = state.pop("optimizer")["state"]
        state.pop("images", None)
        weights |= {name: state.pop(name) for name in ("model", "averaged")}
        weights |= {moment: {number: each[moment] for number, each in moments.items()} for moment in MOMENTS}
        if not verified:
            say(f"{path} was written by an older avarc, without a digest: damage would not be noticed")
        return {**state, "best": best, "optimizer_steps": {number: each["step"] for number, each in moments.items()}}

    def _check_identity(self, path: Path, state: Mapping[str, Any]) -> None:
        """Raises: CheckpointError for a checkpoint of another training."""
        theirs = state.get("identity")
        if not isinstance(theirs, dict):
            raise checkpoint_file.corrupt(path, "it does not say which training it is of")
        if differences := describe_differences(theirs, self.identity):
            raise self._of_another(path, theirs, differences, state.get("images"))

    def _of_another(
        self, path: Path, theirs: Mapping[str, Any], differences: str, images: Mapping[str, Any] | None
    ) -> CheckpointError:
        """The error for a checkpoint of another training. images: what it says about them."""
        changed = _what_differs(theirs, self.identity)
        fix = f"delete {path} to start over"
        if changed is None:
            what, fix = f"{path} belongs to another training run", f"repeat that run's options to continue it, or {fix}"
        elif "images" in changed and set(changed) <= {"images", "validation"}:
            what, fix = f"the training images have changed since {path} was saved", f"undo that to continue, or {fix}"
            if images and self.listing is not None:
                differences = self.listing().changes_since(Listing.from_state_dict(images)) or differences
        else:
            what = f"{path} belongs to a training with another {' and another '.join(changed)}"
            fix = f"repeat that run's options to continue it, or {fix}"
            if "loss" in changed:
                same = "its frozen networks must be those of that run, and none where it had none (--lpips-weight 0)"
                fix = f"{same}: {fix}"
        return CheckpointError(what, differences, fix)

    def _parameters(self) -> list[nn.Parameter]:
        """By their numbers in the optimizer's state."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _check(self, state: Mapping[str, Any]) -> None:
        """Raises: what the wrong types raise, or ValueError, unless this training can have saved the state."""
        if type(state["step"]) is not int or not 0 < state["step"] <= self.identity["steps"]:
            raise ValueError(f"its number of steps is {state['step']!r}")
        for name in ("model", "averaged"):
            _check_tensors(name, state[name], self.averaged)
        may_skip = "skip_norm" in self.identity or self.identity.get("precision") == "fp16"
        if not state["optimizer"]["state"] and not may_skip:
            raise ValueError("its optimizer has no state")
        parameters = dict(enumerate(self._parameters()))
        for number, moments in state["optimizer"]["state"].items():
            parameter = parameters[number]
            expected = {"step": torch.tensor(0.0), **dict.fromkeys(MOMENTS, parameter)}
            _check_tensors("optimizer", moments, expected)


def _write(path: Path, state: dict[str, Any], step: int, keep: int) -> None:
    """Raises: AvarcError."""
    try:
        checkpoint_file.write(path, state)
        _keep(path, step, keep)
    except OSError as error:
        before = "the one before is still there" if path.exists() else "there is none from before"
        raise AvarcError(
            f"cannot write the checkpoint of step {step} to '{path}'",
            f"{error.strerror or error}; {before}",
            "free some space, then run the same command again to continue",
        ) from None


def _corrupt(path: Path, error: Exception) -> CheckpointError:
    return checkpoint_file.corrupt(path, f"it has no {error}" if isinstance(error, KeyError) else str(error))


def _what_differs(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str] | None:
    """What a training depends on that has changed since a checkpoint was saved; None where options have, too."""
    there, here = theirs.get("subject"), ours["subject"]
    options = {*theirs, *ours} - {"subject", "validation"}
    if not isinstance(there, Mapping) or any(theirs.get(name) != ours.get(name) for name in options):
        return None
    changed = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    return changed + ["validation"] * (theirs.get("validation") != ours.get("validation"))


def _keep(path: Path, step: int, keep: int) -> None:
    """Give a checkpoint a second name by its step, and delete those of older ones, but for the last `keep`."""
    if keep > 1:
        copy = beside(path, f".{step:08}")
        copy.unlink(missing_ok=True)
        try:
            os.link(path, copy)  # takes no space
        except OSError:  # not on every file system
            shutil.copyfile(path, copy)
    own = [file for file in numbered(path) if int(file.name[-8:]) <= step]  # later ones are an earlier training's
    for old in own[: -keep if keep > 1 else None]:
        old.unlink(missing_ok=True)


def numbered(path: Path) -> list[Path]:
    """The last checkpoints by their steps, the oldest first: OUT.ckpt.00000500, ..."""
    name = beside(path, ".00000000").name
    return sorted(path.parent.glob(glob.escape(name[:-8]) + "[0-9]" * 8))


def discard(path: Path) -> None:
    """Delete the checkpoints of a finished training."""
    for file in (path, *numbered(path)):
        file.unlink(missing_ok=True)


def _check_tensors(name: str, there: Mapping[str, Any], here: Mapping[str, Tensor]) -> None:
    """Raises: ValueError, AttributeError unless both are tensors of the same names, shapes and dtypes."""
    if there.keys() != here.keys():
        raise ValueError(f"{name} has other tensors")
    for key, tensor in here.items():
        found, form = there[key], (tensor.shape, tensor.dtype, tensor.layout)
        if not isinstance(found, Tensor) or (found.shape, found.dtype, found.layout) != form:
            raise ValueError(f"{name}: {key} is not a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}")
