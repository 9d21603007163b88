"""One image against ten classes on the d16 shape: avarc's engine against plain forward passes over the same pairs.

usage: python tests/benchmarks/d16_against_plain.py [ROUNDS]
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import load_golden

from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.reference import token_log_probs
from avarc_cli.scoring.batching import auto_tokens
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function

CLASSES = np.arange(10)
T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def main(rounds: int) -> None:
    golden = load_golden("var_d16")
    vqvae, tokens = golden.vqvae(), golden.tokens()
    with torch.inference_mode():
        teacher = vqvae.quantize.teacher_input(tokens)
    model = VARLikelihood(golden.var(), vqvae.quantize)
    plan = parse_plan("exhaustive", segments=10, candidates=10, samples=1)
    request = ScoringRequest(
        candidates=CLASSES,
        plan=plan,
        score=score_function("log-likelihood"),
        log_prior=np.zeros(10),
        tokens_per_batch=auto_tokens(model, plan, torch.device("cpu"), fixed=True),
        keep_tokens=True,
    )
    weights, ids = golden.tensors("var"), torch.from_numpy(CLASSES)
    ratios = []
    for number in range(rounds):
        ours, our_seconds = timed(lambda: score_group(model, tokens[:, None].numpy(), request)[0].token_log_prob)
        plain, plain_seconds = timed(
            lambda: torch.cat([token_log_probs(weights, tokens[0], teacher, pair) for pair in ids.split(5)])
        )
        ratios.append(plain_seconds / our_seconds)
        worst = float(np.abs(ours - plain.numpy()).max())
        print(
            f"round {number}: avarc {our_seconds:.1f} s, plain {plain_seconds:.1f} s, "
            f"ratio {ratios[-1]:.2f}, largest difference {worst:.1e} nats a token"
        )
    print(f"median ratio {np.median(ratios):.2f} ({torch.get_num_threads()} threads, torch {torch.__version__})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
