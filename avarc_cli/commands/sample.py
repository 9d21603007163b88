"""avarc sample: pictures of classes, drawn by the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _shards
from avarc_cli.commands._drawing import DrawingOptions
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.errors import UsageError
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.loaded import LoadedModel
    from avarc_cli.sampling import Sampling
    from avarc_cli.sampling.many import Drawn
    from avarc_cli.work.shards import Shard
    from avarc_cli.work.workers import Workers

OF_MANY = {"batch_size", "shard", "devices", "engine", "flat"}


@dataclass(frozen=True, kw_only=True)
class _ManyOptions:
    """How a folder or an array of pictures is made."""

    flat: Annotated[
        bool, typer.Option("--flat", help="Number the pictures of a folder consecutively: 000000.png and so on.")
    ] = False
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Pictures of a folder or array that are drawn at once. Default: 8."),
    ] = None


@with_option_groups
def sample(
    context: typer.Context,
    classes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Classes by name, id or number; or a known subset, or a file. Default, if --per-class is given: all. "
            "Of a model of captions: captions, or names out of --captions.",
            autocompletion=complete.classes,
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="FILE.png: one picture, a row a class. Without a suffix: a folder of pictures. FILE.npz: the array "
            "arr_0 of all, as evaluators of FID read it.",
        ),
    ],
    count: Annotated[int, typer.Option("--count", "--per-class", "-n", min=1, help="Pictures of each class.")] = 8,
    drawing: DrawingOptions,
    many: _ManyOptions,
    overwrite: opt.OverwriteOpt = False,
    work: groups.WorkOptions,
    as_json: opt.JsonOpt = False,
    model: groups.ModelOptions,
) -> None:
    """Draw pictures of classes, as the model imagines them.

    A folder gets many: CLASS/000.png and so on; FILE.npz has all in one array. If it is interrupted or killed, run it
    again to continue; the pictures are the same, also when several processes each do a --shard of them, or several
    --devices share them.

    Example: avarc sample 3 8 --count 8 --out digits.png
    """
    from avarc_cli import outputs
    from avarc_cli.data.labels import resolve_classes

    own, workers = work.own_shard, work.workers
    words = classes or []
    classes = words or _all_classes(context)
    is_picture = out.suffix.lower() == ".png" or (out.suffix.lower() not in {"", ".npz"} and not out.is_dir())
    if is_picture:
        opt.check_not_given(context, OF_MANY, f"with '{out}'", "one picture is drawn by one process")
    else:
        _check_place(context, out, own, workers, overwrite=overwrite)
    preset, painting = drawing.read(context, model.model)
    model = model.saying(words, model.model)
    if (space := model.known_classes()) is not None:
        for wanted in classes:
            resolve_classes(wanted, space)
    picture, read = (out if is_picture else None), drawing.inputs()
    with outputs.reserved(picture, outputs.PNG, overwrite=overwrite, inputs=read):
        from avarc_cli.loading import load_model  # imports torch: only now, after all that may be wrong

        loaded = load_model(work.place(context, model).fetch(), words=words, progress=opt.captions_bar)
        opt.note_inferred(loaded)
        how = drawing.sampling(loaded, preset, painting)
        if is_picture:
            _draw_one(loaded, classes, out, count, how)
        else:
            _draw_many(loaded, classes, out, count, how, many, own, workers, overwrite=overwrite)


def _all_classes(context: typer.Context) -> list[str]:
    """What to draw where no classes are named. Raises: UsageError unless it is said how many pictures of each."""
    if not opt.is_given(context, "count"):
        why = "without CLASSES all of the model's are drawn, but only if --per-class says how many pictures of each"
        raise UsageError(
            "which classes are to be drawn?", why, "name classes, as in avarc sample 3 8, or add --per-class 50"
        )
    return ["all"]


def _check_place(context: typer.Context, out: Path, own: Shard, workers: Workers, *, overwrite: bool) -> None:
    """Raises: UsageError where a folder or an array of pictures cannot be written as the options say."""
    from avarc_cli.sampling.array import PictureArray, place_of
    from avarc_cli.work.workers import check_division

    check_division(own, workers, out=out, overwrite=overwrite)
    place = place_of(out)
    place.check()
    if isinstance(place, PictureArray):
        opt.check_not_given(context, {"flat"}, f"with '{out}'", "an array has no files")


def _draw_one(model: LoadedModel, classes: list[str], out: Path, count: int, how: Sampling) -> None:
    """One picture with a row a class; shows where it is."""
    from avarc_cli.results.picture import grid
    from avarc_cli.sampling import sample

    with console.progress("drawing", None, unit="class") as bar:
        drawn = sample(model, classes, count, how, progress=bar.update)
    grid(drawn.pictures, drawn.names, out)
    data = {"picture": out, "classes": drawn.names, "count": count, "seed": how.seed}
    console.result(data, console.path_and(out, _each(count, drawn.names)), brief=str(out))


def _draw_many(
    model: LoadedModel,
    classes: list[str],
    out: Path,
    count: int,
    how: Sampling,
    many: _ManyOptions,
    own: Shard,
    workers: Workers,
    *,
    overwrite: bool,
) -> None:
    """A folder or an array of pictures, or a part of it; shows what is done."""
    from avarc_cli.sampling.many import BATCH, sample_many

    with console.progress("drawing", None, unit="picture") as bar:
        done = sample_many(
            model,
            classes,
            out,
            count,
            how,
            flat=many.flat,
            batch_size=many.batch_size or BATCH,
            shard=own,
            workers=workers,
            overwrite=overwrite,
            progress=bar.update,
            say=console.warn,
        )
    _show_many(done, own, out, count, how.seed)


def _each(count: int, names: tuple[str, ...]) -> str:
    return f"{counted(count, 'picture')} of each of {counted(len(names), 'class')}"


def _show_many(done: Drawn, shard: Shard, out: Path, count: int, seed: int) -> None:
    if done.complete:
        said = "was complete already" if done.already_done else _each(count, done.names)
    else:
        said = _shards.said(done, shard, does="draw", last="completes them")
    name = "array" if out.is_file() or out.suffix.lower() == ".npz" else "folder"
    data = {name: out, "classes": done.names, "count": count, "seed": seed, "whole": done.complete}
    console.result(data, console.path_and(out, said), brief=str(out))
