"""Check that a refactoring changed no number: record what avarc computes at two commits, then compare.

    git worktree add ../before main
    PYTHONPATH=../before:../before/kernels python tests/tools/same_output.py record /tmp/before
    PYTHONPATH=.:kernels python tests/tools/same_output.py record /tmp/after
    python tests/tools/same_output.py compare /tmp/before /tmp/after

`record` runs the commands below, each in a process of its own, and keeps everything they write. It never imports
avarc_cli, so it works against any commit. `compare` (recorded.py) reads both folders and lists every value that is
not the same bit for bit; recordings keep the raw files, so old ones can be compared again with a newer script.

Both recordings must come from one machine, one set of packages and one number of threads: all of these change the
last bits of a matrix product.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import recorded

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TINY = ("var_tiny", "var_tiny_shared_aln", "var_tiny_no_qk_norm")
PACKAGES = ("torch", "numpy", "pillow", "h5py", "safetensors", "matplotlib")
TIMEOUT = 600  # seconds for one command

# name -> arguments. A command writes to the folder of its name ({out}) and runs after those whose folders it reads.
COMMANDS = {
    # tokens
    "encode": "encode inputs/digits --samples 3 --out {out}/tokens.h5",
    "encode-latents": "encode inputs/digits --per-class 4 --samples 3 --latents --out {out}/tokens.h5",
    "shard-1": "encode inputs/digits --samples 2 --seed 7 --shard 1/2 --out {out}/tokens.h5",
    "shard-2": "encode inputs/digits --samples 2 --seed 7 --shard 2/2 --out {out}/tokens.h5",
    "merge": "cache merge shard-1/tokens.h5 shard-2/tokens.h5 --out {out}/tokens.h5",
    "cache-info": "cache info encode/tokens.h5",
    "cache-head": "cache head encode/tokens.h5 --rows 3 --picture {out}/rows.png",
    "cache-verify": "cache verify encode/tokens.h5",
    "data-check": "data check inputs/digits --decode all",
    "models": "models",
    # scores
    "classify": "classify encode-latents/tokens.h5 --out {out}/run --save-likelihood --save-json",
    "classify-images": "classify inputs/few --out {out}/run --save-json",
    "classify-auto": "classify encode/tokens.h5 --limit 90 --plan auto --out {out}/run --save-json",
    "classify-staged": "classify encode-latents/tokens.h5 --plan 3:3,5:2,5:1:3 --out {out}/run --save-json",
    "classify-memory": "classify encode-latents/tokens.h5 --plan 3:3,5:2,5:1:3 --memory 530MiB --out {out}/run"
    " --save-json",
    "classify-pmi": "classify encode-latents/tokens.h5 --score pmi --out {out}/run --save-json",
    "classify-deterministic": "classify encode-latents/tokens.h5 --deterministic --out {out}/run --save-likelihood",
    "classify-bf16": "classify encode-latents/tokens.h5 --precision bf16 --out {out}/run --save-likelihood",
    "classify-int8": "classify encode-latents/tokens.h5 --precision int8 --out {out}/run --save-likelihood",
    "classify-subset": "classify encode-latents/tokens.h5 --classes 3,5,8,9 --priors inputs/priors.txt --batch-size 7"
    " --plan 2:3,5:1:2 --out {out}/run --save-json",
    "tune": "tune encode/tokens.h5 --limit 110 --hold-out 40 --agreement 0.95 --out {out}/plan.json",
    # what is made of scores
    "explain-page": "explain encode-latents/tokens.h5 --limit 4 --out {out}/page.html --npz {out}/arrays.npz",
    "explain-picture": "explain encode-latents/tokens.h5 --rows 3,7 --class label --vs 8 --weighting uniform"
    " --scales 2-5 --upsample nearest --out {out}/picture.png --npz {out}/arrays.npz",
    "report": "report classify/run --hardest 3 --out {out}/report.html",
    "export-npz": "export classify/run --out {out}/scores.npz",
    "export-h5": "export classify/run --per-token --out {out}/scores.h5",
    "export-parquet": "export classify/run --classes 2,4 --out {out}/scores.parquet",
    "export-folder": "export classify/run --out {out}/scores",
    "export-cache": "export encode-latents/tokens.h5 --limit 12 --per-token --out {out}/scores.npz",
    "sample": "sample 3 8 --count 4 --seed 5 --out {out}/digits.png",
    # added classes
    **{
        f"add-{method}": f"add-class seven inputs/seven --model digits-0-4 --method {method} --steps 5 --variants 2"
        " --augment affine --bank {out}/bank"
        for method in ("embedding", "adaln", "lora")
    },
    **{
        f"bank-{method}": f"classify inputs/few --model digits-0-4 --bank add-{method}/bank --out {{out}}/run"
        " --save-likelihood"
        for method in ("embedding", "adaln", "lora")
    },
    "classes": "classes list --bank add-lora/bank",
    "sample-added": "sample seven --model digits-0-4 --bank add-lora/bank --count 2 --out {out}/seven.png",
    "incremental": "incremental inputs/few --base 0-1 --tasks 2,3 --tokenizer digits-vqvae --base-steps 5"
    " --base-depth 1 --steps 3 --variants 2 --batch-size 8 --baseline finetune --out {out}/run",
    # training
    "train-tokenizer": "train tokenizer inputs/digits --image-size 16 --patch-nums 1,2,4 --vocab 32 --channels 8"
    " --width 32 --multipliers 1,2,2 --blocks 1 --steps 6 --batch-size 8 --augment affine --out {out}/vq.safetensors",
    "train-var": "train var inputs/digits --tokenizer train-tokenizer/vq.safetensors --depth 2 --width 64 --steps 6"
    " --batch-size 8 --out {out}/var.safetensors",
    "train-shared": "train var inputs/few --tokenizer digits-vqvae --depth 2 --width 64 --shared-aln --steps 4"
    " --batch-size 8 --augment none --out {out}/var.safetensors",
    "train-cca": "train cca inputs/few --model train-var/var.safetensors --tokenizer train-tokenizer/vq.safetensors"
    " --steps 4 --batch-size 8 --out {out}/var.safetensors",
    "train-cca-lora": "train cca inputs/digits --rank 4 --steps 3 --batch-size 8 --out {out}/adapter",
    "trained": "classify inputs/few --model train-cca/var.safetensors --tokenizer train-tokenizer/vq.safetensors"
    " --out {out}/run --save-likelihood",
    "lora": "classify inputs/few --lora train-cca-lora/adapter --out {out}/run --save-likelihood",
    # checkpoints in the published form
    **{
        f"encode-{name}": f"encode inputs/{name}/images --model inputs/{name}/VAR.pth --tokenizer inputs/{name}/VAE.pth"
        " --samples 3 --latents --preprocess resize-crop --out {out}/tokens.h5"
        for name in TINY
    },
    **{
        f"classify-{name}": f"classify encode-{name}/tokens.h5 --model inputs/{name}/VAR.pth"
        f" --tokenizer inputs/{name}/VAE.pth --out {{out}}/run --save-likelihood --save-json"
        for name in TINY
    },
    "staged-var_tiny": "classify encode-var_tiny/tokens.h5 --model inputs/var_tiny/VAR.pth"
    " --tokenizer inputs/var_tiny/VAE.pth --plan 2:5,3:2,4:1:3 --score pmi --out {out}/run --save-json",
}


def select(patterns: list[str]) -> dict[str, str]:
    """The commands whose names match, and those whose output they read, in their order."""
    chosen = {name for name in COMMANDS if any(fnmatch(name, pattern) for pattern in patterns)}
    for name in reversed(COMMANDS):  # a command reads only from earlier ones
        if name in chosen:
            chosen |= reads(name)
    return {name: arguments for name, arguments in COMMANDS.items() if name in chosen}


def reads(name: str) -> set[str]:
    """The commands whose folders a command reads."""
    return {word.split("/")[0] for word in COMMANDS[name].split() if "/" in word} & COMMANDS.keys()


def record(out: Path, python: str, jobs: int, only: list[str]) -> int:
    """Run the commands in `out`; returns how many failed."""
    commands = select(only)
    if not commands:
        sys.exit(f"no command matches {' '.join(only)}: there are {' '.join(COMMANDS)}")
    if out.exists():
        sys.exit(f"{out} exists already: name another folder, or delete it")
    out = out.resolve()
    environment = _environment(out)
    checkout = _checkout(python, environment)
    files = out / "files"
    files.mkdir(parents=True)
    make_inputs(files / "inputs", checkout)
    facts = _facts(python, checkout, environment) | {"commands": list(commands)}
    (out / "about.json").write_text(json.dumps(facts, indent=1))
    print(f"recording {checkout} ({facts['commit']}) in {out}")

    def run(name: str) -> int:
        for earlier in reads(name):
            futures[earlier].result()
        started = time.perf_counter()
        arguments = commands[name].format(out=name).split()
        code = _run([python, "-m", "avarc_cli", *arguments, "--json"], files, name, environment)
        print(f"{'ok' if code == 0 else f'EXIT {code}':8} {time.perf_counter() - started:5.1f} s  {name}", flush=True)
        return code

    futures: dict[str, Future[int]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for name in commands:  # each waits only for earlier ones, which have workers already: no deadlock
            futures[name] = pool.submit(run, name)
    return sum(future.result() != 0 for future in futures.values())


def _run(command: list[str], folder: Path, name: str, environment: dict[str, str]) -> int:
    """One command in `folder`; exit code, stdout and stderr are kept beside what it writes to folder/name."""
    (folder / name).mkdir()
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT)
        code, stdout, stderr = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as expired:
        code, stdout, stderr = -1, expired.stdout or b"", expired.stderr or b""
    (folder / name / "stdout.json").write_bytes(stdout)
    (folder / name / "stderr.log").write_bytes(stderr)
    (folder / name / "exit.json").write_text(str(code))
    return code


def _environment(out: Path) -> dict[str, str]:
    """This environment, on the CPU, offline, with one thread (OMP_NUM_THREADS overrides) and settings of its own."""
    path = os.environ.get("PYTHONPATH")
    absolute = {} if path is None else {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))}
    fixed = {"AVARC_HOME": str(out / "home"), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""}
    fixed["AVARC_PRODUCTS"] = "rule"  # not by a measurement, which may come out otherwise the second time
    return {"OMP_NUM_THREADS": "1"} | dict(os.environ) | absolute | fixed


def _checkout(python: str, environment: dict[str, str]) -> Path:
    """The folder that holds the avarc_cli which `python` imports."""
    code = "import avarc_cli; print(avarc_cli.__file__)"
    done = subprocess.run([python, "-c", code], cwd="/", env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python} cannot import avarc_cli: set PYTHONPATH to a checkout and its kernels/\n{done.stderr}")
    return Path(done.stdout.strip()).resolve().parent.parent


def _facts(python: str, checkout: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Where a recording comes from; `compare` warns where the numbers of two machines would differ anyway."""
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    cpu = (
        re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    )
    machine = {"cpu": cpu[1] if cpu else platform.processor(), "threads": environment["OMP_NUM_THREADS"]}
    code = f"from importlib import metadata; print([metadata.version(p) for p in {PACKAGES}])"
    versions = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True).stdout.strip()
    return {"checkout": str(checkout), "commit": commit, "machine": machine | {"packages": versions}}


