"""Every command explains itself, and none loads a heavy library to do so."""

import json
import re

import pytest
import typer
from programs import run

from avarc_cli.cli import app, main

HEAVY = ("torch", "numpy", "h5py", "PIL", "safetensors", "huggingface_hub", "matplotlib")


def commands(command, words=()):
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


ALL = dict(commands(typer.main.get_command(app)))


@pytest.fixture(params=ALL.items(), ids=lambda item: " ".join(("avarc", *item[0])))
def command(request):
    return request.param


def test_the_commands_are_these():
    """A change here is a change users notice: the documentation and CHANGELOG.md go with it."""
    assert {" ".join(words) for words in ALL} == {
        "",
        "add-class",
        "app",
        "bench",
        "cache",
        "cache export",
        "cache head",
        "cache import",
        "cache info",
        "cache merge",
        "cache verify",
        "captions",
        "captions encode",
        "classes",
        "classes list",
        "classes remove",
        "classes rename",
        "classes show",
        "classify",
        "compare",
        "data",
        "data check",
        "demo",
        "doctor",
        "download",
        "encode",
        "evaluate",
        "explain",
        "export",
        "fid",
        "incremental",
        "models",
        "models add",
        "models remove",
        "models show",
        "models verify",
        "reconstruct",
        "report",
        "runs",
        "runs merge",
        "sample",
        "train",
        "train cca",
        "train classifier",
        "train llamagen",
        "train maskgen",
        "train maskgit",
        "train maskgit-vq",
        "train randar",
        "train recipes",
        "train rar",
        "train tatitok",
        "train titok",
        "train text-encoder",
        "train llamagen-t2i",
        "train tokenizer",
        "train var",
        "train vq",
        "tune",
    }


def test_help_prints_an_example_and_every_option(command, capsys):
    words, parsed = command
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^ +Example: avarc {' '.join(words)}", shown, re.MULTILINE), shown
    assert all(name in shown for param in parsed.params for name in param.opts if name.startswith("--"))


def test_every_option_and_argument_has_a_help_sentence(command):
    _, parsed = command
    silent = [param.name for param in parsed.params if not getattr(param, "help", None) and param.name != "help"]
    assert not silent


def test_every_command_begins_with_a_sentence(command):
    _, parsed = command
    first = parsed.help.split("\n\n")[0]
    assert first.endswith("."), first


@pytest.mark.parametrize("words", [words for words, one in ALL.items() if hasattr(one, "commands")])
def test_every_group_lists_its_commands_once_with_their_whole_first_sentence(words, capsys):
    assert main([*words, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, inner in ALL[words].commands.items():
        sentence = " ".join(re.match(r"(.+?\.)(?:\s|$)", inner.help, re.DOTALL)[1].split())
        assert said.count(f" {name} {sentence}") == 1, name


@pytest.mark.parametrize("words", [(), ("train",)])
def test_every_command_is_in_one_section(words):
    group = ALL[words]
    assert sorted(" ".join(group.sections.values()).split()) == sorted(group.commands)


def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command[0], "--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert not [line for line in shown if len(line) > 80]


def test_no_help_imports_a_heavy_library():
    done = run("loaded_modules", *(" ".join(words) for words in ALL))
    assert done.returncode == 0, done.stderr
    assert not set(HEAVY) & set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_imports_no_heavy_library():
    loaded = json.loads(run("loaded_modules").stdout)
    assert "avarc_cli" in loaded and not set(HEAVY) & set(loaded)
