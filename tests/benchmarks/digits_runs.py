"""Tables of the included digits that whole commands give: accuracy, and tokens as a share of exhaustive scoring's.

    python tests/benchmarks/digits_runs.py models              # every included family, exhaustive and tuned
    python tests/benchmarks/digits_runs.py captions            # wordings that a model of captions has not learned
    python tests/benchmarks/digits_runs.py splits              # plans tuned on 250 images, on the other 110
    python tests/benchmarks/digits_runs.py incremental OUT     # classes added task by task; OUT continues
    python tests/benchmarks/digits_runs.py cca DIGITS OUT      # alignment, with three strengths

All have --json. DIGITS is written by `python -m avarc_cli.train.digits DIGITS`. Scores do not depend on time; trained
weights depend on the processor. Results: docs/orders.md, captions.md, plans.md, add-class.md and cca.md.

Shapes: n images, N candidates, S samples, K segments.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figure_tables import Cell, Table, say, show, shown, wants_json

from avarc_cli import ModelSpec, load_classifier, load_model
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring import conformal
from avarc_cli.scoring.conformal import ScoreTable
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function
from avarc_cli.tokens import read
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.zoo.local_files import ASSETS

TEST = ASSETS / "digits" / "test"
MODELS: tuple[tuple[str, list[str], list[str]], ...] = (  # and the options of exhaustive scoring, and of the tuned plan
    ("digits", [], ["--plan", "auto"]),
    ("digits-llamagen", [], ["--plan", "auto"]),
    ("digits-randar", ["--orders", "raster"], []),
    ("digits-randar", ["--orders", "20"], ["--plan", "auto"]),
)
WORDINGS = {
    "a handwritten three, ...": ["--captions", str(ASSETS / "digits-captions" / "captions.json")],
    "an image of the digit 3, ...; not seen in training": ["--template", "an image of the digit {}"],
    "a photo of a 3, ...; not seen in training": ["--template", "a photo of a {}"],
    "3 in pen, ...; not seen in training": ["--template", "{} in pen"],
}
SPLITS, HELD_OUT, AGREEMENT = 40, 110, Fraction(199, 200)
ALIGNMENTS = ((1, 1e-4, 120), (10, 3e-5, 120), (1000, 1e-4, 150))  # λ, learning rate, steps


def avarc(*words: str | Path) -> dict[str, Any]:
    """What a command prints with --json. Its messages go to stderr."""
    called = [sys.executable, "-m", "avarc_cli", *map(str, words), "--json"]
    printed = subprocess.run(called, stdout=subprocess.PIPE, check=True).stdout
    result: dict[str, Any] = json.loads(printed)
    return result


def classified(*words: str | Path) -> dict[str, Any]:
    """Metrics of the 360 test digits."""
    with tempfile.TemporaryDirectory() as out:
        metrics: dict[str, Any] = avarc("classify", TEST, *words, "--out", Path(out) / "run")["metrics"]
        return metrics


def models() -> list[Table]:
    """Accuracy and tokens of every family that is included."""
    rows: list[list[Cell]] = []
    for model, exhaustive, tuned in MODELS:
        whole = classified("--model", model, *exhaustive)
        row: list[Cell] = [" ".join([f"`{model}`", *exhaustive]), whole["tokens_scored_per_image"]]
        row += [whole["accuracy"], None, None]
        if tuned:
            fewer = classified("--model", model, *tuned)
            row[3:] = [fewer["tokens_scored_per_image"], fewer["accuracy"]]
        rows.append(row)
    columns = [("model", ""), ("tokens an image", ",.0f"), ("accuracy", ".2%")]
    return [Table([*columns, ("with its tuned plan: tokens", ",.0f"), ("accuracy", ".2%")], rows)]


def captions() -> list[Table]:
    """Accuracy of several wordings."""
    rows: list[list[Cell]] = []
    for name, words in WORDINGS.items():
        metrics = classified("--model", "digits-captions", *words)
        rows.append([name, metrics["accuracy"], f"{metrics['correct']} of {metrics['images']}"])
    return [Table([("captions", ""), ("accuracy", ".2%"), ("images", "")], rows)]


def splits() -> list[Table]:
    """The included plan on the images that it was tuned on and on the others, and plans of other random splits."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "digits.h5"
        avarc("encode", TEST, "--model", "digits", "--samples", "3", "--out", cache)
        model = load_model(ModelSpec("digits")).likelihood
        tables = {samples: score_table(model, read(cache), samples) for samples in (1, 3)}
    included = json.loads((ASSETS / "digits" / "plan.json").read_text())
    tuned_on = np.array(included["calibration"]["rows"])
    rows: list[list[Cell]] = []
    for name, chosen in {"calibration": tuned_on, "held out": np.setdiff1d(range(len(tables[1])), tuned_on)}.items():
        rows.append([f"{name}, {len(chosen)} images", *applied(included["plan"], tables[1].rows(chosen)), ""])
    for samples, table in tables.items():
        found = []
        for seed in range(1, SPLITS + 1):
            order = np.random.default_rng(seed).permutation(len(table))
            plan = conformal.tune(table.rows(np.sort(order[HELD_OUT:])), AGREEMENT, "fp32", seed=seed).plan
            found.append(applied(str(plan), table.rows(np.sort(order[:HELD_OUT]))))
        agreement, share = np.array(found).T
        name = f"held out in {SPLITS} other splits, mean" + (f"; {samples} samples" if samples > 1 else "")
        ends = " to ".join(shown(end, ".0%") for end in (share.min(), share.max()))
        rows.append([name, float(agreement.mean()), float(share.mean()), ends])
    columns = [("images", ""), ("agreement", ".1%"), ("tokens, of exhaustive", ".1%"), ("range", "")]
    return [Table(columns, rows)]


