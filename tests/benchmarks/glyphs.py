"""What classification costs for 10, 100 and 1,000 classes, with a VAR that is trained on images of characters.

    make glyphs                                                  # all that follows, and the training
    python tests/benchmarks/glyphs.py render build/glyphs        # images; names the packages of fonts that are missing
    python tests/benchmarks/glyphs.py measure build/glyphs --out docs/classes.png

    python tests/benchmarks/glyphs.py closest build/glyphs       # the search that `add-class` begins with

The first writes build/glyphs/train and build/glyphs/test (`glyph_images`). The second scores test images under all
classes with build/glyphs/vqvae.safetensors and var.safetensors, keeps the sums of log p in build/glyphs/scores.npz, and
computes from them what plans do. Fewer candidates are a part of the classes: those are divided at random in groups of
10 or 100, and the candidates of an image are the group of its class. Tuned plans are tuned on three quarters of the
images and measured on the rest, for ten random splits. Times are of the engine, on a few images.

Shapes: n images, N candidates, K segments.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import glyph_images
import numpy as np
import torch
from figure_tables import Cell, Table, say, show
from matplotlib.figure import Figure

from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import AvarcError
from avarc_cli.explain.palette import LINES
from avarc_cli.incremental.closest import IMAGES, closest_classes
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.scoring import conformal
from avarc_cli.scoring.batching import auto_tokens, cached_tokens_per_batch
from avarc_cli.scoring.conformal import FIRST_CUT, ScoreTable
from avarc_cli.scoring.drawn import LEAST_CLASSES, fit_first_cut, summaries
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.exhaustive import log_likelihoods
from avarc_cli.scoring.first_cut import FirstCut
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import FloatN, ImageScores, IntN, score_function
from avarc_cli.tokens import encode, read

CANDIDATES = (10, 100, 1000)
AGREEMENT = Fraction(99, 100)
SPLITS = 10  # in images to tune on and images to measure on, at random
MEASURED = 0.25  # of the images
TIMED = 4  # images
EXHAUSTIVE, FIXED, TUNED, WITHOUT = "exhaustive", "fixed number of survivors", "tuned", "tuned without a first cut"
VERSIONS = 2  # of each training image


@dataclass(frozen=True, eq=False)
class Scored:
    """Test images with their exhaustive scores."""

    tokens_nL: IntN
    label_n: IntN
    sums_nNK: FloatN  # of log p over each segment
    first_cut: FirstCut | None  # over all classes; None if they are few
    cut_nN: FloatN  # its scores
    ends: tuple[int, ...]  # of the segments

    def among(self, candidates: int) -> tuple[ScoreTable, IntN]:
        """The scores under the groups of this many classes, and the position of each image's class in its group."""
        columns_nN = groups(self.sums_nNK.shape[1], candidates)[self.label_n]
        sums_nNK = np.take_along_axis(self.sums_nNK, columns_nN[..., None], 1)
        table = ScoreTable.of(sums_nNK[:, :, None, None], np.zeros(candidates), self.ends)
        if self.first_cut is not None and candidates >= LEAST_CLASSES:
            table = table.with_first_cut(np.take_along_axis(self.cut_nN, columns_nN, 1))
        return table, (columns_nN == self.label_n[:, None]).argmax(1)


class Outcome(NamedTuple):
    """What a plan does to images, on average."""

    accuracy: float
    agreement: float  # with exhaustive scoring
    tokens: float
    share: float  # of the tokens of exhaustive scoring


class Measured(NamedTuple):
    """What a plan does with this many candidates."""

    candidates: int
    kind: str
    plan: str
    outcome: Outcome
    seconds: float  # of CPU time for an image


DRAWN: tuple[tuple[str, Callable[[Measured], float]], ...] = (  # what the figure shows
    ("tokens per image", lambda row: row.outcome.tokens),
    ("CPU seconds per image", lambda row: row.seconds),
)


