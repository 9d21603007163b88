"""avarc demo: from images to predictions, on digits that the included model was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.errors import UsageError
from avarc_cli.words import listed

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.results.run import RunResult
    from avarc_cli.tokens.cache import TokenCache

PLANS = {  # of the models that can be shown: in scales of the VAR, rows of LlamaGens, passes of the MaskGIT
    "digits": {"staged": "3:3,4:2,5:1", "paper-style": "3:3,5:2,5:1:3"},
    "digits-llamagen": {"staged": "4:3,6:2,8:1", "paper-style": "4:3,8:2,8:1:3"},
    "digits-titok": {"staged": "3:3,6:2,8:1", "paper-style": "3:3,8:2,8:1:3"},
    "digits-captions": {"staged": "4:3,6:2,8:1", "paper-style": "4:3,8:2,8:1:3"},
}
CAPTIONS = {"digits-captions": "digits-captions/captions.json"}
"""Of models of captions, the candidates: a file in the assets."""
SAMPLES = 3
TOKENS = "tokens.h5"
SHOWN = 8  # digits in the picture, the least certain ones


def demo(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help=f"{listed(PLANS, 'or')}.", autocompletion=complete.one_of(*PLANS)),
    ] = "digits",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for tokens, runs and the picture. Default: avarc-demo[-MODEL]."),
    ] = None,
    as_json: opt.JsonOpt = False,
) -> None:
    """Classify 360 held-out digits with an included model.

    Shows the accuracy and the speed of four plans, and how many tokens they save.

    Example: avarc demo
    """
    plans = _plans(model)
    out = out or Path("avarc-demo" if model == "digits" else f"avarc-demo-{model}")
    _open_folder(out)
    from avarc_cli import tokens
    from avarc_cli.classifier import Classifier  # imports torch: only now, after all that may be wrong
    from avarc_cli.data.datasets import open_images
    from avarc_cli.data.preprocess import Preprocess
    from avarc_cli.loading import ModelSpec, load_model
    from avarc_cli.options import Options
    from avarc_cli.zoo.local_files import ASSETS

    images = open_images([ASSETS / "digits" / "test"])
    loaded = load_model(ModelSpec(model, captions=ASSETS / CAPTIONS[model] if model in CAPTIONS else None))
    classifiers = {name: Classifier(loaded, Options(plan=plan)) for name, plan in plans.items()}
    tokenizer = loaded.tokenizer
    pixels = Preprocess(tokenizer.preprocess, tokenizer.image_size)
    with console.progress("encoding", len(images)) as bar:
        tokens.encode(images, tokenizer, pixels, out / TOKENS, samples=SAMPLES, progress=bar.update)
    cache = tokens.read(out / TOKENS)
    runs = {name: _run(name, classifier, cache, out / name) for name, classifier in classifiers.items()}
    picture = out / "digits.png"
    _draw(classifiers["exhaustive"], runs["exhaustive"], images.paths, picture)
    candidates = f"10 captions like '{loaded.captions.captions.texts[0]}'" if loaded.captions else "10 classes"
    _show(plans, runs, _unseen(classifiers["adaptive"], runs), picture, candidates)


def _plans(model: str) -> dict[str, str]:
    """The plans that are compared, by name. Raises: UsageError for a model that is not included, or knows no digits."""
    if model not in PLANS:
        fix = "classify images of your own with it: avarc classify photos/ --model ..."
        raise UsageError(f"the demo cannot show '{model}'", f"it has images for {listed(PLANS)}", fix)
    return {"exhaustive": "exhaustive", **PLANS[model], "adaptive": "auto"}


def _open_folder(out: Path) -> None:
    """Make the demo's folder, or go on in the one of an earlier demo. Raises: UsageError for any other."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"cannot write to '{out}'", "it is not a folder", "name another with --out")
    out.mkdir(parents=True, exist_ok=True)
    if not any(out.glob(f"{TOKENS}*")) and any(out.iterdir()):
        raise UsageError(f"'{out}' is not empty, and not a demo's folder", fix="name another with --out")


