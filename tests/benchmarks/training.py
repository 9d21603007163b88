"""Steps of our trainers against a plain eager loop of the same network, and where a step's time goes.

usage: python tests/benchmarks/training.py [--size digits|default] [--families var,llamagen,maskgit] [--rounds 20]
           [--json]

The plain loop is in `training_plain`: forward pass, `F.cross_entropy`, `backward`, `clip_grad_norm_`,
`torch.optim.AdamW`, and an average of the weights; once with the network as modules, once as functions. All begin with
the same weights and see the same batches, held in memory as tokens. They take turns, a step each, so that all see the
same disturbances; the ratio is the median over these turns. Where the time goes is measured in a training on images,
which are encoded in every step.

Results: docs/training-speed.md.

Shapes: B images, L tokens.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from figure_tables import Cell, Table, say, show
from photos import write_photos
from torch import Tensor
from training_plain import PlainLoop, as_functions, as_modules

from avarc_cli import families
from avarc_cli.data.datasets import open_images
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.sampling import generator_of
from avarc_cli.loaded import LoadedTokenizer
from avarc_cli.loading import load_tokenizer
from avarc_cli.progress import MetricsProgress
from avarc_cli.train import loop, updates
from avarc_cli.train.generator import loss_of, new_generator
from avarc_cli.train.images import Augment, TrainingImages
from avarc_cli.train.loop import train
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.run import Run
from avarc_cli.train.token_batches import EncodedImages, TokenBatches
from avarc_cli.train.watch import Watch
from avarc_cli.trainable import TrainableModel

CLASSES, BATCH, WARM_UP = 10, 32, 2
OURS = "avarc"
LEVELS = {"ch": 32, "ch_mult": (1, 2), "blocks": 1}
TOKENIZERS: Mapping[str, Mapping[str, Any]] = {
    "vqvae": LEVELS | {"z_channels": 8},
    "llamagen-vq": LEVELS | {"code_channels": 8},
    "titok": {"code_channels": 8, "width": 64, "depth": 3},
}
READS = {"var": "vqvae", "llamagen": "llamagen-vq", "maskgit": "titok"}
SIZES: Mapping[str, Mapping[str, Any]] = {  # of tokenizers and generators
    "tiny": {
        "image_size": 8,
        "vqvae": {"vocab_size": 16, "patch_nums": (1, 2, 4)},
        "llamagen-vq": {"vocab_size": 16},
        "titok": {"vocab_size": 16, "num_tokens": 4, "patch": 4},
        "var": {"depth": 1, "width": 64},
        "llamagen": {"depth": 1, "width": 16, "heads": 2},
        "maskgit": {"depth": 2, "width": 16, "heads": 2},
    },
    "digits": {  # those of the included models
        "image_size": 16,
        "vqvae": {"vocab_size": 128, "patch_nums": (1, 2, 3, 5, 8)},
        "llamagen-vq": {"vocab_size": 64},
        "titok": {"vocab_size": 64, "num_tokens": 16, "patch": 4},
        "var": {"depth": 4, "width": 128},
        "llamagen": {"depth": 4, "width": 96, "heads": 3},
        "maskgit": {"depth": 4, "width": 80, "heads": 4},
    },
    "default": {  # those of `avarc train` without options, but for the tokenizers' levels
        "image_size": 16,
        "vqvae": {"vocab_size": 512, "patch_nums": (1, 2, 3, 4, 6, 8)},
        "llamagen-vq": {"vocab_size": 512},
        "titok": {"vocab_size": 512, "num_tokens": 32, "patch": 4},
        "var": {"depth": 8, "width": 512},
        "llamagen": {"depth": 8, "width": 512},
        "maskgit": {"depth": 8, "width": 512},
    },
}


@dataclass(frozen=True)
class Tokens:
    """`TokenBatches` in memory."""

    tokens_BL: Tensor
    labels_B: Tensor
    subject: Mapping[str, str]

    def batch(self, step: int, rows: Rows) -> tuple[Tensor, Tensor, torch.Generator]:
        """As `TokenBatches.batch`; every batch is the same."""
        return rows.take(self.tokens_BL), self.labels_B, generator_of(0, step)


@dataclass(frozen=True)
class Result:
    """Of one family."""

    family: str
    size: str
    parameters: int
    tokens: int
    """Of an image."""
    threads: int
    """Of torch."""
    steps_per_second: Mapping[str, float]
    """The median, of wall time, of our trainer and each plain loop."""
    ratios: Mapping[str, float]
    """How much faster our trainer is than each plain loop: the median over pairs of steps, of wall time."""
    cpu_ratios: Mapping[str, float]
    """The same of CPU time, all threads together."""
    parts: Mapping[str, float]
    """Fractions of the time of a training on images."""


class Turns:
    """A `MetricsProgress`: after each step of our trainer, one of each plain loop, all timed."""

    def __init__(self, loops: Mapping[str, PlainLoop], data: TokenBatches) -> None:
        self.loops, self.data = loops, data
        self.seconds: dict[str, list[tuple[float, float]]] = {OURS: [], **{name: [] for name in loops}}  # wall and CPU
        self._since = _clocks()

    def __call__(self, done: int, values: dict[str, float], /) -> None:
        self.seconds[OURS].append(_passed(self._since))
        for name, plain in self.loops.items():
            began = _clocks()
            loss = plain.step(*self.data.batch(done - 1, Rows.whole(BATCH)))
            self.seconds[name].append(_passed(began))
            if done == 1 and abs(loss / math.log(2) - values["bits/token"]) > 1e-3:
                raise AssertionError(f"{name}: the first loss is {loss / math.log(2)}, ours {values['bits/token']}")
        self._since = _clocks()


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _passed(since: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = _clocks()
    return wall - since[0], cpu - since[1]


class Parts:
    """A `MetricsProgress` of a training whose parts are timed, from the end of the warm-up on. For a CPU only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = self._ended = 0.0
        self._counted: dict[str, float] = {}  # seconds when the last step ended

    def __call__(self, done: int, values: dict[str, float], /) -> None:
        self._ended, self._counted = time.perf_counter(), dict(self.seconds)
        if done == WARM_UP:
            self._began = self._ended
            self.seconds.clear()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time what a step of the loop calls."""
        calls: list[tuple[str, Any, str]] = [
            ("images", TrainingImages, "batch"),
            ("tokens", EncodedImages, "batch"),
            ("loss", updates.Updates, "_pass"),
            ("backward", Tensor, "backward"),
            ("clipping", updates, "clip"),
            ("optimizer", updates.Updates, "apply"),
            ("average", loop, "average"),
            ("logs", Watch, "after"),
        ]
        with ExitStack() as stack:
            for name, owner, attribute in calls:
                stack.enter_context(patch.object(owner, attribute, self._timed(name, getattr(owner, attribute))))
            yield

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **named)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            return result

        return timed

    def shares(self) -> dict[str, float]:
        """Fractions of the time."""
        s, total = self._counted, self._ended - self._began
        parts = {"images": s["images"], "encoding": s["tokens"] - s["images"], "forward": s["loss"] - s["tokens"]}
        parts |= {name: s[name] for name in ("backward", "clipping", "optimizer", "average", "logs")}
        return {name: seconds / total for name, seconds in (parts | {"rest": total - sum(parts.values())}).items()}


def take_turns(family: str, size: str, rounds: int) -> tuple[TrainableModel, Turns]:
    """A model after its training, in turns with the plain loop, on tokens in memory."""
    tokenizer, recipe = _tokenizer(READS[family], SIZES[size]), _recipe(rounds)
    tokens_BL = torch.randint(tokenizer.vocab_size, (BATCH, tokenizer.layout.num_tokens))
    data = Tokens(tokens_BL, torch.arange(BATCH) % CLASSES, {})
    model = new_generator(family, tokenizer, CLASSES, SIZES[size][family], seed=0)
    networks = {"plain, modules": as_modules(model), "plain, functions": as_functions(model, tokenizer.network)}
    turns = Turns({name: PlainLoop(network, recipe) for name, network in networks.items()}, data)
    _train(model, data, recipe, turns)
    return model, turns


def shares(family: str, size: str, rounds: int, folder: Path) -> dict[str, float]:
    """Where the time of a training goes on images, which are in sub-folders of this folder."""
    tokenizer, parts = _tokenizer(READS[family], SIZES[size]), Parts()
    images = TrainingImages(open_images([folder]), tokenizer.image_size, Augment(), seed=0)
    model = new_generator(family, tokenizer, CLASSES, SIZES[size][family], seed=0)
    with parts.watching():
        _train(model, EncodedImages(tokenizer, images), _recipe(rounds), parts)
    return parts.shares()


def measure(family: str, size: str, rounds: int, folder: Path) -> Result:
    """Time the trainer of a family, the plain loop, and the parts of a training on the images of a folder."""
    model, turns = take_turns(family, size, rounds)
    seconds = {name: np.array(times[WARM_UP:]) for name, times in turns.seconds.items()}
    ratios = {name: np.median(seconds[name] / seconds[OURS], axis=0) for name in turns.loops}
    return Result(
        family=family,
        size=size,
        parameters=sum(p.numel() for p in model.network.parameters()),
        tokens=model.segment_ends[-1],
        threads=torch.get_num_threads(),
        steps_per_second={name: 1 / float(np.median(times[:, 0])) for name, times in seconds.items()},
        ratios={name: float(wall) for name, (wall, _) in ratios.items()},
        cpu_ratios={name: float(cpu) for name, (_, cpu) in ratios.items()},
        parts=shares(family, size, rounds, folder),
    )


def _recipe(rounds: int) -> Recipe:
    """One that the plain loop can follow without a schedule and groups of parameters."""
    constant: dict[str, Any] = {"schedule": "constant", "warmup": 0, "weight_decay": 0.0, "ema_start": "none"}
    return Recipe(steps=WARM_UP + rounds, batch_size=BATCH, lr=1e-4, **constant)


def _tokenizer(family: str, shape: Mapping[str, Any]) -> LoadedTokenizer:
    torch.manual_seed(0)
    known = families.TOKENIZERS.get(family)
    network = known.new(image_size=shape["image_size"], **TOKENIZERS[family], **shape[family]).eval()
    return LoadedTokenizer(
        network=network,
        family=family,
        name="random",
        file="random",
        sha256="0" * 64,
        preprocess="resize-crop",
        layout=network.layout,
        load=load_tokenizer,
    )


def _train(model: TrainableModel, data: TokenBatches, recipe: Recipe, progress: MetricsProgress) -> None:
    with tempfile.TemporaryDirectory() as logs:
        run = Run(log=Path(logs), log_every=10)
        loss = loss_of(model, data, recipe)
        train(model.network, loss, recipe, None, progress, subject={}, decays=model.decays, run=run)


def tables(results: Sequence[Result]) -> tuple[Table, Table]:
    """Steps against the plain loops, and where the time goes."""
    plain = list(results[0].ratios)
    columns = [("", ""), ("million parameters", ".2f"), ("tokens", ""), ("our steps/s", ".3g")]
    for name in plain:
        columns += [(f"against {name}", ".2f"), ("in CPU time", ".2f")]
    speeds: list[list[Cell]] = [
        [
            *(_name(result), result.parameters / 1e6, result.tokens, result.steps_per_second[OURS]),
            *(ratio[name] for name in plain for ratio in (result.ratios, result.cpu_ratios)),
        ]
        for result in results
    ]
    shares: list[list[Cell]] = [[_name(result), *result.parts.values()] for result in results]
    parts = [("", ""), *((name, ".1%") for name in results[0].parts)]
    return Table(columns, speeds, "Against a plain loop"), Table(parts, shares, "Where the time goes")


def _name(result: Result) -> str:
    return f"{result.family}, {result.size}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="digits")
    parser.add_argument("--families", default="var,llamagen,maskgit")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), 32, side=24, seed=0)
        results = []
        for family in arguments.families.split(","):
            results.append(measure(family, arguments.size, arguments.rounds, Path(folder)))
            say(f"{family} measured")
    show(*tables(results), as_json=arguments.json, batch=BATCH)


if __name__ == "__main__":
    main()
