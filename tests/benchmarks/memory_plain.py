"""Peak memory and time of `avarc classify` against a plain script that does the same, as whole processes.

The plain script (this file, with --plain) reads pickles as they are published, encodes the image and its smoothing
neighbours, and scores every stage of the paper's plan from its first token: masked attention, all logits, two pairs
at a time. avarc reads the same as safetensors, which `avarc download` makes of published pickles. Random weights.
Peaks are the largest resident sets that the operating system counted; rounds are interleaved, after one of avarc alone.
SHAPE is a VAR's such as d16, llamagen-l, rar-b or the like. Results: docs/performance.md.

usage: python tests/benchmarks/memory_plain.py [SHAPE] [CLASSES] [ROUNDS] [PRECISIONS] [--json]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from figure_tables import Cell, Table, show, wants_json

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PAIRS = 2  # of a plain pass; on a CPU 10 are slower
TOKENIZERS = {"var": "vqvae", "llamagen": "llamagen_vq", "rar": "maskgit_vqgan"}
STATED = {"patch_nums": ",".join(map(str, SIDES)), "image_size": "256"}  # what the tensors do not tell
PLANS = dict.fromkeys(TOKENIZERS, "10:10:1,16:3:1,16:1:3") | {"var": "6:10:1,10:3:1,10:1:3"}
"""Segments, candidates kept and samples of each stage."""
LogProbs = Callable[[int, int, Tensor], Tensor]
"""log p of a sample's tokens up to a number of them under these classes, (P, tokens)."""


def family_of(shape: str) -> str:
    return shape.rpartition("-")[0] or "var"


@torch.inference_mode()
def plain(folder: Path, shape: str, classes: int) -> None:
    """The whole of a straightforward script; prints the winner."""
    from avarc_cli.layers.config_sources import ConfigSources

    family = family_of(shape)
    weights = torch.load(folder / "model.pth", weights_only=True)
    tensors = torch.load(folder / "tokenizer.pth", weights_only=True)
    tokenizers = import_module(f"avarc_cli.tokenizers.{TOKENIZERS[family]}.family").FAMILY
    tokenizer = tokenizers.build(tensors, ConfigSources((("here", STATED),)), "tokenizer.pth")
    pixels = np.asarray(Image.open(folder / "0.png").convert("RGB"), dtype=np.float32)
    latents: Tensor = tokenizer.encode(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None])
    noise = 0.1 * torch.randn(3, *latents.shape[1:], generator=torch.Generator().manual_seed(0))
    noise[0] = 0
    tokens_SL = tokenizer.tokenize(latents + noise)
    log_probs = plain_log_probs(family, weights, tokenizer, tokens_SL)
    ends = np.cumsum([side * side for side in SIDES]) if family == "var" else np.arange(1, 17) * 16
    left = np.arange(classes)
    for stage in PLANS[family].split(","):
        segments, keep, samples = map(int, stage.split(":"))
        total = np.zeros(len(left))
        for s in range(samples):
            each = torch.from_numpy(left).split(PAIRS)
            sums = [log_probs(s, int(ends[segments - 1]), pairs).double().sum(1) for pairs in each]
            total += torch.cat(sums).numpy()
        left = left[np.argsort(-total, kind="stable")[:keep]]
    print(int(left[0]))


def plain_log_probs(family: str, weights: Mapping[str, Tensor], tokenizer: Any, tokens_SL: Tensor) -> LogProbs:
    """How a straightforward script scores a sample: one pass over its tokens, with all logits."""
    from avarc_cli.models.llamagen.config import default_heads

    reference = import_module(f"avarc_cli.models.{family}.reference").token_log_probs
    if family == "var":
        teacher = tokenizer.quantize.teacher_input(tokens_SL)
        return lambda s, end, pairs: reference(weights, tokens_SL[s, :end], teacher[s : s + 1, : end - 1], pairs)
    if family == "rar":
        return lambda s, end, pairs: reference(weights, tokens_SL[s, :end], pairs)
    heads, cells = default_heads(len(weights["norm.weight"])), tokens_SL.shape[1]
    return lambda s, end, pairs: reference(weights, tokens_SL[s, :end], pairs, heads=heads, cells=cells)


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a command."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{command} ended with {code}")
    return time.monotonic() - began, usage.ru_maxrss / 1024