def _run(name: str, classifier: Classifier, cache: TokenCache, folder: Path) -> RunResult:
    from avarc_cli.results.run import accuracy_note

    with console.progress(name, len(cache)) as bar:
        return classifier.classify_cache(
            cache, folder, progress=lambda done, numbers: bar.update(done, note=accuracy_note(numbers), numbers=numbers)
        )


def _draw(classifier: Classifier, result: RunResult, paths: tuple[Path, ...], picture: Path) -> None:
    from avarc_cli.data.preprocess import Preprocess
    from avarc_cli.results.picture import contact_sheet

    unsure = sorted(sorted(result.records, key=lambda r: r["posterior"])[:SHOWN], key=lambda r: r["index"])
    chosen = [paths[r["index"]] for r in unsure]
    predictions = classifier.classify_all(chosen)
    pixels = [Preprocess("fit", 32)(path) for path in chosen]
    contact_sheet(pixels, [p.top(3) for p in predictions], [r["label_id"] for r in unsure], picture)


def _unseen(adaptive: Classifier, runs: dict[str, RunResult]) -> dict[str, Any]:
    """Agreement and cost of the adaptive plan on the images that it was not tuned on."""
    assert adaptive.tuned is not None
    calibrated = set(adaptive.tuned.calibration["rows"])
    pairs = zip(runs["exhaustive"].records, runs["adaptive"].records, strict=True)
    unseen = [(a, b) for a, b in pairs if a["index"] not in calibrated]
    return {
        "images": len(unseen),
        "agreement": sum(a["prediction"] == b["prediction"] for a, b in unseen) / len(unseen),
        "share_of_exhaustive": sum(b["tokens_scored"] for _, b in unseen) / sum(a["tokens_scored"] for a, _ in unseen),
        "promised": adaptive.tuned.guarantee["agreement"],
    }


def _show(
    chosen: dict[str, str], runs: dict[str, RunResult], unseen: dict[str, Any], picture: Path, candidates: str
) -> None:
    exhaustive = runs["exhaustive"]
    plans = {name: _measured(chosen[name], result, exhaustive) for name, result in runs.items()}
    images, tokens = len(exhaustive.records), exhaustive.metrics["tokens_scored_per_image"]
    columns = ["plan", "accuracy (95 %)", "images/s", "tokens", "agreement"]
    table = console.table(
        f"{images} held-out digits, {candidates}, {tokens:,.0f} tokens to score per image",
        columns,
        [_row(name, measured, tokens) for name, measured in plans.items()],
    )
    note = (
        f"adaptive: tuned on {images - unseen['images']} of these images for an agreement of at least "
        f"{unseen['promised']:.1%}; on the other {unseen['images']} it is {unseen['agreement']:.1%}, with "
        f"{unseen['share_of_exhaustive']:.0%} of the tokens."
    )
    data = {"picture": picture, "plans": plans, "adaptive_on_unseen": unseen}
    console.result(data, console.stack(table, note, console.path_and(picture, f"the {SHOWN} least certain digits")))


def _measured(plan: str, result: RunResult, exhaustive: RunResult) -> dict[str, Any]:
    """What a plan achieved, and on how many images it agrees with exhaustive scoring."""
    metrics = result.metrics
    pairs = zip(result.records, exhaustive.records, strict=True)
    return {
        "plan": plan,
        "accuracy": metrics["accuracy"],
        "accuracy_95": metrics["accuracy_95"],
        "images_per_second": 1 / metrics["seconds_per_image"],
        "tokens_scored_per_image": metrics["tokens_scored_per_image"],
        "agreement_with_exhaustive": sum(a["prediction"] == b["prediction"] for a, b in pairs) / len(result.records),
    }


def _row(name: str, measured: dict[str, Any], exhaustive_tokens: float) -> list[str]:
    low, high = measured["accuracy_95"]
    return [
        name if measured["plan"] == name else f"{name} ({measured['plan']})",
        f"{measured['accuracy']:.2%} ({low:.1%}–{high:.1%})",
        f"{measured['images_per_second']:.1f}",
        f"{measured['tokens_scored_per_image'] / exhaustive_tokens:.0%}",
        f"{measured['agreement_with_exhaustive']:.1%}",
    ]
