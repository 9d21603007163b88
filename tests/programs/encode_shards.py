"""Encode FOLDER/images to FOLDER/t.h5, one shard ("i/n") for each line of input; print whether the cache is complete.

Usage: encode_shards FOLDER, which prints "ready" before it reads the first line.
"""

import sys
from pathlib import Path

import torch
from stub_tokenizer import StubTokenizer

from avarc_cli.data import Preprocess, open_images
from avarc_cli.tokens import Shard, encode


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        done = encode(
            open_images([folder / "images"]),
            StubTokenizer(),
            Preprocess("none", 8),
            folder / "t.h5",
            samples=2,
            latents=True,
            chunk_size=2,
            batch_size=2,
            shard=Shard.parse(line.strip()),
        )
        print(done.complete, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
