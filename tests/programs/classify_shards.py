"""Classify into FOLDER, one shard ("i/n") for each line of input; print whether the run is finished.

Usage: classify_shards FOLDER, which prints "ready" before it reads the first line.
"""

import sys
from pathlib import Path

import torch
from small_run import SmallModel, make_run

from avarc_cli.results.folder import RunFolder
from avarc_cli.results.run import classify
from avarc_cli.work.shards import Shard


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        run = make_run(SmallModel(10**6), tokens_per_batch=64, save_likelihood=True)
        print(classify(run, RunFolder(folder), shard=Shard.parse(line.strip())).complete, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
