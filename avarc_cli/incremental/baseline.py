"""The baseline of the protocol: all weights are fine-tuned on each task's images alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from avarc_cli.added_classes import base_of
from avarc_cli.data.labels import match
from avarc_cli.incremental.adding import ProgressOf
from avarc_cli.incremental.examples import Examples, TokenPool
from avarc_cli.incremental.fit import FitOptions
from avarc_cli.incremental.measures import Measures, measure
from avarc_cli.incremental.split import Split
from avarc_cli.loaded import LoadedModel, LoadedTokenizer
from avarc_cli.scoring.exhaustive import log_likelihoods
from avarc_cli.train.generator import fit
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.save import save_generator
from avarc_cli.trainable import TrainableModel
from avarc_cli.zoo import checkpoint

LEARNING_RATE = 1e-3  # chosen by hand for the digits


def finetune(
    folder: Path,
    model: LoadedModel,
    train: Examples,
    test: Examples,
    split: Split,
    options: FitOptions,
    progress_of: ProgressOf,
) -> Measures:
    """Measures of a model that trains all weights on one task after the other, with as many steps as adding takes.

    The weights after each task are kept in `folder`/finetune, and used when they are there.
    Raises: as `train.generator.fit`.
    """
    base, device = base_of(model.likelihood), torch.device(model.device)
    new_classes = len(split.classes) - len(split.base)
    ids = match(split.base, model.classes).tolist()
    ids += range(base.num_classes, base.num_classes + new_classes)
    shown = test.relabel(split.classes)
    grown = base.with_more_classes(new_classes)
    steps = options.recipe().steps
    (folder / "finetune").mkdir(exist_ok=True)
    scores = []
    for i, task in enumerate(split.tasks):
        if i:
            relabelled = train.relabel(task)
            class_id = np.array(ids)[[split.classes.index(name) for name in task]]
            pool = TokenPool(replace(relabelled, labels=class_id[relabelled.labels]), options.seed)
            recipe = Recipe(steps=steps * len(task), batch_size=options.batch_size, lr=LEARNING_RATE, seed=options.seed)
            _train_task(folder / "finetune" / f"task{i}", grown, model.tokenizer, pool, recipe, progress_of)
        # A new model around the weights: a model keeps tables that were computed from them.
        scored = grown.with_network(grown.network.eval())
        scores.append(log_likelihoods(scored, shown.tokens[:, 0], ids, device=device))
    return measure(scores, shown.labels, split.task_indices, split.classes)


def _train_task(
    path: Path,
    model: TrainableModel,
    tokenizer: LoadedTokenizer,
    pool: TokenPool,
    recipe: Recipe,
    progress_of: ProgressOf,
) -> None:
    """Train the model in place on one more task, or load what an earlier run trained."""
    out, resume = path.with_suffix(".safetensors"), path.with_suffix(".ckpt")
    if out.exists():
        tensors = checkpoint.read(out).tensors
        model.network.load_state_dict({key: tensors[key] for key in model.network.state_dict()})
        return
    with progress_of(f"{path.stem} by fine-tuning", recipe.steps) as progress:
        fit(model, tokenizer, pool, recipe, resume, progress)
    names = [str(i) for i in range(model.num_classes)]
    save_generator(model, out, class_names=names, tokenizer_sha256=tokenizer.sha256)
    resume.unlink(missing_ok=True)
