"""The commands and examples of the documentation: executed, or where a block says that it is not, parsed."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from doc_blocks import (
    BY_BASH,
    INDENTED,
    PAGES,
    ROOT,
    avarc_words,
    blocks,
    command_lines,
    parse,
    shell_lines,
    small,
    unknown_words,
    words_of,
)
from PIL import Image
from safetensors.torch import load_file

from avarc_cli.cli import main
from avarc_cli.incremental import offsets
from avarc_cli.own_model import decisions, speed
from avarc_cli.zoo.local_files import ASSETS

TESTED_ELSEWHERE = {"python-api.md": "tests/test_python_api.py"}  # which also looks at what it prints
ALL = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in ALL if block.language == "sh"]
PYTHON = [block for block in ALL if block.language == "python"]
EXECUTED = [page for page in PAGES if any(block.is_executed for block in blocks(page))]
FIRST = {
    "add-class.md": ("sample 0 1 2 3 4 5 6 7 8 9 --per-class 2 --out few",),
    "cascade.md": ("encode photos --out val.h5",),
    "cca.md": ("encode photos --out photos.h5",),
    "evaluation.md": (
        "classify photos --out runs/exhaustive",
        "classify photos --plan 3:3,5:1 --out runs/tuned",
        "classify photos --model digits-llamagen --out runs/other-model",
    ),
    "explain.md": ("encode photos --out val.h5", "classify val.h5 --out runs/val"),
    "export.md": ("encode photos --out val.h5", "classify val.h5 --save-likelihood --out runs/val"),
    "gpu.md": ("encode photos --out photos.h5",),
    "masked.md": ("train titok photos --vae --out vae.safetensors",),
    "model-families.md": (
        "train maskgit-vq photos --out vq.safetensors",
        "train rar photos --tokenizer vq.safetensors --out rar.safetensors",
    ),
    "plans.md": ("encode shots --out val.h5",),
    "scale-out.md": (
        "encode photos --out val-1.h5 --shard 1/2 --batch-size 1",
        "encode photos --out whole.h5 --batch-size 1",
        "classify whole.h5 --out runs/val-1 --shard 1/2 --batch-size 1",
    ),
    "formats.md": ("classify photos --save-likelihood --out run",),
}
"""What the reader of a page has done before."""
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
DIGITS = ASSETS / "digits" / "test"


def named(block):
    return block.name


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working folder with what the pages take for granted: a few photos, which are digits here."""
    for folder, images in {"photos": 2, "shots": 1, "val": 1, "digits": 1}.items():
        for digit in "37":
            (tmp_path / folder / digit).mkdir(parents=True)
            for image in sorted((DIGITS / digit).iterdir())[:images]:
                shutil.copy(image, tmp_path / folder / digit)
    shutil.copy(sorted((DIGITS / "7").iterdir())[0], tmp_path / "seven.png")
    np.save(tmp_path / "orders.npy", np.stack([np.arange(64), np.arange(64)[::-1]]))
    Image.fromarray(np.pad(np.full((16, 16), 255, np.uint8), 8)).save(tmp_path / "mask.png")
    (tmp_path / "captions.json").write_text('{"3": ["a three", "the digit 3"], "7": ["a seven", "the digit 7"]}')
    (tmp_path / "birds.txt").write_text("a photo of a goldfinch\na photo of a bulbul\n")
    for folder in ("avarc_cli", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(offsets, "SAMPLED", 2)
    monkeypatch.setattr(speed, "STEPS", 2)
    monkeypatch.setattr(decisions, "LEAST", 3)
    return tmp_path


def write_checkpoints(folder):
    """The digits model without metadata, also with two sets of weights in a file, and files named like two shards."""
    (folder / "two").mkdir()
    (folder / "two" / "config.json").write_text('{"num_heads": 4, "patch_nums": [1, 2, 3, 5, 8]}')
    var, vae = (load_file(ASSETS / "digits" / f"{name}.safetensors") for name in ("var", "vqvae"))
    torch.save(var, folder / "var.pth")
    torch.save({"model": var, "ema": var}, folder / "two" / "var.pth")
    for path in (folder / "vae.pth", folder / "two" / "vae.pth"):
        torch.save(vae, path)
    for name in (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ):
        (folder / name).write_text(name)


def copy_docs(folder):
    """The pages, whose tables are written again."""
    shutil.copytree(ROOT / "docs", folder / "docs")


FILES = {"checkpoints.md": write_checkpoints, "performance.md": copy_docs}
"""Writes what a page takes for granted."""


@pytest.mark.parametrize("block", SHELL, ids=named)
def test_every_command_exists_with_its_options(block, desk):
    write_files(block.page, desk)
    for words in command_lines(block.text):
        arguments = avarc_words(words)
        if arguments is not None:
            parse(arguments)
        elif words[0] == "make":
            assert block.is_only_parsed
            assert set(words[1:]) <= TARGETS
        elif Path(words[0]).name == "python":
            assert importlib.util.find_spec(words[2]) if words[1] == "-m" else (ROOT / words[1]).is_file()
            if "avarc" in words:  # which figures.py records
                parse(words[words.index("avarc") + 1 :])
        else:
            assert words[0] in BY_BASH or block.is_only_parsed, f"{block.name}: nothing executes {words[0]}"


@pytest.mark.parametrize("block", [block for block in SHELL if block.mark == INDENTED], ids=named)
def test_commands_are_indented_only_above_their_figures(block):
    """Others are fenced, and say how they are tested."""
    above = block.page.read_text("utf-8").splitlines()[: block.line - 1]
    assert re.fullmatch("<!-- (figures|typed): .* -->", above[-2])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_sentences_call_a_command_or_an_option_is_one(page):
    of_other_programs = {"kernels.md": ["--eager"], "CONTRIBUTING.md": ["--expect PATTERN"]}
    assert unknown_words(page) == of_other_programs.get(page.name, [])


@pytest.mark.parametrize("block", PYTHON, ids=named)
def test_every_example_imports_what_there_is(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("avarc"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("page", [page for page in EXECUTED if page.name not in TESTED_ELSEWHERE], ids=lambda p: p.name)
def test_the_blocks_of_a_page_run_in_order(page, desk, capsys):
    write_files(page, desk)
    if page.name in FILES:
        FILES[page.name](desk)
    names = {}
    for line in FIRST.get(page.name, ()):
        assert run(f"avarc {line}") == 0
    for block in blocks(page):
        if not block.is_executed:
            continue
        if block.language == "python":
            exec(compile(block.replaced(), block.name, "exec"), names)
        else:
            for line in shell_lines(block.replaced()):
                assert run(line) == 0, f"{block.name}: {line}\n{capsys.readouterr().err}"


def run(line):
    """Run a command of avarc here, or another by the shell; its exit code."""
    words = words_of(line)
    if (arguments := avarc_words(words)) is not None:
        return main(small(arguments))
    assert words[0] in BY_BASH, line
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "PYTHON": sys.executable}
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], env=variables, check=False).returncode


