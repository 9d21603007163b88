"""avarc demo: the whole way from images to classes, on digits that the embedded model has never seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _summary

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.results.run import RunResult
    from avarc_cli.tokens.cache import TokenCache

PLANS = {"exhaustive": "exhaustive", "staged": "3:3,4:2,5:1", "paper-style": "3:3,5:2,5:1:3", "adaptive": "auto"}
SAMPLES = 3
SHOWN = 8  # digits in the picture: the least certain ones, which say most


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tokens, runs and the picture.")] = Path(
        "avarc-demo"
    ),
    as_json: opt.JsonOpt = False,
) -> None:
    """Classify 360 held-out handwritten digits with the embedded model: accuracy, speed, and what plans save.

    Example: avarc demo
    """
    from avarc_cli import tokens
    from avarc_cli.classifier import load_classifier
    from avarc_cli.data.datasets import open_images
    from avarc_cli.data.preprocess import Preprocess
    from avarc_cli.options import Options
    from avarc_cli.zoo.local_files import ASSETS

    images = open_images([ASSETS / "digits" / "test"])
    out.mkdir(parents=True, exist_ok=True)
    classifiers = {name: load_classifier("digits", Options(plan=plan)) for name, plan in PLANS.items()}
    tokenizer = classifiers["exhaustive"].model.tokenizer
    pixels = Preprocess(tokenizer.preprocess, tokenizer.image_size)
    with console.progress("encoding", len(images)) as bar:
        tokens.encode(images, tokenizer, pixels, out / "tokens.h5", samples=SAMPLES, progress=bar.update)
    cache = tokens.read(out / "tokens.h5")
    runs = {name: _run(name, classifier, cache, out / name) for name, classifier in classifiers.items()}
    picture = out / "digits.png"
    _draw(classifiers["exhaustive"], cache, runs["exhaustive"], images.paths, picture)
    _show(runs, _unseen(classifiers["adaptive"], runs), picture)


def _run(name: str, classifier: Classifier, cache: TokenCache, folder: Path) -> RunResult:
    with console.progress(f"{name} ({classifier.plan(SAMPLES)})", len(cache)) as bar:
        return classifier.classify_cache(
            cache, folder, progress=lambda done, numbers: bar.update(done, note=_summary.running(numbers))
        )


def _draw(classifier: Classifier, cache: TokenCache, result: RunResult, paths: tuple[Path, ...], picture: Path) -> None:
    from avarc_cli.data.preprocess import Preprocess
    from avarc_cli.results.picture import contact_sheet

    unsure = sorted(sorted(result.records, key=lambda r: r["posterior"])[:SHOWN], key=lambda r: r["index"])
    chosen = [paths[r["index"]] for r in unsure]
    predictions = classifier.classify_all(chosen)
    pixels = [Preprocess("fit", 32)(path) for path in chosen]
    contact_sheet(pixels, [p.top(3) for p in predictions], [r["label_id"] for r in unsure], picture)


def _unseen(adaptive: Classifier, runs: dict[str, RunResult]) -> dict[str, Any]:
    """How the adaptive plan does on the images that it was not tuned on."""
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


def _show(runs: dict[str, RunResult], unseen: dict[str, Any], picture: Path) -> None:
    first = runs["exhaustive"]
    rows: list[list[Any]] = []
    data: dict[str, Any] = {"picture": picture, "plans": {}, "adaptive_on_unseen": unseen}
    for name, result in runs.items():
        m = result.metrics
        same = sum(a["prediction"] == b["prediction"] for a, b in zip(result.records, first.records, strict=True))
        share = m["tokens_scored_per_image"] / first.metrics["tokens_scored_per_image"]
        agreement, rate = same / len(result.records), 1 / m["seconds_per_image"]
        data["plans"][name] = {
            "plan": PLANS[name],
            "accuracy": m["accuracy"],
            "accuracy_95": m["accuracy_95"],
            "images_per_second": rate,
            "tokens_scored_per_image": m["tokens_scored_per_image"],
            "agreement_with_exhaustive": agreement,
        }
        rows.append(
            [
                f"{name} ({PLANS[name]})" if PLANS[name] != name else name,
                f"{m['accuracy']:.2%}",
                f"{m['accuracy_95'][0]:.1%} to {m['accuracy_95'][1]:.1%}",
                f"{rate:.1f}",
                f"{m['tokens_scored_per_image']:,.0f} ({share:.0%})",
                f"{agreement:.1%}",
            ]
        )
    columns = ["plan", "accuracy", "95 % interval", "images/s", "tokens scored an image", "agreement"]
    title = f"{len(first.records)} held-out digits, 10 classes, model 'digits'"
    note = (
        f"adaptive: tuned on {len(first.records) - unseen['images']} of these images for an agreement of at least "
        f"{unseen['promised']:.1%}; on the other {unseen['images']} it is {unseen['agreement']:.1%}, with "
        f"{unseen['share_of_exhaustive']:.0%} of the tokens."
    )
    sheet = f"{picture}: the {SHOWN} least certain digits"
    console.result(data, console.stack(console.table(title, columns, rows), note, sheet))
