"""How many tokens change when the encoder runs in bfloat16 instead of float32 (codes are looked up in float32).

python tests/benchmarks/encoder_bf16.py: the 360 test digits through the included tokenizer, here on a CPU, whose
bfloat16 rounds as a GPU's does. Tokens of a scale depend on all coarser ones, so changes grow from scale to scale.
"""

from __future__ import annotations

import numpy as np
import torch

from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.loading import ModelSpec, load_tokenizer
from avarc_cli.zoo.local_files import ASSETS


@torch.inference_mode()
def main() -> None:
    tokenizer = load_tokenizer(ModelSpec("digits", device="cpu"))
    images, pixels = open_images([ASSETS / "digits" / "test"]), Preprocess(tokenizer.preprocess, tokenizer.image_size)
    loaded = np.stack([images.load(i, pixels) for i in range(len(images))])
    x = torch.from_numpy(loaded).permute(0, 3, 1, 2).float() / 127.5 - 1
    full = tokenizer.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = tokenizer.network.encode(x).float()
    changed_BL = tokenizer.quantize(full) != tokenizer.quantize(half)
    print(f"latents differ by {(full - half).std() / full.std():.2%} of their standard deviation")
    print(f"tokens changed: {changed_BL.float().mean():.2%}")
    start = 0
    for side in tokenizer.layout.sides:
        print(f"  scale {side} x {side}: {changed_BL[:, start : start + side * side].float().mean():.2%}")
        start += side * side


if __name__ == "__main__":
    main()