@pytest.mark.parametrize("block", [block for block in ALL if block.is_only_parsed], ids=named)
def test_only_what_needs_a_download_or_a_gpu_is_not_executed(block):
    exempt = block.page.name == "CONTRIBUTING.md" or block.page.parent.name == "reference"
    assert exempt or block.mark == INDENTED or re.search("download|GPU", block.mark)


def test_marks_are_understood():
    written = sum(len(re.findall("^<!-- test:", page.read_text("utf-8"), re.MULTILINE)) for page in PAGES)
    assert written == sum(block.mark not in ("", INDENTED) for block in ALL)
    assert all(block.replaced() for block in ALL)
    assert not [block.name for block in ALL if block.mark and block.language not in ("sh", "python", "toml")]


def test_pages_that_are_tested_elsewhere_are():
    for page, test in TESTED_ELSEWHERE.items():
        assert page in (ROOT / test).read_text("utf-8")
    for test in {block.tested_in for block in ALL if block.tested_in}:
        (file,) = (ROOT / "tests").rglob(test)
        assert f'executed_by("{test}")' in file.read_text("utf-8")


def write_files(page, folder):
    """The TOML files that a page shows: those that begin with their name."""
    for block in blocks(page):
        if block.language == "toml" and (name := re.match(r"# ([\w-]+\.toml)\n", block.text)):
            (folder / name[1]).write_text(block.replaced())
