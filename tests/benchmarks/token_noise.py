"""The rounding noise of one token's log-probability, in nats, that scoring.scores.TOKEN_NOISE is set from.

fp32 is compared with the reference implementation's float32, the others with our fp32; on golden models.

usage: python tests/benchmarks/token_noise.py [GOLDEN ...]
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import load_golden

from avarc_cli.models.precision import PRECISIONS
from avarc_cli.models.var_likelihood import VARLikelihood


def token_log_prob(golden, precision):
    model = VARLikelihood(golden.var().set_precision(PRECISIONS[precision]), golden.vqvae().quantize)
    tokens, classes = golden.tokens(), torch.from_numpy(golden.arrays["classes"]).long()
    pairs = torch.cartesian_prod(torch.arange(len(tokens)), torch.arange(len(classes)))
    state = model.begin(tokens, pairs[:, 0], classes[pairs[:, 1]])
    return model.extend(state, len(model.segment_ends), keep=0).view(len(tokens), len(classes), -1)


def main(names):
    for name in names:
        golden = load_golden(name)
        fp32 = token_log_prob(golden, "fp32")
        reference = torch.from_numpy(golden.arrays["token_log_prob"])
        print(f"{name}: fp32 {(fp32 - reference).std():.1e}", end="", flush=True)
        for label in ("bf16", "fp16", "int8", "fp8"):  # on a CPU int8 has 7-bit weights: the coarser kind
            print(f", {label} {(token_log_prob(golden, label) - fp32).std():.1e}", end="", flush=True)
        print(" nats")


if __name__ == "__main__":
    main(sys.argv[1:] or ["var_tiny", "var_tiny_shared_aln", "var_tiny_no_qk_norm", "var_d16"])