def groups(classes: int, size: int) -> IntN:
    """The classes of each class's group (classes, size), its own included: disjoint random groups."""
    order = np.random.default_rng(0).permutation(classes)
    place = np.argsort(order) // size
    return np.stack([order[p * size : (p + 1) * size] for p in place])


def render(folder: Path, classes: int) -> None:
    """Write the images of both parts. Raises: UsageError if fonts are missing."""
    characters = glyph_images.choose(classes)
    training, test = glyph_images.find(glyph_images.TRAINING), glyph_images.find(glyph_images.TEST)
    made = glyph_images.write_images(folder / "train", characters, training, VERSIONS)
    held_out = glyph_images.write_images(folder / "test", characters, test, 1)
    print(f"{folder}: {made} training images, {held_out} test images of {len(characters)} characters")


def scored(folder: Path, model: LikelihoodModel, tokens_nL: IntN, label_n: IntN) -> Scored:
    """The exhaustive scores of these images; those that an earlier call computed are not computed again."""
    file, ends = folder / "scores.npz", model.segment_ends
    sums = np.empty((0, model.num_classes, len(ends)))
    if file.exists():
        earlier = np.load(file)
        count = min(len(earlier["sums"]), len(tokens_nL))
        if np.array_equal(earlier["tokens"][:count], tokens_nL[:count]):
            sums = earlier["sums"][:count]
    plan = parse_plan("exhaustive", segments=len(ends), candidates=model.num_classes, samples=1)
    started = time.monotonic()
    for row in range(len(sums), len(tokens_nL)):
        columns_N = np.arange(model.num_classes)
        image = score(model, tokens_nL[row], columns_N, plan, keep_segments=True)
        assert image.segment_log_prob is not None
        sums = np.concatenate([sums, image.segment_log_prob[None, :, 0, 0]])
        if (row + 1) % 10 == 0 or row + 1 == len(tokens_nL):
            np.savez(file, sums=sums, tokens=tokens_nL[: row + 1])
            say(f"{row + 1} of {len(tokens_nL)} images scored, {time.monotonic() - started:.0f} s")
    first_cut = fitted_cut(folder / "first_cut.json", model)
    cut_nN = np.empty(0) if first_cut is None else first_cut.scores(summaries(model, tokens_nL))
    return Scored(tokens_nL, label_n, sums, first_cut, cut_nN, ends)


def fitted_cut(file: Path, model: LikelihoodModel) -> FirstCut | None:
    """The first cut over all classes, which an earlier call may have fitted; None if they are few."""
    if not file.exists():
        started = time.process_time()
        fitted = fit_first_cut(model, np.arange(model.num_classes), seed=0, device=torch.device("cpu"))
        if fitted is None:
            return None
        file.write_text(json.dumps(fitted.to_dict()))
        say(f"a first cut was fitted in {time.process_time() - started:.0f} s of CPU time")
    return FirstCut.from_dict(json.loads(file.read_text()))


def score(
    model: LikelihoodModel,
    tokens_L: IntN,
    candidates_N: IntN,
    plan: Plan,
    *,
    first_cut: FirstCut | None = None,
    keep_segments: bool = False,
) -> ImageScores:
    """One image by one plan."""
    request = ScoringRequest(
        candidates=candidates_N,
        plan=plan,
        score=score_function("log-likelihood"),
        log_prior=np.zeros(len(candidates_N)),
        tokens_per_batch=auto_tokens(model, plan, torch.device("cpu"), fixed=True),
        cached_tokens_per_batch=cached_tokens_per_batch(model, torch.device("cpu")),
        first_cut=first_cut,
        keep_segments=keep_segments,
    )
    [image] = score_group(model, tokens_L[None, None], request)
    return image


