"""Whether a cascade of precisions predicts what fp32 predicts: all 360 included digits with three samples each.

Results: docs/cascade.md. Random weights, whose classes lie closer together, are in cascade_agreement.py.

usage: python tests/benchmarks/cascade_digits.py [IMAGES] [--json]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from figure_tables import Cell, Table, say, show, wants_json

from avarc_cli.classifier import load_classifier
from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.loading import ModelSpec, load_tokenizer
from avarc_cli.options import Options
from avarc_cli.results.run import RunResult
from avarc_cli.tokens import encode, read
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.zoo.local_files import ASSETS

PLANS = ("exhaustive", "2:5,5:2,5:1:3")
CASCADES = ("bf16+fp32", "int16+fp32", "int8+fp32")


def classify(cache: TokenCache, plan: str, precision: str) -> RunResult:
    """All images of the cache under the ten classes."""
    return load_classifier(ModelSpec("digits", precision=precision), Options(plan=plan)).classify_cache(cache)


def main(images: int, *, as_json: bool) -> None:
    rows: list[list[Cell]] = []
    with tempfile.TemporaryDirectory() as folder:
        digits, tokenizer = open_images([ASSETS / "digits" / "test"]).first(images), load_tokenizer(ModelSpec("digits"))
        pixels = Preprocess(tokenizer.preprocess, tokenizer.image_size)
        cache = read(encode(digits, tokenizer, pixels, Path(folder) / "t.h5", samples=3).path)
        for plan in PLANS:
            exact = classify(cache, plan, "fp32")
            say(f"{plan} in fp32: {exact.metrics['tokens_scored_per_image']:.0f} tokens per image")
            for precision in CASCADES:
                found = classify(cache, plan, precision)
                pairs = zip(exact.records, found.records, strict=True)
                same = sum(a["prediction"] == b["prediction"] for a, b in pairs)
                of = found.metrics["cascade"]
                settled = [of["decided_in_exact"], of["survivors_checked"], of["exact_tokens_per_image"]]
                tokens = [result.metrics["tokens_scored_per_image"] for result in (exact, found)]
                rows.append([f"`{plan}`", precision, f"{same} of {len(cache)}", *settled, *tokens])
                say(f"{plan} in {precision}: done")
    columns = [("plan", ""), ("precision", ""), ("predicted as in fp32", ""), ("with fp32's help", "")]
    columns += [("of them, survivors of earlier stages too", ""), ("tokens in fp32, per image", ".1f")]
    columns += [("all tokens in fp32 alone", ".0f"), ("all tokens in the cascade", ".0f")]
    show(Table(columns, rows), as_json=as_json)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 360, as_json=as_json)
