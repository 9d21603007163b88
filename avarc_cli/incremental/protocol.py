"""The class-incremental protocol: base classes, then tasks of new ones, no old image seen again; accuracy after each.

Everything lies in one folder, and each step leaves a file, so that a stopped run goes on:

    run.json                what was asked        base.safetensors   the base model, where it is trained here
    train.npz, test.npz     tokens                bank/              the added classes
    finetune/task{i}.safetensors                  the baseline after each task
    incremental.json, incremental.png, scores.npz the results
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avarc_cli import bank as banks
from avarc_cli.data.labels import match, normalise
from avarc_cli.errors import UsageError, describe_differences
from avarc_cli.incremental.adding import Existing, Outcome, ProgressOf, add_classes, check_names
from avarc_cli.incremental.editing import open_or_new
from avarc_cli.incremental.examples import Examples, TokenPool
from avarc_cli.incremental.fit import FitOptions
from avarc_cli.incremental.measures import Measures, measure
from avarc_cli.incremental.scoring import log_likelihoods
from avarc_cli.incremental.split import Split
from avarc_cli.loading import LoadedModel, LoadedTokenizer, with_bank
from avarc_cli.models.var.added import base_of
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.network import VAR, VARConfig
from avarc_cli.progress import Progress, no_progress
from avarc_cli.scoring.scores import FloatN
from avarc_cli.storage import remove_leftovers, write_bytes
from avarc_cli.train.generator import train_var
from avarc_cli.train.loop import Recipe
from avarc_cli.train.save import save_var
from avarc_cli.zoo import checkpoint

FINETUNE_RATE = 1e-3
TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class BaseShape:
    """A base model that the protocol trains itself: small, for CPUs."""

    depth: int = 3
    width: int = 64
    steps: int = 1500
    lr: float = 4e-3

    def __post_init__(self) -> None:
        if self.width % 64 or self.width < 64:
            raise UsageError(f"the base model's width is {self.width}", "it is a multiple of 64", "use --base-width 64")


@dataclass(frozen=True)
class Results:
    """What the protocol found: with the bank's offsets, without, and the baseline's where it was asked for."""

    split: Split
    with_offset: Measures
    without_offset: Measures
    baseline: Measures | None

    def as_dict(self) -> dict[str, Any]:
        """incremental.json."""
        return {
            "tasks": [list(task) for task in self.split.tasks],
            "with_offset": self.with_offset.as_dict(),
            "without_offset": self.without_offset.as_dict(),
            "finetune": self.baseline and self.baseline.as_dict(),
        }


def open_folder(path: Path, asked: Mapping[str, Any]) -> None:
    """Start or resume a protocol. Raises: UsageError when the folder holds something else, or another request."""
    path.mkdir(parents=True, exist_ok=True)
    file, now = path / "run.json", json.loads(json.dumps(asked))
    if not file.exists():
        if any(not entry.name.startswith("run.json") for entry in path.iterdir()):
            raise UsageError(f"'{path}' is not empty, and not a run", "it has no run.json", "name another folder")
        write_bytes(file, json.dumps(now, indent=1).encode())
        return
    remove_leftovers(path)
    try:
        there = json.loads(file.read_bytes())
        differences = describe_differences(there, now)
    except (ValueError, AttributeError) as error:
        raise UsageError(f"cannot read '{file}'", str(error), "name another folder, or delete this one") from None
    if differences:
        fix = "repeat its options to continue it, or name another --out"
        raise UsageError(f"'{path}' holds another run", differences, fix)


def hold_out_test(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """(training, test) parts of one set: of each class, this share is for testing, at least one image."""
    rng, test = np.random.default_rng(seed), []
    for label in range(len(examples.class_names)):
        rows = rng.permutation(np.flatnonzero(examples.labels == label))
        test += rows[: max(1, round(share * len(rows)))].tolist()
    train = examples.take(np.setdiff1d(np.arange(len(examples)), test))
    return replace(train, unreadable=examples.unreadable), examples.take(sorted(test))


def check_data(train: Examples, test: Examples, split: Split) -> None:
    """Raises: UsageError for a class without images to train on, or to test on."""
    for part, what in ((train, "training"), (test, "test")):
        counts = np.bincount(part.relabel(split.classes).labels, minlength=len(split.classes))
        if not counts.all():
            raise UsageError(f"class '{split.classes[int(counts.argmin())]}' has no {what} images")


def train_base(
    folder: Path,
    tokenizer: LoadedTokenizer,
    train: Examples,
    split: Split,
    shape: BaseShape,
    seed: int,
    progress_of: ProgressOf,
) -> Path:
    """Train the base model on the base classes alone, unless it is there; its file. Raises: as `train_var`."""
    out = folder / "base.safetensors"
    if out.exists():
        return out
    config = VARConfig(
        depth=shape.depth,
        width=shape.width,
        heads=shape.width // 64,
        num_classes=len(split.base),
        patch_nums=tokenizer.patch_nums,
        vocab_size=tokenizer.vocab_size,
        z_channels=tokenizer.network.config.z_channels,
    )
    recipe = Recipe(steps=shape.steps, batch_size=32, lr=shape.lr, seed=seed, save_every=250)
    pool, resume = TokenPool(train.relabel(split.base), seed), folder / "base.ckpt"
    with progress_of("the base classes", recipe.steps) as progress:
        model = train_var(config, tokenizer.network, pool, recipe, resume, progress)
    save_var(model, out, class_names=split.base, tokenizer_sha256=tokenizer.sha256)
    resume.unlink(missing_ok=True)
    return out


def add_tasks(
    folder: Path, model: LoadedModel, train: Examples, split: Split, options: FitOptions, progress_of: ProgressOf
) -> list[Outcome]:
    """Add the classes of every task but the first to folder/bank, those that are there excepted."""
    later, existing = [name for task in split.tasks[1:] for name in task], Existing(skip=True)
    bank = open_or_new(folder / "bank", model.as_base())
    names = check_names(later, model, bank, existing)
    examples = {name: train.relabel([name]) for name in names}
    return list(
        add_classes(
            model, folder / "bank", examples, options, fit_offset=True, existing=existing, progress_of=progress_of
        )
    )


def check_base(model: LoadedModel, split: Split) -> None:
    """Raises: UsageError unless the model knows the base classes, and none of the later ones."""
    known = {normalise(name) for name in (*model.classes.ids, *model.classes.names)}
    for name in split.classes:
        if (normalise(name) in known) != (name in split.base):
            what = "does not know the base class" if name in split.base else "already knows the later class"
            raise UsageError(f"{model.name} {what} '{name}'", f"its classes are those of {model.classes.name}")


def evaluate(
    folder: Path, model: LoadedModel, test: Examples, split: Split, progress: Progress = no_progress
) -> tuple[Measures, Measures]:
    """Measures with and without offsets, from one scoring of all test images: no addition changes earlier scores."""
    extended = with_bank(model, banks.read(folder / "bank"))
    shown = test.relabel(split.classes)
    ids = match(split.classes, extended.classes).tolist()
    device = torch.device(model.device)
    scores_NK = log_likelihoods(extended.likelihood, shown.tokens[:, 0], ids, device=device, progress=progress)
    offsets = extended.offsets[ids]
    buffer = io.BytesIO()
    np.savez(buffer, scores=scores_NK, offsets=offsets, labels=shown.labels, classes=np.array(split.classes))
    write_bytes(folder / "scores.npz", buffer.getvalue())
    return _measure([scores_NK + offsets] * len(split.tasks), shown, split), _measure(
        [scores_NK] * len(split.tasks), shown, split
    )


def write_results(folder: Path, results: Results) -> None:
    """Write incremental.json."""
    write_bytes(folder / "incremental.json", json.dumps(results.as_dict(), indent=1).encode())


def finetune(
    folder: Path,
    model: LoadedModel,
    train: Examples,
    test: Examples,
    split: Split,
    options: FitOptions,
    progress_of: ProgressOf,
) -> Measures:
    """The baseline: all weights are trained on each task's images alone, as many steps as the additions took."""
    base, device = base_of(model.likelihood), torch.device(model.device)
    ids = match(split.base, model.classes).tolist()
    ids += range(base.num_classes, base.num_classes + len(split.classes) - len(split.base))
    shown = test.relabel(split.classes)
    var = _with_rows(base.var, len(split.classes) - len(split.base))
    steps = options.recipe().steps
    (folder / "finetune").mkdir(exist_ok=True)
    scores = []
    for i, task in enumerate(split.tasks):
        if i:
            relabelled = train.relabel(task)
            class_id = np.array(ids)[[split.classes.index(name) for name in task]]
            pool = TokenPool(replace(relabelled, labels=class_id[relabelled.labels]), options.seed)
            recipe = Recipe(steps=steps * len(task), batch_size=options.batch_size, lr=FINETUNE_RATE, seed=options.seed)
            var = _tuned(folder / "finetune" / f"task{i}", var, model.tokenizer, pool, recipe, progress_of)
        tuned = VARLikelihood(var.eval(), base.quantizer)
        scores.append(log_likelihoods(tuned, shown.tokens[:, 0], ids, device=device))
    return _measure(scores, shown, split)


