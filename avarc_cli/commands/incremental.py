"""avarc incremental: how well a model learns classes one task after the other, and what it forgets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _examples, _summary, _weights
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.errors import EXIT_UNREADABLE, UsageError
from avarc_cli.settings import check_device, check_exists, check_width
from avarc_cli.zoo.cards import check_weights

if TYPE_CHECKING:
    from avarc_cli.incremental.examples import Examples, Variation
    from avarc_cli.incremental.measures import Measures, Results
    from avarc_cli.loaded import LoadedModel, LoadedTokenizer
    from avarc_cli.progress import Progress

DIGITS = Path("digits")  # as DATA: scikit-learn's digits


@dataclass(frozen=True, kw_only=True)
class _ModelOptions:
    """The model of the base classes: one that is named, or a small one that is trained here."""

    model: Annotated[
        str | None,
        opt.model_option(
            "--model",
            "-m",
            help="A model of the base classes only. Default: a small one, trained here.",
            autocompletion=complete.models,
        ),
    ] = None
    tokenizer: opt.TokenizerOpt = None
    weight_set: opt.WeightSetOpt = None
    tokenizer_weight_set: opt.TokenizerWeightSetOpt = None
    base_steps: Annotated[int, opt.model_option("--base-steps", min=1, help="Steps to train the base model.")] = 1500
    base_depth: Annotated[int, opt.model_option("--base-depth", min=1, help="Its blocks.")] = 3
    base_width: Annotated[int, opt.model_option("--base-width", min=64, help="Its channels, a multiple of 64.")] = 64

    @property
    def reads(self) -> str | None:
        """The tokenizer whose tokens are read; None for that of the model."""
        return self.tokenizer or ("digits-vqvae" if self.model is None else None)


@with_option_groups
def incremental(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder with one sub-folder a class (or with train/ and test/, each such), a token cache, or "
            "digits: the digits of scikit-learn."
        ),
    ],
    *,
    base: Annotated[str, typer.Option("--base", help="Classes known from the start: 0-4, or cat+dog.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Classes added later, task by task: 5-6,7-9 or fox+owl,bee.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for model, bank and results; continues earlier work.")
    ],
    test: Annotated[
        Path | None, typer.Option("--test", help="Test images or cache. Default: DATA's test/, or a fifth of DATA.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            help="finetune: train all weights on each task, for comparison.",
            autocompletion=complete.one_of("finetune"),
        ),
    ] = None,
    as_json: opt.JsonOpt = False,
    model: _ModelOptions,
    device: opt.DeviceOpt = "auto",
    work: groups.WorkersOptions,
    yes: opt.YesOpt = False,
    learning: _examples.LearningOptions,
) -> None:
    """Add classes task by task, and measure what is forgotten.

    Old images are not used again. Reports accuracy, forgetting and backward transfer.

    Example: avarc incremental digits --base 0-4 --tasks 5-6,7-9 --baseline finetune --out runs/digits
    """
    from avarc_cli.incremental.folder import check_folder, has_tokens, open_folder
    from avarc_cli.incremental.split import parse_split

    _check_combination(context, model.model, baseline)
    _examples.check_options(context, [data])
    for name in filter(None, (model.model, model.reads)):
        check_weights(name)
    check_device(device)
    workers = work.check(context)
    check_width(model.base_width, "a base model")
    check_folder(out)
    if not has_tokens(out):
        _check_data(data, test, base, tasks, learning.allow_outside)
    from avarc_cli.incremental import protocol  # imports torch: only now, after all that may be wrong

    options, variation = learning.fit(), learning.variation()
    shape = protocol.BaseShape(depth=model.base_depth, width=model.base_width, steps=model.base_steps)
    given, reader = _load(model, workers.first_device(device), yes=yes)
    asked = {
        "incremental": {"data": str(data), "test": test and str(test), "base": base, "tasks": tasks},
        "variation": vars(variation),
        "model": given.sha256 if given else vars(shape),
        "tokenizer": reader.sha256,
        "fit": vars(options),
    }
    with open_folder(out, asked):
        encode = partial(_encode, out, data, test, reader, variation, learning.allow_outside)
        tokens = train, tested = protocol.kept_tokens(out, encode, variation.seed)
        results = protocol.run(
            out,
            tokens,
            parse_split(base, tasks, train.class_names),
            tokenizer=reader,
            model=given,
            base=shape,
            options=options,
            baseline=baseline is not None,
            seed=options.seed,
            workers=workers,
            reporting=protocol.Reporting(_examples.progress, _testing, _examples.searching),
            say=console.warn,
        )
    _show(results, out)
    if train.unreadable or tested.unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def _check_combination(context: typer.Context, model: str | None, baseline: str | None) -> None:
    """Raises: UsageError for options that change nothing beside the others, and for an unknown baseline."""
    if model is not None:
        shape_of_base = {"base_steps", "base_depth", "base_width"}
        opt.check_not_given(context, shape_of_base, "with --model", "the base model is trained already")
    else:
        opt.check_not_given(context, {"weight_set"}, "without --model", "the base model is trained here")
    if baseline not in (None, "finetune"):
        raise UsageError(f"no baseline '{baseline}'", "there is finetune")


def _load(model: _ModelOptions, device: str, *, yes: bool) -> tuple[LoadedModel | None, LoadedTokenizer]:
    """The model of the base classes, if there is one already, and the tokenizer."""
    from avarc_cli.loading import ModelSpec, load_model, load_tokenizer

    name, tokenizer_only = model.model or str(model.reads), model.model is None
    sets = model.weight_set, model.tokenizer_weight_set
    spec = ModelSpec(name, model.tokenizer, weight_set=sets[0], tokenizer_weight_set=sets[1], device=device)
    _weights.ensure(name, model.tokenizer, *sets, yes=yes, tokenizer_only=tokenizer_only)
    given = None if tokenizer_only else load_model(spec)
    reader = given.tokenizer if given else load_tokenizer(replace(spec, tokenizer=None))
    opt.note_inferred(given or reader)
    return given, reader


@contextmanager
def _testing() -> Iterator[Progress]:
    with console.progress("testing", None) as bar:
        yield bar.update


def _encode(
    out: Path, data: Path, test: Path | None, reader: LoadedTokenizer, variation: Variation, allow_outside: bool
) -> tuple[Examples, Examples | None]:
    """Training and test images as tokens; None where there are no test images of their own."""
    from avarc_cli.train.digits import write_digits

    if data == DIGITS and not data.exists():
        data = out / "digits"
        write_digits(data)
    data, test = _split_folder(data, test)
    train = _read(data, reader, variation, allow_outside)
    return train, None if test is None else _read(test, reader, replace(variation, variants=0), allow_outside)


def _split_folder(data: Path, test: Path | None) -> tuple[Path, Path | None]:
    """Training and test images: DATA's sub-folders of these names, unless --test names others."""
    if test is None and (data / "train").is_dir() and (data / "test").is_dir():
        return data / "train", data / "test"
    return data, test