@torch.inference_mode()
def score_table(model: LikelihoodModel, cache: TokenCache, samples: int) -> ScoreTable:
    """Exhaustive scores of all images of a cache."""
    ends = model.segment_ends
    request = ScoringRequest(
        candidates=np.arange(model.num_classes),
        plan=parse_plan(f"exhaustive:{samples}", segments=len(ends), candidates=model.num_classes, samples=samples),
        score=score_function("log-likelihood"),
        log_prior=np.zeros(model.num_classes),
        tokens_per_batch=1 << 14,
        keep_segments=True,
    )
    scores = score_group(model, cache.tokens(range(len(cache)))[:, :samples], request)
    sums_nNOSK = np.stack([each.segment_log_prob for each in scores if each.segment_log_prob is not None])
    return ScoreTable.of(sums_nNOSK, request.log_prior, ends)


def applied(plan: str, table: ScoreTable) -> tuple[float, float]:
    """Agreement with exhaustive scoring, and tokens as a share of its."""
    parsed = parse_plan(plan, segments=len(table.segment_ends), candidates=table.candidates, samples=table.samples)
    simulated = conformal.simulate(parsed, table)
    same_n = simulated.winner_n == table.along([table.end])[0].argmax(1)
    return float(same_n.mean()), float(simulated.tokens_n.mean()) / table.exhaustive_tokens


def incremental(out: Path) -> list[Table]:
    """Accuracy on each task after each task, and what is forgotten."""
    options = "--base 0-4 --tasks 5-6,7-9 --baseline finetune --model digits-0-4".split()
    found = avarc("incremental", "digits", *options, "--out", out)
    tasks = ["0-4", "5-6", "7-9"]
    matrix = found["with_offset"]["matrix"]
    by_task = Table(
        [("after", ""), *((f"on {task}", ".2%") for task in tasks)],
        [[task, *row] for task, row in zip(tasks, matrix, strict=True)],
    )
    names = {"with_offset": "classes added (LoRA)", "without_offset": "the same without offsets"}
    names["finetune"] = "all weights fine-tuned on each task"
    measures = ("overall_accuracy", "average_accuracy", "forgetting", "backward_transfer")
    columns = [("", ""), ("all ten", ".2%"), ("average accuracy", ".2%"), ("forgetting", ".2%")]
    columns.append(("backward transfer", ".2%"))
    overall = Table(columns, [[name, *(found[key][each] for each in measures)] for key, name in names.items()])
    return [by_task, overall]


def cca(digits: Path, out: Path) -> list[Table]:
    """What condition contrastive alignment gains in accuracy, and moves log p by."""
    out.mkdir(parents=True, exist_ok=True)
    before_nN, label_n = log_p(ModelSpec("digits"))
    own_nN = np.arange(before_nN.shape[1]) == label_n[:, None]
    rows: list[list[Cell]] = [["before", None, None, float((before_nN.argmax(1) == label_n).mean()), None, None]]
    for weight, rate, steps in ALIGNMENTS:
        weights = out / f"{weight}-{rate}-{steps}.safetensors"
        if not weights.exists():
            options = f"--augment affine --seed 0 --device cpu --steps {steps} --lr {rate} --weight {weight}".split()
            avarc("train", "cca", digits / "train", *options, "--out", weights)
        after_nN, _ = log_p(ModelSpec(str(weights), "digits-vqvae"))
        gain_nN = after_nN - before_nN
        gains = [float(gain_nN[own_nN].mean()), float(gain_nN[~own_nN].mean())]
        rows.append([f"{weight:,}", rate, steps, float((after_nN.argmax(1) == label_n).mean()), *gains])
        say(f"λ = {weight}: done")
    columns = [("λ (`--weight`)", ""), ("learning rate", ".0e"), ("steps", ""), ("accuracy", ".2%")]
    return [Table([*columns, ("gain of the own class, nats per image", ".0f"), ("of the others", ".0f")], rows)]


def log_p(spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    """log p of every test digit under every class (n, N), and the labels (n,)."""
    found = load_classifier(spec).log_likelihood(TEST)
    return found.values, np.array([int(Path(path).parent.name) for path in found.paths])


TABLES: dict[str, Callable[..., list[Table]]] = {
    "models": models,
    "captions": captions,
    "splits": splits,
    "incremental": incremental,
    "cca": cca,
}

if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    show(*TABLES[sys.argv[1]](*map(Path, sys.argv[2:])), as_json=as_json)
