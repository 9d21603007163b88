"""How many codes each scale of a multi-scale tokenizer uses, with and without the measures against collapse.

usage: python tests/benchmarks/code_usage.py DIGITS OUT [--steps 250] [--json]

DIGITS is written by `python -m avarc_cli.train.digits DIGITS`. Every row is a training of the digits' tokenizer (`make
digits`) with other options; OUT keeps its weights, and a second call trains what is missing. Then the training images
are encoded, unchanged: a code is in use at a scale if one of them has it there. Results: docs/train-models.md.

Shapes: N images, L tokens, H side in pixels.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from figure_tables import Cell, Table, say, show
from torch import Tensor

from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.loading import load_tokenizer
from avarc_cli.model_spec import ModelSpec

SIDES, VOCABULARY = (1, 2, 3, 5, 8), 128
DIGITS = (
    "--image-size 16 --patch-nums 1,2,3,5,8 --vocab 128 --channels 8 --width 32 --multipliers 1,2 --blocks 1 "
    "--batch-size 48 --lr 1e-3 --augment affine --seed 0 --device cpu"
)
NEVER = "from avarc_cli.layers import vq_loss; vq_loss.REVIVE_UNTIL = 0.0; from avarc_cli.cli import main; main()"
"""avarc, but for the replacement of unused codes, which no option turns off."""
ROWS = {
    "nothing, not even the replacement of unused codes": ("-c", NEVER, ""),
    "unused codes are replaced now and then (default)": ("-m", "avarc_cli", ""),
    "`--reanchor`": ("-m", "avarc_cli", "--reanchor"),
    "`--scale-dropout 0.1`": ("-m", "avarc_cli", "--scale-dropout 0.1"),
    "`--perturb 0.1`": ("-m", "avarc_cli", "--perturb 0.1"),
    "all three": ("-m", "avarc_cli", "--reanchor --scale-dropout 0.1 --perturb 0.1"),
}


def train(how: tuple[str, str, str], digits: Path, out: Path, steps: int) -> None:
    """Train a tokenizer, unless it is there."""
    way, avarc, options = how
    command = [sys.executable, way, avarc, "train", "tokenizer", str(digits / "train"), *DIGITS.split()]
    if not out.exists():
        subprocess.run(
            [*command, *options.split(), "--steps", str(steps), "--out", str(out)], stdout=sys.stderr, check=True
        )


def load(folder: Path) -> Tensor:
    """All images of a folder as the tokenizer reads them, (N, 3, H, H) in [-1, 1]."""
    images, preprocess = open_images([folder]), Preprocess("fit", 16)
    pixels_NHW3 = np.stack([images.load(row, preprocess) for row in range(len(images))])
    return torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).float() / 127.5 - 1


def chosen(tokens_NL: Tensor) -> list[tuple[int, float]]:
    """Of each scale: codes that occur in it, and the perplexity of their distribution."""
    found = []
    for tokens in tokens_NL.split([side * side for side in SIDES], dim=1):
        share_V = tokens.flatten().bincount(minlength=VOCABULARY) / tokens.numel()
        entropy = -(share_V * share_V.clamp_min(1e-12).log()).sum()
        found.append((int((share_V > 0).sum()), float(entropy.exp())))
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("digits", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    files = {name: arguments.out / f"{number}.safetensors" for number, name in enumerate(ROWS)}
    for name, file in files.items():
        train(ROWS[name], arguments.digits, file, arguments.steps)
    train_N3HH, test_N3HH = load(arguments.digits / "train"), load(arguments.digits / "test")
    rows: list[list[Cell]] = []
    for name, file in files.items():
        network = load_tokenizer(ModelSpec(str(file), device="cpu")).network
        scales = chosen(network.tokenize(network.encode(train_N3HH)))
        made = network.reconstruct(network.tokenize(network.encode(test_N3HH)))
        error = float((made - test_N3HH).square().mean().sqrt())
        rows.append([name, *(codes for codes, _ in scales), error])
        say(f"{name}: perplexities {', '.join(f'{p:.1f}' for _, p in scales)}")
    columns = [("", ""), *((f"codes at {side}x{side}", "") for side in SIDES), ("error", ".3f")]
    show(Table(columns, rows), as_json=arguments.json)


if __name__ == "__main__":
    main()
