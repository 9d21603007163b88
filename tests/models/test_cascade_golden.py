"""A cascade of real rounding: a VAR of random weights, half of whose classes are nearly as likely as another."""

import numpy as np
import torch
from conftest import read_var

from avarc_cli.layers.precision import find
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.scoring.cascade import Cascade, score_in_two_precisions
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.rounding_noise import measure
from avarc_cli.scoring.scores import score_function

IMAGES, MEASURED = 48, 8


def test_near_ties_of_a_random_var_are_decided_as_in_fp32(tiny):
    tensors, quantizer = tiny.tensors("var"), tiny.vqvae().quantize
    table, generator = tensors["class_emb.weight"], torch.Generator().manual_seed(0)
    classes = len(table) - 1
    pairs = 2 * (classes // 2)
    nearly = table[:pairs:2] + 1e-3 * torch.randn(table[1 : pairs + 1 : 2].shape, generator=generator)
    tensors["class_emb.weight"] = torch.cat([torch.stack([table[:pairs:2], nearly], 1).flatten(0, 1), table[pairs:]])
    exact = VARLikelihood(read_var(tensors), quantizer)
    cheap = VARLikelihood(read_var(tensors).set_precision(find("bf16", torch.device("cpu"))), quantizer)
    shape = (IMAGES + MEASURED, 1, exact.segment_ends[-1])
    tokens = torch.randint(tiny.meta["config"]["vocab_size"], shape, generator=generator).numpy()
    request = ScoringRequest(
        candidates=np.arange(classes),
        plan=parse_plan(f"2:{classes // 2},4:1", segments=4, candidates=classes, samples=1),
        score=score_function("log-likelihood"),
        log_prior=np.zeros(classes),
        tokens_per_batch=4000,
    )
    noise = measure(cheap, exact, tokens[IMAGES:], request)
    cascade = Cascade("bf16", noise.slacks(request.plan, classes, exact.segment_ends))
    tokens = tokens[:IMAGES]
    expected = [int(each.order[0]) for each in score_group(exact, tokens, request)]
    found = score_in_two_precisions(cheap, lambda: exact, tokens, request, cascade)
    assert [int(each.order[0]) for each in found] == expected
    assert [int(each.order[0]) for each in score_group(cheap, tokens, request)] != expected, "there are near-ties"
    assert any(each.settled.survivors for each in found), "some of them about survivors"
