"""avarc sample: pictures of classes, drawn by the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.settings import check_sampling
from avarc_cli.words import counted


@with_option_groups
def sample(
    classes: Annotated[list[str], typer.Argument(help="Classes by name, id or number; or a known subset, or a file.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write (PNG): one row a class.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures of each class.")] = 8,
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
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    model: groups.ModelOptions,
) -> None:
    """Draw pictures of classes, as the model imagines them.

    Example: avarc sample 3 8 --count 8 --out digits.png
    """
    from avarc_cli import outputs
    from avarc_cli.data.labels import resolve_classes

    check_sampling(guidance, top_k, top_p)
    if (space := model.known_classes()) is not None:
        for wanted in classes:
            resolve_classes(wanted, space)
    with outputs.reserved(out, outputs.PNG, overwrite=overwrite):
        from avarc_cli import sampling  # imports torch: only now, after all that may be wrong
        from avarc_cli.loading import load_model
        from avarc_cli.results.picture import grid

        how = sampling.Sampling(guidance=guidance, top_k=top_k, top_p=top_p, seed=seed)
        loaded = load_model(model.fetch())
        opt.note_inferred(loaded)
        with console.progress("drawing", None, unit="class") as bar:
            drawn = sampling.sample(loaded, classes, count, how, progress=bar.update)
        grid(drawn.pictures, drawn.names, out)
        shown = console.path_and(out, f"{counted(count, 'picture')} of each of {counted(len(drawn.names), 'class')}")
        console.result({"picture": out, "classes": drawn.names, "count": count, "seed": seed}, shown, brief=str(out))
