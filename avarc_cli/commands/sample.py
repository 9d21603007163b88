"""avarc sample: pictures of classes, drawn by the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _shards
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.settings import check_sampling
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.sample_folder import Drawn
    from avarc_cli.work.shards import Shard

OF_A_FOLDER = {"batch_size", "shard", "devices", "engine"}


@with_option_groups
def sample(
    context: typer.Context,
    classes: Annotated[
        list[str],
        typer.Argument(
            help="Classes by name, id or number; or a known subset, or a file. Of a model of captions: captions, or "
            "names out of --captions.",
            autocompletion=complete.classes,
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="FILE.png: one picture, a row a class. Without a suffix: a folder of pictures."
        ),
    ],
    count: Annotated[int, typer.Option("--count", "--per-class", "-n", min=1, help="Pictures of each class.")] = 8,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            help="Strength of classifier-free guidance; 0 draws from p(x | class). Default: the model's own.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Draw only from the N likeliest codes; 0 for all.")] = 0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Draw only from the likeliest codes with this probability; 0 for all.")
    ] = 0.0,
    seed: opt.SeedOpt = 0,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Pictures of a folder that are drawn at once. Default: 8.")
    ] = None,
    overwrite: opt.OverwriteOpt = False,
    work: groups.WorkOptions,
    as_json: opt.JsonOpt = False,
    model: groups.ModelOptions,
) -> None:
    """Draw pictures of classes, as the model imagines them.

    A folder gets many: CLASS/000.png and so on. If it is interrupted or killed, run it again to continue; the pictures
    are the same, also when several processes each do a --shard of them, or several --devices share them.

    Example: avarc sample 3 8 --count 8 --out digits.png
    """
    from avarc_cli import outputs
    from avarc_cli.data.labels import resolve_classes
    from avarc_cli.pictures import PictureFolder
    from avarc_cli.work.workers import check_division

    check_sampling(guidance, top_k, top_p)
    own, workers = work.own_shard, work.workers
    is_folder = out.suffix.lower() != ".png" and (not out.suffix or out.is_dir())
    if is_folder:
        check_division(own, workers, out=out, overwrite=overwrite)
        PictureFolder.at(out).check()
    else:
        opt.check_not_given(context, OF_A_FOLDER, f"with '{out}'", "one picture is drawn by one process")
    model = model.saying(classes, model.model)
    if (space := model.known_classes()) is not None:
        for wanted in classes:
            resolve_classes(wanted, space)
    with outputs.reserved(None if is_folder else out, outputs.PNG, overwrite=overwrite):
        from avarc_cli import sampling  # imports torch: only now, after all that may be wrong
        from avarc_cli.loading import load_model

        how = sampling.Sampling(guidance=guidance, top_k=top_k, top_p=top_p, seed=seed)
        loaded = load_model(work.place(context, model).fetch(), words=classes, progress=opt.captions_bar)
        opt.note_inferred(loaded)
        if is_folder:
            from avarc_cli.sample_folder import BATCH, sample_folder

            with console.progress("drawing", None, unit="picture") as bar:
                done = sample_folder(
                    loaded,
                    classes,
                    out,
                    count,
                    how,
                    batch_size=batch_size or BATCH,
                    shard=own,
                    workers=workers,
                    overwrite=overwrite,
                    progress=bar.update,
                    say=console.warn,
                )
            _show_folder(done, own, out, count, seed)
            return
        from avarc_cli.results.picture import grid

        with console.progress("drawing", None, unit="class") as bar:
            drawn = sampling.sample(loaded, classes, count, how, progress=bar.update)
        grid(drawn.pictures, drawn.names, out)
        shown = console.path_and(out, _each(count, drawn.names))
        console.result({"picture": out, "classes": drawn.names, "count": count, "seed": seed}, shown, brief=str(out))


def _each(count: int, names: tuple[str, ...]) -> str:
    return f"{counted(count, 'picture')} of each of {counted(len(names), 'class')}"


def _show_folder(done: Drawn, shard: Shard, out: Path, count: int, seed: int) -> None:
    if done.complete:
        said = "was complete already" if done.already_done else _each(count, done.names)
    else:
        said = _shards.said(done, shard, does="draw", last="completes the folder")
    data = {"folder": out, "classes": done.names, "count": count, "seed": seed, "whole": done.complete}
    console.result(data, console.path_and(out, said), brief=str(out))
