"""The training loop of tokenizers and generators: AdamW, learning-rate schedule, weight averaging, checkpoints."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avarc_cli import processes
from avarc_cli.devices import product_rate
from avarc_cli.errors import AvarcError, Interrupted, UsageError, describe_differences
from avarc_cli.layers import collectives
from avarc_cli.layers.stored import plain_state
from avarc_cli.layers.weight_decay import decays_unless_named
from avarc_cli.process import held_back
from avarc_cli.progress import MetricsProgress, Notify, no_message
from avarc_cli.train import sharding
from avarc_cli.train.best import Best
from avarc_cli.train.blocks import compiled, recomputed
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.rehearsal import rehearse
from avarc_cli.train.resume import resume_file
from avarc_cli.train.run import Run
from avarc_cli.train.state import Kept, State, discard
from avarc_cli.train.update import Decays, average, is_skipped, new_optimizer, set_rates, spread
from avarc_cli.train.updates import Done, LossOfRows, Updates, is_finite
from avarc_cli.train.watch import Watch, Watched, opened


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    step: int
    """After which the model had the weights that it has now."""
    best: float | None
    """Their loss on validation data, which was the smallest; None without such data."""


ShouldContinue = Callable[[int, dict[str, Tensor]], bool]  # (steps done, averaged weights) -> whether to continue


def train(
    model: nn.Module,
    loss_of_rows: LossOfRows,
    recipe: Recipe,
    checkpoint: Path | None,
    progress: MetricsProgress,
    *,
    subject: Mapping[str, str],
    decays: Decays = decays_unless_named,
    kept: Kept | None = None,
    watched: Watched | None = None,
    run: Run | None = None,
    should_continue: ShouldContinue = lambda step, averaged: True,
    say: Notify = no_message,
) -> Trained | None:
    """Train in place; afterwards the model holds the averaged weights, or with validation data the best of them.

    `checkpoint` is replaced every `save_every` steps, and when the process is asked to end (Ctrl-C, SIGTERM). When it
    exists and was made with the same recipe and `subject`, training resumes from it, with the same result as if it had
    never stopped. It does not depend on the device, nor on the number of processes and passes: a training begun on
    GPUs can be finished on a CPU.

    In the processes of `collectives.joined`, each computes its part of every batch; the first one writes checkpoints.

    Args:
        checkpoint: None saves nothing, for trainings of minutes.
        subject: what is trained, and on what, by name.
        decays: which parameters the published training applies weight decay to, for recipes that follow it.
        kept: what the loss keeps from step to step. None for a loss that keeps nothing.
        watched: what there is to validate and draw.
        should_continue: called after each step; false ends the training early.
        say: called with a message when `checkpoint` is too old to be verified.

    Returns: None after a dry run.
    Raises: CheckpointError when `checkpoint` is corrupt or another training's; AvarcError when the loss is not finite,
    or a checkpoint cannot be written; UsageError as `Updates`; Interrupted on Ctrl-C.
    """
    watched, run = watched or Watched(), run or Run()
    with collectives.joined(next(model.parameters()).device):
        identity = _identity(recipe, subject, watched, run)
        _check_alike(identity)
        if run.shard:
            _check_shardable(model, kept)
            sharding.shard(model)
        optimizer = new_optimizer(model, recipe, decays)
        updates = Updates(model, loss_of_rows, optimizer, run, batch_size=recipe.batch_size)
        averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if run.rehearse is not None:
            size = {"images": watched.images, "tokens": watched.tokens, "batch_size": recipe.batch_size}
            with _as_asked(model, run):
                run.rehearse(rehearse(model, updates, averaged, kept, **size, steps=recipe.steps, clip=recipe.clip))
            return None
        state = State(identity, model, optimizer, averaged, updates.scaler, kept, Best(), watched.listing)
        start = state.resume(checkpoint, say) if checkpoint else 0
        _take_steps(start, state, updates, recipe, checkpoint, progress, watched, run, should_continue)
        return _finish(state, recipe, run)


def _identity(recipe: Recipe, subject: Mapping[str, str], watched: Watched, run: Run) -> dict[str, Any]:
    """What the result depends on. A checkpoint that says something else is refused."""
    identity = recipe.identity() | {"subject": dict(subject)}
    if run.precision != "fp32":
        identity["precision"] = run.precision
    if watched.validation is not None:
        identity["validation"] = f"{watched.validation.subject}, every {run.validate_every} steps"
    return identity


def _take_steps(
    start: int,
    state: State,
    updates: Updates,
    recipe: Recipe,
    checkpoint: Path | None,
    progress: MetricsProgress,
    watched: Watched,
    run: Run,
    should_continue: ShouldContinue,
) -> None:
    """Take the steps from `start` on, up to the last one or until the training is to end."""
    model, averaged, size = state.model, state.averaged, recipe.batch_size
    shown: dict[str, float] = {}
    model.train()
    with ExitStack() as stack:
        stack.enter_context(_interruptible(checkpoint))
        writers = stack.enter_context(opened(run, state.identity, start))
        peak = product_rate(updates.device, rounds=2) if writers else None
        stack.enter_context(_as_asked(model, run))
        ending = stack.enter_context(held_back() if checkpoint else _at_once())
        watch = Watch(run, watched, state.best, model, batch_size=size, writers=writers, peak=peak)
        for step in range(start, recipe.steps):
            set_rates(state.optimizer, recipe, step)
            with watch.counting():
                done = updates.gradients(step, recipe.clip, asked_to_end=ending)
            _check(done, run, step, checkpoint)
            if state.kept is not None:
                state.kept.before_update(step, recipe.steps)
            if is_skipped(spread(model.parameters(), recipe), recipe, step):
                updates.skip()
            else:
                updates.apply()
            average(averaged, model, recipe.averaging(step))
            shown = {k: 0.98 * shown.get(k, v) + 0.02 * v for k, v in done.values.items()}  # over about 50 steps
            progress(step + 1, shown)
            watch.after(step + 1, done, recipe.rate(step), averaged, is_last=step + 1 == recipe.steps)
            if not should_continue(step + 1, averaged):
                break
            stops = done.stops or (bool(ending) and collectives.count() == 1)  # several end after the same step
            if checkpoint and (stops or (step + 1) % recipe.save_every == 0):
                state.save(checkpoint, step + 1, keep=run.keep)
            if stops and not ending:  # another process was asked
                raise KeyboardInterrupt
            if stops:
                break


def _finish(state: State, recipe: Recipe, run: Run) -> Trained:
    """Give the model the weights that it is to have: the averaged ones, or with validation data the best of them."""
    model, best = state.model, state.best
    final = state.averaged if best.weights is None else best.weights
    if run.shard:
        sharding.make_whole(model, final)
    else:
        model.load_state_dict(final)
    model.eval()
    return Trained(recipe.steps, None) if best.weights is None else Trained(best.step, best.loss)


def conclude(trained: Trained | None, out: Path, save: Callable[[], None], run: Run | None = None) -> None:
    """After a training, write what it made to `out`, as the first process, and delete its checkpoints."""
    if trained is not None and run is not None:
        run.left_out.gather()
    if trained is None or not processes.is_first():
        return
    save()
    discard(resume_file(out))
    if run is not None and trained.best is not None:
        run.note(
            f"these are the weights after {trained.step} steps, the best on validation data: loss {trained.best:.4g}"
        )


def _check_alike(identity: dict[str, Any]) -> None:
    """Raises: UsageError in all processes when one trains something else: on its machine the images are others, say."""
    first = collectives.by_first(lambda: identity)
    differences = collectives.from_all(describe_differences(first, identity, sides=("in process 0", "there")))
    for number, found in enumerate(differences):
        if found:
            what = f"process {number} trains something else than process 0"
            raise UsageError(what, found, "give every machine the same images, files and options")


def _check_shardable(model: nn.Module, kept: Kept | None) -> None:
    """Raises: UsageError for a training that cannot be divided among processes."""
    what = "--shard divides the weights of generators only"
    if kept is not None:
        raise UsageError(what, "a tokenizer fits on one GPU, and its losses change its codes", "leave out --shard")
    if not all(p.requires_grad for p in model.parameters()):
        raise UsageError(what, "an adapter is small, and the weights it changes stay as they are", "leave out --shard")


def _check(done: Done, run: Run, step: int, checkpoint: Path | None) -> None:
    """Raises: AvarcError when the training has diverged."""
    if is_finite(done) or (run.precision == "fp16" and math.isfinite(done.loss)):  # the scaler handles an overflow
        return
    what = f"the gradient's norm is {done.norm}" if math.isfinite(done.loss) else f"the loss is {done.loss}"
    saved = checkpoint is not None and checkpoint.exists()
    kept = f"; the last good checkpoint is '{checkpoint}'" if saved else ""
    raise AvarcError(f"{what} at step {step}", f"training diverged{kept}", "start again with a smaller --lr")


def fingerprint(module: nn.Module) -> str:
    """A short digest of a module's weights, for the `subject` of a training that depends on them."""
    digest = hashlib.sha256()
    for tensor in plain_state(module).values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@contextmanager
def _as_asked(model: nn.Module, run: Run) -> Iterator[None]:
    """Blocks recomputed and compiled, as the run says."""
    with ExitStack() as stack:
        if run.recompute:
            stack.enter_context(recomputed(model))
        if run.compile:
            stack.enter_context(compiled(model))
        yield


@contextmanager
def _at_once() -> Iterator[list[int]]:
    """In place of `held_back` where nothing is saved: signals act at once."""
    yield []


@contextmanager
def _interruptible(checkpoint: Path | None) -> Iterator[None]:
    """Ctrl-C as an Interrupted that says what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        saved = checkpoint is not None and checkpoint.exists()
        kept = f"the last checkpoint is in '{checkpoint}'" if saved else "nothing was saved yet"
        raise Interrupted("training was interrupted", kept, "run the same command again") from None
