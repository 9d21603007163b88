"""avarc classify: the class under which each image is most likely."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _summary, _weights
from avarc_cli.errors import EXIT_UNREADABLE, CacheError

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.results.folder import RunFolder
    from avarc_cli.results.run import RunResult
    from avarc_cli.tokens.cache import TokenCache
    from avarc_cli.tokens.encode import EncodeResult


def classify(
    context: typer.Context,
    data: Annotated[list[Path], typer.Argument(help="A token cache, a folder of images, image files, or a list.")],
    model: opt.ModelOpt = "digits",
    tokenizer: opt.TokenizerOpt = None,
    plan: Annotated[
        str,
        typer.Option(
            "--plan",
            help="exhaustive, paper, segments:keep[:samples] per stage (6:10,10:3,10:1:3), FILE.json of avarc tune, or "
            "auto for the tuned plan that comes with the model.",
        ),
    ] = "exhaustive",
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="Candidates: all, a file, a known subset, or a list like 0,5,7. Default: those of the dataset.",
        ),
    ] = None,
    class_names: opt.ClassNamesOpt = None,
    priors: Annotated[
        str | None, typer.Option("--priors", help="File of class<TAB>weight lines; default: all classes equal.")
    ] = None,
    score: Annotated[
        str, typer.Option("--score", help="log-likelihood: log p(x|y); pmi: log p(x|y) - log p(x).")
    ] = "log-likelihood",
    bank: opt.BankOpt = None,
    lora: opt.LoraOpt = None,
    offset: opt.OffsetsOpt = True,
    precision: opt.PrecisionOpt = "fp32",
    kernels: opt.KernelsOpt = "auto",
    memory: opt.MemoryOpt = None,
    device: opt.DeviceOpt = "auto",
    yes: _weights.YesOpt = False,
    batch_size: opt.BatchSizeOpt = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Fixed batch shapes: reruns agree bit for bit.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder for predictions and metrics; resumes what is there.")
    ] = None,
    save_json: Annotated[bool, typer.Option("--save-json", help="Write each image's stages to OUT/json/.")] = False,
    save_likelihood: Annotated[
        bool, typer.Option("--save-likelihood", help="Write each image's token log-probabilities to OUT/likelihood/.")
    ] = False,
    preprocess: opt.PreprocessOpt = None,
    sigma: opt.SigmaOpt = 0.1,
    seed: opt.SeedOpt = 0,
    dataset: opt.DatasetOpt = None,
    subset: opt.SubsetOpt = None,
    per_class: opt.PerClassOpt = None,
    limit: opt.LimitOpt = None,
    workers: opt.WorkersOpt = None,
    as_json: opt.JsonOpt = False,
) -> None:
    """Classify images by the class under which a generator finds them most likely.

    Images are encoded first (into OUT/tokens.h5, if there is an OUT); a token cache is scored as it is.

    Example: avarc classify val.h5 --model var-d16 --plan paper --classes imagenet100 --out runs/val
    """
    from avarc_cli.classifier import load_classifier
    from avarc_cli.results.folder import RunFolder
    from avarc_cli.tokens.cache import read

    images_only = [dataset, subset, per_class, preprocess]
    _summary.check_request(data, out, save_json or save_likelihood, images_only=images_only)
    if _summary.is_cache(data):
        opt.check_not_given(context, {"sigma", "seed", "workers"}, f"with '{data[0]}'", "it is encoded already")
    _weights.ensure(model, tokenizer, yes=yes)
    images = None if _summary.is_cache(data) else opt.select_images(data, subset, per_class, limit, dataset)
    classifier = load_classifier(
        model,
        tokenizer,
        class_names=class_names,
        precision=precision,
        kernels=kernels,
        memory=memory,
        device=device,
        plan=plan,
        classes=classes,
        dataset=images.dataset if images else read(data[0]).header.dataset,
        priors=priors,
        score=score,
        batch_size=batch_size,
        deterministic=deterministic,
        bank=bank,
        lora=lora,
        offsets=offset,
    )
    wanted = classifier.plan(keep_tokens=save_likelihood)  # a wrong plan is told before images are encoded
    folder = RunFolder(out) if out else None
    if folder:
        folder.prepare()
        _summary.check_same_plan(folder, str(wanted))
    with tempfile.TemporaryDirectory() as scratch:
        unreadable: list[tuple[str, str]] = []
        cache_path = data[0]
        if images:
            options = {"preprocess": preprocess, "sigma": sigma, "seed": seed, "workers": workers}
            encoded = _encode(classifier, images, out or Path(scratch), options)
            cache_path, unreadable = encoded.path, encoded.unreadable
        cache = read(cache_path).first(limit)
        result = _score(classifier, cache, folder, save_json, save_likelihood)
        opt.list_unreadable(unreadable)
        _summary.show(cache, result, unreadable, out)
    if unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def _encode(classifier: Classifier, images: ImageSet, folder: Path, options: dict[str, Any]) -> EncodeResult:
    """The images as FOLDER/tokens.h5. Raises CacheError where that was made by another request."""
    with console.progress("encoding", len(images)) as bar:
        try:
            return classifier.encode(images, folder / "tokens.h5", progress=bar.update, **options)
        except CacheError as error:
            raise CacheError(error.what, error.why, "name another --out") from None


def _score(
    classifier: Classifier, cache: TokenCache, folder: RunFolder | None, save_json: bool, save_likelihood: bool
) -> RunResult:
    from avarc_cli.results.run import classify as run_classify

    earlier = folder.recorded("tokens_per_batch") if folder else None
    request = classifier.request(cache.header.samples, keep_tokens=save_likelihood, tokens_per_batch=earlier)
    run = classifier.run(cache, request, save_json=save_json, save_likelihood=save_likelihood)
    _summary.announce(classifier, run)
    with console.progress("classifying", len(cache)) as bar:
        return run_classify(
            run,
            folder,
            progress=lambda done, numbers: bar.update(done, note=_summary.running(numbers)),
            say=console.warn,
        )