def write_models(folder: Path, shape: str) -> None:
    """The model and its tokenizer as pickles and as safetensors, and an image."""
    from safetensors.torch import save_file

    for name, tensors in zip(("model", "tokenizer"), random_models(shape), strict=True):
        torch.save(tensors, folder / f"{name}.pth")
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors", STATED)
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")


def random_models(shape: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a model and its tokenizer, of published shapes."""
    from conftest import load_golden

    from avarc_cli.layers.random_weights import random_weights
    from avarc_cli.models.llamagen.benchmark import LlamaGenWorkload
    from avarc_cli.models.rar import benchmark as rar
    from avarc_cli.models.rar.network import RAR
    from avarc_cli.models.var.benchmark import parse_shape, random_var
    from avarc_cli.tokenizers.llamagen_vq.config import LlamaGenVQConfig
    from avarc_cli.tokenizers.llamagen_vq.network import LlamaGenVQ
    from avarc_cli.tokenizers.maskgit_vqgan.config import MaskGITVQGANConfig
    from avarc_cli.tokenizers.maskgit_vqgan.network import MaskGITVQGAN

    levels: dict[str, Any] = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "side": 16}
    family, size = family_of(shape), shape.rpartition("-")[2]
    if family == "var":
        var = random_var(parse_shape(shape))
        return {**var.state_dict(), "lvl_1L": var.levels()}, load_golden("var_d16").tensors("vae")
    if family == "rar":
        vqgan = MaskGITVQGAN(MaskGITVQGANConfig(vocab_size=1024, code_channels=256, **levels))
        return random_weights(RAR(rar.parse_shape(size))).state_dict(), random_weights(vqgan).state_dict()
    vq = LlamaGenVQ(LlamaGenVQConfig(vocab_size=16384, code_channels=8, z_channels=256, **levels))
    gpt = LlamaGenWorkload.network(LlamaGenWorkload.parse_shape(size))
    return random_weights(gpt).state_dict(), random_weights(vq).state_dict()


def main(shape: str, classes: int, rounds: int, precisions: list[str], *, as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, __file__, "--write", temporary, shape], check=True)
        models = ["--model", str(folder / "model.safetensors"), "--tokenizer", str(folder / "tokenizer.safetensors")]
        candidates = ",".join(map(str, range(classes)))
        options = ["--preprocess", "none", "--plan", PLANS[family_of(shape)], "--classes", candidates]
        avarc = [sys.executable, "-m", "avarc_cli", "-q", "classify", str(folder / "0.png"), *models, *options]
        ways = {"plain": [sys.executable, __file__, "--plain", temporary, shape, str(classes)]}
        ways |= {name: [*avarc, "--precision", name] for name in precisions}
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for command in list(ways.values())[1:]:
            timed(command)  # measures and checks what is kept for later runs
        for _ in range(rounds):
            for name, command in ways.items():
                figures[name].append(timed(command))
    rows: list[list[Cell]] = []
    for name, values in figures.items():
        seconds, peak = (statistics.median(each) for each in zip(*values, strict=True))
        ratios = [plain[0] / own[0] for plain, own in zip(figures["plain"], values, strict=True)]
        way = f"avarc, {name}" if name in precisions else "plain script"
        rows.append([way, peak, seconds, statistics.median(ratios)])
    columns = [("", ""), ("peak of the process, MiB", ",.0f"), ("seconds", ".1f"), ("times as fast", ".2f")]
    show(Table(columns, rows), as_json=as_json)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["--plain"]:
        plain(Path(words[1]), words[2], int(words[3]))
    elif words[:1] == ["--write"]:
        write_models(Path(words[1]), words[2])
    else:
        as_json = wants_json(words)
        given = [*words, *("d4", "20", "3", "fp32")[len(words) :]]
        main(given[0], int(given[1]), int(given[2]), given[3].split(","), as_json=as_json)
