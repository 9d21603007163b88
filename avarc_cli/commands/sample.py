"""avarc sample: what the model believes a class to look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights


def sample(
    classes: Annotated[list[str], typer.Argument(help="Classes by name, id or number; or a known subset, or a file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write (PNG): one row a class.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures of each class.")] = 8,
    guidance: Annotated[
        float, typer.Option("--guidance", help="Strength of classifier-free guidance; 0 draws from p(x | class).")
    ] = 1.5,
    top_k: Annotated[int, typer.Option("--top-k", help="Draw only from so many likeliest codes; 0 for all.")] = 0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Draw only from the likeliest codes with this probability; 0 for all.")
    ] = 0.0,
    seed: opt.SeedOpt = 0,
    model: opt.ModelOpt = "digits",
    tokenizer: opt.TokenizerOpt = None,
    class_names: opt.ClassNamesOpt = None,
    bank: opt.BankOpt = None,
    lora: opt.LoraOpt = None,
    precision: opt.PrecisionOpt = "fp32",
    device: opt.DeviceOpt = "auto",
    yes: _weights.YesOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Draw pictures of classes: what the model, or a class that was added to it, believes them to look like.

    Example: avarc sample 3 8 --count 8 --out digits.png
    """
    from avarc_cli import sampling
    from avarc_cli.data.labels import resolve_classes
    from avarc_cli.loading import load_model
    from avarc_cli.results.picture import grid

    opt.check_file(out, ".png")
    how = sampling.Sampling(guidance=guidance, top_k=top_k, top_p=top_p, seed=seed)
    _weights.ensure(model, tokenizer, yes=yes)
    loaded = load_model(
        model, tokenizer, class_names=class_names, precision=precision, device=device, bank=bank, lora=lora
    )
    ids = list(dict.fromkeys(i for spec in classes for i in resolve_classes(spec, loaded.classes)))
    names = [loaded.classes.names[i] for i in ids]
    with console.progress("drawing", len(ids), unit="classes") as bar:
        pictures = sampling.draw(loaded, ids, count, how, bar.update)
    grid(pictures, names, out)
    said = f"{out}: {count} pictures of each of {len(ids)} classes"
    console.result({"picture": out, "classes": names, "count": count, "seed": seed}, said, brief=str(out))
