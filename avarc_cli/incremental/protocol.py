"""The class-incremental protocol: base classes, then tasks of new ones, no old image seen again; accuracy after each.

Everything lies in one folder, and each step leaves a file, so that a stopped run can be resumed:

    run.json                what was asked        base.safetensors   the base model, where it is trained here
    train.npz, test.npz     tokens                bank/              the added classes
    finetune/task{i}.safetensors                  the baseline after each task
    incremental.json, incremental.png, scores.npz the results
    scores.parts/           scores of test images, until all are there
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avarc_cli import bank as banks
from avarc_cli import families
from avarc_cli.data.labels import match, normalize
from avarc_cli.errors import UsageError
from avarc_cli.incremental import image_scores, plot
from avarc_cli.incremental.adding import ProgressOf, add_classes
from avarc_cli.incremental.baseline import finetune
from avarc_cli.incremental.editing import Existing, check_names, open_or_new
from avarc_cli.incremental.examples import Examples, TokenPool, load
from avarc_cli.incremental.fit import FitOptions
from avarc_cli.incremental.folder import has_tokens, token_files
from avarc_cli.incremental.measures import Measures, Results, measure
from avarc_cli.incremental.split import Split
from avarc_cli.loaded import LoadedModel, LoadedTokenizer
from avarc_cli.loading import ModelSpec, load_model, with_bank
from avarc_cli.names import to_json
from avarc_cli.progress import Notify, Progress, StartProgress, no_message, no_progress, silent
from avarc_cli.settings import check_width
from avarc_cli.storage import write_bytes
from avarc_cli.train import generator
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.save import save_generator
from avarc_cli.work.workers import HERE, Workers

TEST_FRACTION = 0.2  # of each class, where the data has no test images of its own


@dataclass(frozen=True, kw_only=True)
class BaseShape:
    """A base model that the protocol trains itself: small, for CPUs. Raises: UsageError for a width."""

    depth: int = 3  # blocks
    width: int = 64  # channels, a multiple of 64
    steps: int = 1500  # of the training
    lr: float = 4e-3  # peak learning rate

    def __post_init__(self) -> None:
        check_width(self.width, "a base model")


@dataclass(frozen=True)
class Reporting:
    """How a run of the protocol shows its progress."""

    training: ProgressOf  # (what is learnt, steps) -> the progress of a training
    testing: Callable[[], AbstractContextManager[Progress]]  # the progress of scoring the test images
    searching: StartProgress = silent  # as `add_classes` has it


def run(
    folder: Path,
    data: tuple[Examples, Examples],
    split: Split,
    *,
    tokenizer: LoadedTokenizer,
    model: LoadedModel | None = None,
    base: BaseShape | None = None,
    options: FitOptions | None = None,
    baseline: bool = False,
    seed: int = 0,
    workers: Workers = HERE,
    reporting: Reporting,
    say: Notify = no_message,
) -> Results:
    """Run the protocol, or what is left of it, in a folder that `open_folder` prepared.

    Args:
        data: tokens of training and of test images.
        tokenizer: the one that gave the tokens.
        model: a model that knows the base classes only; None trains one of shape `base`.
        options: how classes are fitted.
        baseline: also fine-tune all weights on each task, for comparison.
        workers: who scores the test images; one process trains.
        say: called with messages for the user.
    Returns: the results, which are also written as incremental.json and incremental.png.
    Raises: UsageError for classes without images, and a model that does not know the base classes or knows later
        ones; as `add_classes` and `train.generator.fit`.
    """
    train, test = data
    options = options or FitOptions()
    check_data(train, test, split)
    if model is None:
        path = train_base(folder, tokenizer, train, split, base or BaseShape(), seed, reporting.training)
        spec = ModelSpec(
            str(path), tokenizer.file, tokenizer_weight_set=tokenizer.weight_set, device=str(tokenizer.device)
        )
        model = replace(load_model(spec), tokenizer=tokenizer)
    check_base(model, split)
    add_tasks(folder, model, train, split, options, reporting)
    with reporting.testing() as progress:
        with_offset, without_offset = evaluate(folder, model, test, split, workers, progress, say)
    tuned = finetune(folder, model, train, test, split, options, reporting.training) if baseline else None
    results = Results(split, with_offset, without_offset, tuned)
    write_bytes(folder / "incremental.json", to_json(results.as_dict(), indent=1).encode())
    plot.draw(results, folder / "incremental.png")
    return results


def kept_tokens(
    folder: Path, encode: Callable[[], tuple[Examples, Examples | None]], seed: int
) -> tuple[Examples, Examples]:
    """Tokens of training and test images, kept in the folder so that they are encoded once.

    Args:
        encode: called where they are not there yet; None for test images holds out some of the training images.
        seed: decides which are held out.
    """
    files = token_files(folder)
    if not has_tokens(folder):
        train, test = encode()
        if test is None:
            train, test = hold_out_test(train, TEST_FRACTION, seed)
        for part, file in zip((train, test), files, strict=True):
            part.save(file)
    return load(files[0]), load(files[1])


def hold_out_test(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """(training, test) parts of one set: this fraction of each class is for testing, at least one image."""
    rng, test = np.random.default_rng(seed), []
    for label in range(len(examples.class_names)):
        rows = rng.permutation(np.flatnonzero(examples.labels == label))
        test += rows[: max(1, round(fraction * len(rows)))].tolist()
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
    """Train the base model on the base classes alone, unless an earlier run did; its file.

    Raises: UsageError for a tokenizer without a family of generators to train; as `train.generator.fit`.
    """
    out = folder / "base.safetensors"
    if out.exists():
        return out
    family = families.TOKENIZERS.get(tokenizer.family).generator
    if not family:
        raise UsageError(f"no base model of the tokens of {tokenizer.name} can be trained", fix="name one with --model")
    recipe = Recipe(steps=shape.steps, batch_size=32, lr=shape.lr, seed=seed, save_every=250)
    pool, resume = TokenPool(train.relabel(split.base), seed), folder / "base.ckpt"
    with progress_of("the base classes", recipe.steps) as progress:
        network_shape = {"depth": shape.depth, "width": shape.width}
        model = generator.new_generator(family, tokenizer, len(split.base), network_shape, seed=seed)
        generator.fit(model, tokenizer, pool, recipe, resume, progress)
    save_generator(model, out, class_names=split.base, tokenizer_sha256=tokenizer.sha256)
    resume.unlink(missing_ok=True)
    return out


def add_tasks(
    folder: Path, model: LoadedModel, train: Examples, split: Split, options: FitOptions, reporting: Reporting
) -> None:
    """Add the classes of every task but the first to folder/bank, except those that it has already."""
    later, existing = [name for task in split.tasks[1:] for name in task], Existing(skip=True)
    bank = open_or_new(folder / "bank", model.as_base())
    names = check_names(later, model.classes, bank, existing)
    examples = {name: train.relabel([name]) for name in names}
    for _ in add_classes(
        model,
        folder / "bank",
        examples,
        options,
        fit_offset=True,
        existing=existing,
        progress_of=reporting.training,
        searching=reporting.searching,
    ):
        pass  # each class is stored as soon as it is fitted


def check_base(model: LoadedModel, split: Split) -> None:
    """Raises: UsageError unless the model knows the base classes, and none of the later ones."""
    known = {normalize(name) for name in (*model.classes.ids, *model.classes.names)}
    for name in split.classes:
        if (normalize(name) in known) != (name in split.base):
            what = "does not know the base class" if name in split.base else "already knows the later class"
            raise UsageError(f"{model.name} {what} '{name}'", f"its classes are those of {model.classes.name}")


def evaluate(
    folder: Path,
    model: LoadedModel,
    test: Examples,
    split: Split,
    workers: Workers = HERE,
    progress: Progress = no_progress,
    say: Notify = no_message,
) -> tuple[Measures, Measures]:
    """Measures with and without offsets, from one scoring of all test images: no addition changes earlier scores."""
    extended = with_bank(model, banks.read(folder / "bank"))
    shown = test.relabel(split.classes)
    ids = match(split.classes, extended.classes).tolist()
    parts = folder / "scores.parts"
    scores_NK = image_scores.score(
        extended, shown.tokens[:, 0], ids, parts, workers=workers, progress=progress, say=say
    )
    offsets = extended.offsets[ids]
    buffer = io.BytesIO()
    np.savez(buffer, scores=scores_NK, offsets=offsets, labels=shown.labels, classes=np.array(split.classes))
    write_bytes(folder / "scores.npz", buffer.getvalue())
    image_scores.remove(parts)
    with_offset, without_offset = (
        measure([scores] * len(split.tasks), shown.labels, split.task_indices, split.classes)
        for scores in (scores_NK + offsets, scores_NK)
    )
    return with_offset, without_offset