def make_inputs(folder: Path, checkout: Path) -> None:
    """Digits, a few of them, priors, and the golden models as published checkpoints, in relative paths."""
    digits = checkout / "avarc_cli" / "assets" / "digits" / "test"
    shutil.copytree(digits, folder / "digits")
    for name, source, count in [(f"few/{c}", str(c), 12) for c in range(4)] + [("seven", "7", 10)]:
        (folder / name).mkdir(parents=True)
        for path in sorted((digits / source).iterdir())[:count]:
            shutil.copy(path, folder / name)
    (folder / "priors.txt").write_text("3\t2\n5\t1\n8\t0.5\n9\t3\n")
    for name in TINY:
        make_golden(name, folder / name)


def make_golden(name: str, folder: Path) -> None:
    """VAR.pth and VAE.pth with the keys, buffers and wrapping of published files, and images/."""
    import torch
    from PIL import Image

    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    assert spec is not None and spec.loader is not None
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    config = meta["config"]
    weights = {
        part: {
            key[4:]: torch.from_numpy(value)
            for key, value in fill.state_dict(meta[f"keys_{part}"], meta["seed"], meta["scales"]).items()
        }
        for part in ("var", "vae")
    }
    sides = config["patch_nums"]
    weights["vae"]["quantize.ema_vocab_hit_SV"] = torch.zeros(len(sides), config["vocab_size"])
    level = torch.cat([torch.full((side * side,), i) for i, side in enumerate(sides)]).view(1, -1)
    mask = torch.where(level.view(1, -1, 1) >= level.view(1, 1, -1), 0.0, -math.inf)[:, None]
    weights["var"] |= {"lvl_1L": level, "attn_bias_for_masking": mask}
    for i in range(config["depth"]):
        weights["var"][f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(config["embed_dim"])
    (folder / "images").mkdir(parents=True)
    torch.save({"trainer": {"var_wo_ddp": weights["var"]}, "epoch": 3}, folder / "VAR.pth")
    torch.save(weights["vae"], folder / "VAE.pth")
    noise = np.random.default_rng(0).integers(0, 256, (6, *arrays["image_uint8"].shape[1:]), dtype=np.uint8)
    for i, image in enumerate([*arrays["image_uint8"], *noise]):
        Image.fromarray(image).save(folder / "images" / f"{i:03d}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record", help="run the commands and keep what they write")
    one.add_argument("out", type=Path)
    one.add_argument("--python", default=sys.executable, help="interpreter that runs avarc (default: this one)")
    one.add_argument("--jobs", type=int, default=2, help="commands at once, of one thread each (default: 2)")
    one.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="commands like these: 'explain-*' tune")
    two = commands.add_parser("compare", help="list every difference between two recordings; exit code 1 if any")
    two.add_argument("a", type=Path)
    two.add_argument("b", type=Path)
    two.add_argument("--expect", action="append", default=[], metavar="PATTERN", help="a difference that is intended")
    options = parser.parse_args()
    if options.command == "record":
        return 1 if record(options.out, options.python, options.jobs, options.only) else 0
    return 1 if recorded.compare(options.a, options.b, options.expect) else 0


if __name__ == "__main__":
    sys.exit(main())
