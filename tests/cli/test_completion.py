"""What the shell completes: asked as bash and zsh ask, without loading torch."""

import dataclasses
import os
import subprocess
import sys

import pytest
import typer

from avarc_cli.bank import Addition, Bank, Base
from avarc_cli.cli import app, main
from avarc_cli.zoo import registered
from avarc_cli.zoo.cards import LocalFile, tokenizer_card

DIGEST = "0" * 64
FREE = set(  # texts that are not names of a known list
    "--anneal --base --batch-size --betas --caption --class-names --decode --devices --discriminator-betas --host "
    "--license --mask --memory --multipliers --orders --patch-nums --priors --revision --rows --scales --shape --shard "
    "--short-side --tasks --template --tokenizer-weights --wandb --weights name new words".split()
)


@pytest.fixture
def complete(monkeypatch, capsys):
    """The words that bash would offer for the last of a command line's words."""

    def ask(*words):
        monkeypatch.setenv("_AVARC_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(("avarc", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        assert main([]) == 0
        out, err = capsys.readouterr()
        assert not err
        return out.split()

    return ask


@pytest.fixture
def bank(tmp_path):
    """A folder with a class bank of two classes; no command here reads their tensors."""
    added = [
        Addition(name=name, file=f"{name}.safetensors", sha256=DIGEST, method="lora", scale=1.0, offset=0.0)
        for name in ("amber", "blue")
    ]
    base = Base(name="digits", sha256=DIGEST, tokenizer_sha256=DIGEST)
    (tmp_path / "bank.json").write_text(Bank(tmp_path, base, tuple(added)).to_json())
    return str(tmp_path)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("cl", "classes classify"),
        ("train tit", "titok"),
        ("classify --pre", "--precision --preprocess"),
        ("classify photos --model var-d3", "var-d30 var-d30-cca var-d36"),
        ("encode photos --tokenizer digits-v", "digits-vqvae digits-vq"),
        ("classify x.h5 --precision fp", "fp32 fp16 fp8"),
        ("classify x.h5 --precision ca", "cascade"),
        ("add-class zebra photos --precision ca", ""),
        ("encode photos --precision ", "fp32 bf16"),
        ("train var photos --precision f", "fp32 fp16"),
        ("bench --precision bf16,f", "bf16,fp32 bf16,fp16 bf16,fp8"),
        ("bench --precision bf16,fp32,b", ""),
        ("bench --kernels torch,t", "torch,triton"),
        ("app --compare digits-l", "digits-llamagen"),
        ("sample 3 --preset rar-x", "rar-xl rar-xxl"),
        ("sample 3 --preset pa", "paper"),
        ("sample --model var-d16 goldfi", "goldfish goldfinch"),
        ("explain seven --vs ", "rival label prediction 0 1 2 3 4 5 6 7 8 9"),
        ("explain seven --class l", "label"),
        ("explain seven --model var-d16 --class goldf", "goldfish goldfinch"),
        ("explain seven --model var-d16 --class n0144", "n01440764 n01443537"),
        ("classify x.h5 --plan pa", "paper"),
        ("encode photos --dataset imagenet-v", "imagenet-val imagenet-v2"),
        ("classify photos --subset imagenetr", "imagenetr100"),
        ("classify photos --classes a", "all"),
        ("classify photos --captions b.txt --text-encoder flan", "flan-t5-xl"),
        ("add-class zebra photos --method ad", "adaln"),
        ("download lp", "lpips"),
        ("models show var-d1", "var-d16 var-d16-cca"),
        ("train var photos --recipe var-d2", "var-d20 var-d24"),
        ("train --recipe rar-x", "rar-xl rar-xxl"),
        ("train --recipe rar-xl --tokeni", "--tokenizer --tokenizer-config --tokenizer-weights"),
        ("evaluate digits-", "digits-incremental"),
        ("classify seven", ""),  # nothing to offer: the shell completes files
    ],
)
def test_names_and_values_are_offered(complete, line, offered):
    assert sorted(complete(*line.split(" "))) == sorted(offered.split())


@pytest.mark.parametrize(
    "line",
    [
        "classes show --bank {} a",
        "sample --bank {} am",
        "classify x --bank {} --classes am",
        "explain x --bank {} --class am",
        "explain x --bank {} --model nothing --vs am",
    ],
)
def test_the_classes_of_a_bank_are_offered(complete, bank, line):
    assert complete(*line.format(bank).split()) == ["amber"]


def test_models_that_were_added_are_offered(complete, tmp_path, monkeypatch):
    monkeypatch.setenv("AVARC_HOME", str(tmp_path))
    digits = tokenizer_card("digits-vqvae")
    registered.add(dataclasses.replace(digits, name="mine", weights=LocalFile(tmp_path / "mine.st")))
    assert complete("models", "remove", "") == ["mine"]
    assert complete("encode", "photos", "--tokenizer", "mi") == ["mine"]


@pytest.mark.parametrize("line", ["classes show --bank nowhere a", "train --recipe nothing --ste", "classes show a"])
def test_what_cannot_be_read_offers_nothing_and_says_nothing(complete, line):
    assert complete(*line.split()) == (["--steps"] if "--ste" in line else [])


def test_names_are_not_offered_where_the_registry_is_damaged(complete, tmp_path, monkeypatch):
    monkeypatch.setenv("AVARC_HOME", str(tmp_path))
    (tmp_path / "models.json").write_text("{")
    assert complete("classify", "x.h5", "--model", "var") == []


def commands(command):
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from commands(inner)


def test_every_option_that_takes_a_name_completes_it(bank):
    """An option of text is completed, or it is FREE: a new one has to be either."""
    silent = set()
    for command in commands(typer.main.get_command(app)):
        context = typer.Context(command)
        context.params = {"bank": bank, "model": "digits"}
        texts = [param for param in command.params if param.type_descriptor.annotation in (str, list[str])]
        silent |= {(command.name, param.opts[0]) for param in texts if not param.shell_complete(context, "")}
    assert len(silent) > len(FREE)
    assert not {(name, option) for name, option in silent if option not in FREE}


def test_a_shell_gets_its_answer_without_torch():
    """As zsh asks; Python reports each module that it imports."""
    env = {**os.environ, "_AVARC_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "avarc classify x --model var-d1"}
    command = [sys.executable, "-X", "importtime", "-m", "avarc_cli"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "var-d16" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.endswith(("| torch", "| h5py", "| matplotlib"))]