def cpu_seconds(model: LikelihoodModel, images: Scored, candidates: int, plan: Plan) -> float:
    """CPU time of one image, all threads together, on average."""
    columns_nN = groups(images.sums_nNK.shape[1], candidates)[images.label_n]
    count = min(TIMED * max(1, 1000 // candidates // 10), len(images.tokens_nL))
    started = time.process_time()
    for row in range(count):
        cut = images.first_cut and FirstCut(images.first_cut.direction_DR, images.first_cut.mean_NR[columns_nN[row]])
        score(model, images.tokens_nL[row], columns_nN[row], plan, first_cut=cut)
    return (time.process_time() - started) / count


def measure(model: LikelihoodModel, images: Scored, candidates: int) -> list[Measured]:
    """What exhaustive scoring, a fixed number of survivors, and tuned margins do."""
    table, right_n = images.among(candidates)
    segments = len(images.ends)
    keep = min(10, candidates // 3)
    texts = {EXHAUSTIVE: "exhaustive", FIXED: f"{segments // 2}:{keep},{segments}:1"}
    rows = []
    for kind, text in texts.items():
        plan = parse_plan(text, segments=segments, candidates=candidates, samples=1)
        seconds = cpu_seconds(model, images, candidates, plan)
        rows.append(Measured(candidates, kind, str(plan), outcome_of(plan, table, right_n), seconds))
    rows.append(tuned_row(model, images, table, right_n, TUNED))
    if FIRST_CUT in table.at:
        without = replace(table, at={point: scores for point, scores in table.at.items() if point != FIRST_CUT})
        rows.append(tuned_row(model, images, without, right_n, WITHOUT))
    return rows


def tuned_row(model: LikelihoodModel, images: Scored, table: ScoreTable, right_n: IntN, kind: str) -> Measured:
    """What plans do that are tuned on a part of the images and measured on the others, on average over the splits."""
    splits = []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(table))
        count = round(MEASURED * len(table))
        calibration, rest = np.sort(order[count:]), np.sort(order[:count])
        plan = conformal.tune(table.rows(calibration), AGREEMENT, "fp32", seed=seed).plan
        splits.append((plan, outcome_of(plan, table.rows(rest), right_n[rest])))
    first, mean = splits[0][0], np.mean([numbers for _, numbers in splits], axis=0)
    say(f"{table.candidates} candidates, {kind}: {first}")
    say(f"  agreement of the splits: {sorted(round(float(numbers[1]), 4) for _, numbers in splits)}")
    seconds = cpu_seconds(model, images, table.candidates, first)
    return Measured(table.candidates, kind, kind, Outcome._make(mean.tolist()), seconds)


def outcome_of(plan: Plan, table: ScoreTable, right_n: IntN) -> Outcome:
    """What the plan does to the images of the table; `right_n` is the position of each image's class."""
    outcome = conformal.simulate(plan, table)
    same = outcome.winner_n == table.along([table.end])[0].argmax(1)
    tokens = float(outcome.tokens_n.mean())
    accuracy, agreement = float((outcome.winner_n == right_n).mean()), float(same.mean())
    return Outcome(accuracy, agreement, tokens, tokens / table.exhaustive_tokens)


def draw(rows: list[Measured], path: Path) -> None:
    """Tokens and seconds of an image against the number of candidates."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, (label, value) in zip(figure.subplots(1, 2), DRAWN, strict=True):
        for kind, color in zip((EXHAUSTIVE, FIXED, WITHOUT, TUNED), LINES, strict=False):
            chosen = [row for row in rows if row.kind == kind]
            points = [value(row) for row in chosen]
            axes.plot([row.candidates for row in chosen], points, marker="o", color=color, label=kind)
        axes.set(xscale="log", yscale="log", xlabel="candidate classes", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def table_of(measured: list[Measured]) -> Table:
    """One row each."""
    columns = [("candidates", ",d"), ("plan", ""), ("accuracy", ".1%"), ("agreement", ".1%")]
    columns += [("tokens per image", ",.0f"), ("of exhaustive", ".2%"), ("CPU seconds per image", ".3f")]
    names = [f"{row.kind}, `{row.plan}`" if row.kind == FIXED else row.kind for row in measured]
    rows: list[list[Cell]] = [
        [row.candidates, name, *row.outcome, row.seconds] for row, name in zip(measured, names, strict=True)
    ]
    return Table(columns, rows)


def compare(folder: Path, count: int, out: Path | None, *, as_json: bool = False) -> list[Measured]:
    """Score this many test images, measure all plans, show a table, and draw the figure if `out` is given."""
    model = load_model(ModelSpec(str(folder / "var.safetensors"), str(folder / "vqvae.safetensors"), device="cpu"))
    tokenizer = model.tokenizer
    pixels = Preprocess(tokenizer.preprocess, tokenizer.image_size)
    cache = read(encode(open_images([folder / "test"]), tokenizer, pixels, folder / "test.h5", overwrite=True).path)
    rows = np.random.default_rng(0).permutation(len(cache))[:count]
    images = scored(folder, model.likelihood, cache.tokens(rows)[:, 0], cache.labels[rows].astype(np.int64))
    sizes = sorted({min(size, model.likelihood.num_classes) for size in CANDIDATES})
    measured = [row for size in sizes for row in measure(model.likelihood, images, size)]
    show(table_of(measured), as_json=as_json)
    if out is not None:
        draw(measured, out)
    return measured


def search(folder: Path, count: int, *, as_json: bool) -> None:
    """Find the class closest to 32 images of each of some new characters, in both ways, and show what it takes."""
    model = load_model(ModelSpec(str(folder / "var.safetensors"), str(folder / "vqvae.safetensors"), device="cpu"))
    likelihood, tokenizer, device = model.likelihood, model.tokenizer, torch.device("cpu")
    pixels = Preprocess(tokenizer.preprocess, tokenizer.image_size)
    characters = glyph_images.choose(count, skip=likelihood.num_classes)
    glyph_images.write_images(folder / "new", characters, glyph_images.find(glyph_images.TRAINING), VERSIONS)
    rows: list[list[Cell]] = []
    for character in characters:
        images = open_images([folder / "new" / f"{ord(character):x}"])
        cache = read(encode(images, tokenizer, pixels, folder / "new.h5", overwrite=True).path)
        tokens_NL = torch.from_numpy(cache.tokens(range(IMAGES[-1]))[:, 0])
        classes = range(likelihood.num_classes)
        started = time.process_time()
        [found] = closest_classes(likelihood, tokens_NL, classes, 1, device=device)
        staged, started = time.process_time() - started, time.process_time()
        means_K = log_likelihoods(likelihood, tokens_NL, classes, device=device).mean(0)
        exhaustive = time.process_time() - started
        best = int(means_K.argmax())
        names = [chr(int(model.classes.names[c], 16)) for c in (found, best)]
        rows.append([character, names[0], staged, names[1], exhaustive])
        say(f"{character}: {names[0]}")
    columns = [("new character", ""), ("the search finds", ""), ("CPU seconds", ".1f")]
    show(Table([*columns, ("scoring all pairs finds", ""), ("CPU seconds", ".1f")], rows), as_json=as_json)


def main() -> None:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("render")
    first.add_argument("folder", type=Path)
    first.add_argument("--classes", type=int, default=1000)
    second = steps.add_parser("measure")
    second.add_argument("folder", type=Path)
    second.add_argument("--images", type=int, default=400)
    second.add_argument("--out", type=Path)
    third = steps.add_parser("closest")
    third.add_argument("folder", type=Path)
    third.add_argument("--new", type=int, default=3)
    for step in (second, third):
        step.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        if arguments.step == "render":
            render(arguments.folder, arguments.classes)
        elif arguments.step == "closest":
            search(arguments.folder, arguments.new, as_json=arguments.json)
        else:
            compare(arguments.folder, arguments.images, arguments.out, as_json=arguments.json)
    except AvarcError as error:
        raise SystemExit(f"{error.what}: {error.why}\n{error.fix}") from None


if __name__ == "__main__":
    main()
