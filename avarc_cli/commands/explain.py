"""avarc explain: which parts of an image speak for which class."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _summary, _weights
from avarc_cli.errors import EXIT_UNREADABLE, CacheError

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.explain.choose import Verdict
    from avarc_cli.explain.explanation import Explanation
    from avarc_cli.explain.maps import Weighting
    from avarc_cli.tokens.cache import TokenCache


def explain(
    data: Annotated[list[Path], typer.Argument(help="A token cache, a folder of images, image files, or a list.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="What to write: a picture (.png, .svg), or a page with values (.html).")
    ] = Path("explanation.png"),
    npz: Annotated[Path | None, typer.Option("--npz", help="Write the raw arrays there, too.")] = None,
    model: opt.ModelOpt = "digits",
    tokenizer: opt.TokenizerOpt = None,
    subject: Annotated[
        str, typer.Option("--class", help="The class to explain: prediction, label, or a class's name.")
    ] = "prediction",
    rival: Annotated[
        str, typer.Option("--vs", help="The class to compare it with: rival (the strongest other), label, or a name.")
    ] = "rival",
    weights: Annotated[
        str,
        typer.Option("--weights", help="paper: every token counts once; uniform: once for every cell that it covers."),
    ] = "paper",
    scales: Annotated[str | None, typer.Option("--scales", help="Only these scales, counted from 1: 4-10.")] = None,
    upsample: Annotated[
        str,
        typer.Option("--upsample", help="area: exact sums; nearest: cell by cell as in the paper's pictures."),
    ] = "area",
    rows: Annotated[str | None, typer.Option("--rows", help="Only these rows, counted from 0: 3,10-12.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="Only images that are wrong, right or unsure.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="So many images, the most surprising first. Default: what is legible.")
    ] = None,
    plan: Annotated[str, typer.Option("--plan", help="How to find the prediction and the rival (avarc classify).")] = (
        "exhaustive"
    ),
    classes: Annotated[
        str | None, typer.Option("--classes", help="Candidates: a file, a known subset, or a list like 0,5,7.")
    ] = None,
    class_names: opt.ClassNamesOpt = None,
    bank: opt.BankOpt = None,
    lora: opt.LoraOpt = None,
    offset: opt.OffsetsOpt = True,
    precision: opt.PrecisionOpt = "fp32",
    device: opt.DeviceOpt = "auto",
    yes: _weights.YesOpt = False,
    batch_size: opt.BatchSizeOpt = "auto",
    preprocess: opt.PreprocessOpt = None,
    workers: opt.WorkersOpt = None,
    as_json: opt.JsonOpt = False,
) -> None:
    """Show which parts of an image speak for a class, and which against it, in nats.

    Maps of log p(x|class) - log p(x), for the prediction and its strongest rival, and of one against the other.

    Example: avarc explain val.h5 --model var-d16 --only wrong --limit 12 --out wrong.html
    """
    from avarc_cli.classifier import load_classifier
    from avarc_cli.explain import choose, write
    from avarc_cli.explain.maps import Weighting, parse_scales
    from avarc_cli.loading import ModelSpec
    from avarc_cli.options import Options
    from avarc_cli.tokens.cache import read

    write.check_out(out, npz)
    choose.check_only(only)
    write.how_many(out, limit, None)  # a wrong limit is told before images are encoded and scored
    weighting = Weighting(weights=weights, scales=parse_scales(scales), upsample=upsample)
    _summary.check_request(data, None, False, images_only=[preprocess, workers])
    _weights.ensure(model, tokenizer, yes=yes)
    images = None if _summary.is_cache(data) else opt.select_images(data, None, None, None)
    spec = ModelSpec(
        model, tokenizer, class_names=class_names, precision=precision, device=device, bank=bank, lora=lora
    )
    dataset = images.dataset if images else read(data[0]).header.dataset
    options = Options(plan=plan, classes=classes, dataset=dataset, batch_size=batch_size, offsets=offset)
    classifier = load_classifier(spec, options)
    comparison = choose.parse_comparison(subject, rival, classifier.model.classes)
    weighting.of_scales(classifier.model.tokenizer.patch_nums)  # wrong scales are told before images are scored
    with tempfile.TemporaryDirectory() as scratch:
        unreadable: list[tuple[str, str]] = []
        if images:
            with console.progress("encoding", len(images)) as bar:
                encoded = classifier.encode(
                    images, Path(scratch) / "t.h5", preprocess=preprocess, workers=workers, progress=bar.update
                )
            unreadable = encoded.unreadable
        cache = read(Path(scratch) / "t.h5" if images else data[0])
        if not len(cache):
            raise CacheError(f"'{data[0]}' holds no images", "there is nothing to explain")
        chosen = choose.parse_rows(rows, len(cache)) if rows is not None else list(range(len(cache)))
        listed = rows is not None or (images is not None and len(images) == len(data))
        count = write.how_many(out, limit, len(chosen) if listed else None)
        every = _verdicts(classifier, cache, chosen)
        picked = choose.select(every, only, count, sort=not listed)
        made = _explain(classifier, cache, picked, comparison, images)
        opt.list_unreadable(unreadable)
    about = _about(len(picked), len(every), only, classifier, weighting)
    write.write(made, weighting, out, title=f"Why? {', '.join(str(d) for d in data[:3])}", about=about)
    if npz:
        write.write_arrays(made, weighting, npz)
    _show(made, weighting, unreadable, out, npz, about)
    if unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def _verdicts(classifier: Classifier, cache: TokenCache, rows: list[int]) -> list[Verdict]:
    """What the model says about these rows."""
    from avarc_cli.explain.choose import take, verdicts
    from avarc_cli.results.run import classify

    run = classifier.run(take(cache, rows), classifier.request(cache.header.samples))
    with console.progress("classifying", len(rows)) as bar:
        result = classify(
            run,
            None,
            keep_scores=True,
            progress=lambda done, numbers: bar.update(done, note=_summary.running(numbers)),
            say=console.warn,
        )
    return verdicts(result.scores, run.naming, rows)


def _explain(
    classifier: Classifier, cache: TokenCache, picked: list[Verdict], comparison: Any, images: Any
) -> list[Explanation]:
    from avarc_cli.data.preprocess import Preprocess
    from avarc_cli.explain import explain as library

    model = classifier.model
    if images is None:
        pixels = library.pixels_of_cache(cache, model.tokenizer)
    else:
        mode = cache.header.preprocess.partition(" ")[0]
        pixels = library.pixels_of_images(images, cache, Preprocess(mode, cache.header.image_size))
    made: list[Explanation] = []
    tokens_per_batch = classifier.request(cache.header.samples).tokens_per_batch
    with console.progress("explaining", len(picked)) as bar:
        for explanation in library.explain(
            model.likelihood,
            model.classes,
            cache,
            picked,
            comparison,
            pixels=pixels,
            tokens_per_batch=tokens_per_batch,
        ):
            made.append(explanation)
            bar.update(len(made))
    return made


def _about(shown: int, of: int, only: str | None, classifier: Classifier, weighting: Weighting) -> str:
    what = f"{shown} of {of} images" + (f", {only} ones only" if only else "")
    scales = "" if weighting.scales is None else f", scales {weighting.scales[0]} to {weighting.scales[1]}"
    return f"{what}; model {classifier.model.name}; {weighting.weights} weights{scales}"


def _show(
    made: Sequence[Explanation],
    weighting: Weighting,
    unreadable: list[tuple[str, str]],
    out: Path,
    npz: Path | None,
    about: str,
) -> None:
    from avarc_cli.explain.explanation import signed

    rows, listed = [], []
    for e in made:
        panels = e.panels(weighting)
        compared = [{"maps": p.title, "log_likelihood_ratio": p.difference, "map_sum": p.total} for p in panels]
        listed.append(
            {
                "row": e.index,
                "path": e.path,
                "prediction": e.names[0],
                "posterior": e.posterior[0],
                "label": e.label_name or None,
                "surprise": e.surprise,
                "comparisons": compared,
            }
        )
        sums = [f"{p.title}: {signed(p.difference)}" for p in panels]
        rows.append([e.path, e.names[0], e.label_name or "unknown", "; ".join(sums)])
    data = {"out": out, "npz": npz, "explained": listed, "unreadable": dict(unreadable)}
    table = console.table("", ["image", "prediction", "label", "log-likelihood ratios (nats)"], rows)
    files = f"{out}" + (f" and {npz}" if npz else "")
    console.result(data, console.stack(table, f"{files}: {about}"), brief=str(out))
