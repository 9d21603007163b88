"""Peak memory and time of `avarc classify` against a plain script that does the same, as whole processes.

The plain script (this file, with --plain) reads pickles as they are published, encodes the image and its smoothing
neighbours, and scores every stage of the paper's plan from its first token: masked attention, all logits, a few pairs
at a time. avarc reads the same as safetensors, which `avarc download` makes of published pickles. Random weights.
Peaks are the largest resident sets that the operating system counted; rounds are interleaved, after one of avarc alone.
Results: docs/performance.md.

usage: python tests/benchmarks/memory_plain.py [SHAPE] [CLASSES] [ROUNDS] [PRECISIONS] [--json]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from figure_tables import Cell, Table, show, wants_json

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PAIRS = 10  # of a plain pass
PLAN = ((6, 10, 1), (10, 3, 1), (10, 1, 3))  # segments, candidates kept, samples


def plain(folder: Path, classes: int) -> None:
    """The whole of a straightforward script; prints the winner."""
    from torch import Tensor

    from avarc_cli.layers.config_sources import ConfigSources
    from avarc_cli.models.var.reference import token_log_probs
    from avarc_cli.tokenizers.vqvae.family import FAMILY

    weights = torch.load(folder / "VAR.pth", weights_only=True)
    tensors = torch.load(folder / "VAE.pth", weights_only=True)
    vqvae = FAMILY.build(tensors, ConfigSources((("here", {"patch_nums": list(SIDES)}),)), "VAE.pth")
    pixels = np.asarray(Image.open(folder / "0.png").convert("RGB"), dtype=np.float32)
    image = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        latents: Tensor = vqvae.encode(image)
        noise = 0.1 * torch.randn(3, *latents.shape[1:], generator=torch.Generator().manual_seed(0))
        noise[0] = 0
        tokens_SL = vqvae.quantize.tokenize(latents + noise)
        teacher = vqvae.quantize.teacher_input(tokens_SL)
        ends = np.cumsum([side * side for side in SIDES])
        left = np.arange(classes)
        for segments, keep, samples in PLAN:
            end, total = int(ends[segments - 1]), np.zeros(len(left))
            for s in range(samples):
                parts = [
                    token_log_probs(weights, tokens_SL[s, :end], teacher[s : s + 1, : end - 1], pairs).double().sum(1)
                    for pairs in torch.from_numpy(left).split(PAIRS)
                ]
                total += torch.cat(parts).numpy()
            left = left[np.argsort(-total, kind="stable")[:keep]]
    print(int(left[0]))


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a command."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{command} ended with {code}")
    return time.monotonic() - began, usage.ru_maxrss / 1024


def write_models(folder: Path, shape: str) -> None:
    """Both files as pickles and as safetensors, and an image."""
    from conftest import load_golden
    from safetensors.torch import save_file

    from avarc_cli.models.var.benchmark import parse_shape, random_var

    var = random_var(parse_shape(shape))
    vae, patch_nums = load_golden("var_d16").tensors("vae"), ",".join(map(str, SIDES))
    for name, tensors in (("VAE", vae), ("VAR", {**var.state_dict(), "lvl_1L": var.levels()})):
        torch.save(tensors, folder / f"{name}.pth")
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors", {"patch_nums": patch_nums}
        )
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")


def main(shape: str, classes: int, rounds: int, precisions: list[str], *, as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, __file__, "--write", temporary, shape], check=True)
        models = ["--model", str(folder / "VAR.safetensors"), "--tokenizer", str(folder / "VAE.safetensors")]
        options = ["--preprocess", "none", "--plan", "paper", "--classes", ",".join(map(str, range(classes)))]
        avarc = [sys.executable, "-m", "avarc_cli", "-q", "classify", str(folder / "0.png"), *models, *options]
        ways = {"plain": [sys.executable, __file__, "--plain", temporary, str(classes)]}
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
        plain(Path(words[1]), int(words[2]))
    elif words[:1] == ["--write"]:
        write_models(Path(words[1]), words[2])
    else:
        as_json = wants_json(words)
        given = [*words, *("d4", "20", "3", "fp32")[len(words) :]]
        main(given[0], int(given[1]), int(given[2]), given[3].split(","), as_json=as_json)