def _check_data(data: Path, test: Path | None, base: str, tasks: str, allow_outside: bool) -> None:
    """Find out before torch is imported whether there are such images and classes. Raises: UsageError, CacheError."""
    from avarc_cli.incremental.source import class_names, open_source
    from avarc_cli.incremental.split import parse_split

    check_exists(test, "--test")
    if data == DIGITS and not data.exists():
        parse_split(base, tasks, "0123456789")
        return
    check_exists(data, "DATA")
    train = [_split_folder(data, test)[0]]
    parse_split(
        base, tasks, class_names(open_source(train, is_cache=_summary.is_cache(train), allow_outside=allow_outside))
    )


def _read(data: Path, reader: LoadedTokenizer, variation: Variation, allow_outside: bool) -> Examples:
    from avarc_cli.incremental.examples import concatenate
    from avarc_cli.incremental.source import by_class

    source = _examples.open_source([data], allow_outside=allow_outside)
    return concatenate(_examples.encode(source, by_class(source, None, str(data)), reader, variation).values())


def _show(results: Results, out: Path) -> None:
    split = results.split
    runs = {"classes added": results.with_offset, "without offsets": results.without_offset}
    runs |= {"all weights fine-tuned": results.baseline} if results.baseline else {}
    matrix = [_row(i, results.with_offset, split.titles) for i in range(len(split.tasks))]
    title = "Accuracy on the tasks known so far"
    numbers = [
        [name, *(f"{x:.2%}" for x in (m.overall, m.average_accuracy, m.forgetting)), f"{m.backward_transfer:+.2%}"]
        for name, m in runs.items()
    ]
    columns = ["", "all images right", "average accuracy", "forgetting", "backward transfer"]
    human = console.stack(
        console.table(title, ["after learning", *(f"on {t}" for t in split.titles)], matrix),
        console.table("In the end", columns, numbers),
        console.path_and(out, "incremental.json, incremental.png, bank/"),
    )
    brief = [(f"{results.with_offset.average_accuracy:.4f}", f"{results.with_offset.forgetting:.4f}")]
    console.result(results.as_dict() | {"out": out}, human, brief=brief)


def _row(i: int, measures: Measures, titles: tuple[str, ...]) -> list[str]:
    return [titles[i], *("" if x != x else f"{x:.2%}" for x in measures.matrix[i].tolist())]