def _tuned(
    path: Path, var: VAR, tokenizer: LoadedTokenizer, pool: TokenPool, recipe: Recipe, progress_of: ProgressOf
) -> VAR:
    """The baseline after one more task, from its file where it is there."""
    out, resume = path.with_suffix(".safetensors"), path.with_suffix(".ckpt")
    if out.exists():
        return VAR.from_state_dict(checkpoint.read(out).tensors, source=str(out)).to(var.pos_1LC.device)
    with progress_of(f"{path.stem} by fine-tuning", recipe.steps) as progress:
        tuned = train_var(var.config, tokenizer.network, pool, recipe, resume, progress, start=var)
    names = [str(i) for i in range(var.config.num_classes)]
    save_var(tuned, out, class_names=names, tokenizer_sha256=tokenizer.sha256)
    resume.unlink(missing_ok=True)
    return tuned


def _with_rows(var: VAR, count: int) -> VAR:
    """A copy with `count` classes more, before "unconditional"; their rows begin as the mean of the old ones."""
    tensors: dict[str, Tensor] = {key: value.clone() for key, value in var.state_dict().items()}
    rows = tensors["class_emb.weight"]
    new = rows[:-1].mean(0, keepdim=True).expand(count, -1)
    tensors["class_emb.weight"] = torch.cat([rows[:-1], new, rows[-1:]])
    copy = VAR(replace(var.config, num_classes=var.config.num_classes + count)).to(var.pos_1LC.device)
    copy.load_state_dict(tensors)
    return copy


def _measure(scores_TNK: list[FloatN], shown: Examples, split: Split) -> Measures:
    tasks = [[split.classes.index(name) for name in task] for task in split.tasks]
    return measure(scores_TNK, shown.labels, tasks, split.classes)
