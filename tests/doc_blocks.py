"""The fenced blocks of the documentation, and how a command line of avarc is read without being run.

A comment on the line above a block says how it is tested:

    <!-- test: only parsed, because it downloads weights -->
    <!-- test: digits for var-d16, digits-vqvae for var-vqvae-256 -->
    <!-- test: in test_ray.py, digits for var-d16 -->

Without one, a block is executed; the second kind is executed with words replaced, the third by a test in another file.
A command that trains or measures is made small: the words of SMALL are added to it, and the last value of an option
counts. Blocks of docs/reference, and indented commands, which are those of figures, are only parsed. In a block that is
executed, commands of BY_BASH are too, and nothing else but avarc.
"""

from __future__ import annotations

import itertools
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from avarc_cli.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ONLY_PARSED = "only parsed, because "
COMMANDS: Any = typer.main.get_command(app)

BY_BASH = ("python", "echo", "sha256sum", "tests/benchmarks/record.sh")
INDENTED = ONLY_PARSED + "it is indented"
_STEP = "--steps 1 --batch-size 2 --overwrite"
_GENERATOR = f"{_STEP} --depth 1 --width 192"
SMALL = {
    "train tokenizer": f"{_STEP} --image-size 16 --patch-nums 1,2 --width 32 --blocks 1",
    "train vq": f"{_STEP} --image-size 16 --width 32 --multipliers 1,1,1 --blocks 1",
    "train maskgit-vq": f"{_STEP} --image-size 16 --width 32 --multipliers 1,1,1 --blocks 1",
    "train titok": f"{_STEP} --image-size 16",
    "train tatitok": f"{_STEP} --image-size 16",
    "train var": _GENERATOR,
    "train llamagen": _GENERATOR,
    "train llamagen-t2i": _GENERATOR,
    "train randar": _GENERATOR,
    "train rar": _GENERATOR,
    "train maskgit": _GENERATOR,
    "train maskgen": _GENERATOR,
    "train cca": _STEP,
    "train text-encoder": "--steps 1",
    "train classifier": "--time 0.0001 --image-size 8",
    "train --recipe": f"{_GENERATOR} --precision fp32",
    "add-class": "--steps 1 --variants 1 --no-offset",
    "incremental": "--steps 1 --variants 1",
    "bench": "--pairs 1 --rounds 1",
}
"""What is added to a command that begins so."""

_ELSEWHERE = re.compile(r"in (test_\w+\.py)(?:, |$)")
_INDENTED = re.compile(r"(?<=\n\n)((?: {4}[^\n]+\n)+)")
_COMMAND = re.compile(r"^(?:[A-Z_]+=\S* )?(?:avarc|python|torchrun|pip|make) ", re.MULTILINE)
_FENCE = re.compile(r"^(?:<!-- test: (?P<mark>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of its fence
    language: str
    text: str
    mark: str  # "" for none

    @property
    def is_only_parsed(self) -> bool:
        return self.mark.startswith(ONLY_PARSED) or self.page.parent.name == "reference"

    @property
    def tested_in(self) -> str:
        """Name of the file whose test executes it, "" for the one of all pages."""
        match = _ELSEWHERE.match(self.mark)
        return match[1] if match else ""

    @property
    def is_executed(self) -> bool:
        """By the test of all pages."""
        return self.language in ("sh", "python") and not self.is_only_parsed and not self.tested_in

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def replaced(self) -> str:
        """The text with the words replaced that its mark replaces."""
        text = self.text
        pairs = "" if self.is_only_parsed else _ELSEWHERE.sub("", self.mark)
        for pair in filter(None, pairs.split(", ")):
            new, _, old = pair.partition(" for ")
            assert old and re.search(_word(old), text), f"{self.name}: the mark replaces nothing: {pair}"
            text = re.sub(_word(old), new, text)
        return text


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    found = [
        Block(page, _line(text, m.start("language")), m["language"], m["text"], m["mark"] or "")
        for m in _FENCE.finditer(text)
    ]
    for m in _INDENTED.finditer(text):
        dedented = textwrap.dedent(m[0])
        if _COMMAND.search(dedented):
            found.append(Block(page, _line(text, m.start()), "sh", dedented, INDENTED))
    return sorted(found, key=lambda block: block.line)


def executed_by(file: str) -> list[Block]:
    """The blocks that tests of the file of this name execute."""
    return [block for page in PAGES for block in blocks(page) if block.tested_in == file]


def shell_lines(text: str) -> list[str]:
    """The commands of a shell block, each on one line."""
    return [line for line in text.replace("\\\n", " ").splitlines() if words_of(line)]


def words_of(line: str) -> list[str]:
    """The words of a command, without comments and without the variables set for it."""
    return [*itertools.dropwhile(re.compile("[A-Z_]+=.*").fullmatch, shlex.split(line, comments=True))]


def command_lines(text: str) -> list[list[str]]:
    """The words of each command of a shell block."""
    return [words_of(line) for line in shell_lines(text)]


def small(words: Sequence[str]) -> list[str]:
    """The words of a command of avarc, with those that make a training small."""
    added = [more for command, more in SMALL.items() if list(words[: len(command.split())]) == command.split()]
    return [*words, *shlex.split(" ".join(added))]


def avarc_words(words: Sequence[str]) -> list[str] | None:
    """What follows avarc in a command line, also under torchrun; None for other programs."""
    if words[0] == "avarc":
        return list(words[1:])
    if words[0] == "torchrun" and "avarc_cli" in words:
        return list(words[words.index("avarc_cli") + 1 :])
    return None


def parse(words: Sequence[str]) -> None:
    """Read a command line as avarc does, without running anything or looking at values. `...` stands for other words.

    Raises: what avarc raises for an unknown command or option; AssertionError for too many arguments, or too few.
    """
    is_whole = words[-1] != "..."
    context = COMMANDS.make_context("avarc", list(words if is_whole else words[:-1]))
    command, rest = COMMANDS, [*context._protected_args, *context.args]
    while rest and hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, rest)
        if hasattr(command, "commands"):
            context = command.make_context(name, rest, parent=context)
            rest = [*context._protected_args, *context.args]
    given, left, _ = command.make_parser(type(context)(command, parent=context)).parse_args(args=rest)
    missing = [param.name for param in command.params if param.required and not given.get(param.name)]
    assert not left, f"too many arguments: {left}"
    assert not missing or "config" in given or not is_whole, f"missing: {missing}"


def unknown_words(page: Path) -> list[str]:
    """The `avarc ...` and `--option ...` in the sentences of a page that avarc does not have."""
    sentences = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = []
    for span in re.findall(r"`((?:avarc |--)[^`\n]+)`", sentences):
        words, command = span.split(), COMMANDS
        if words[0] == "avarc":
            words = words[1:]
            while words and words[0] in getattr(command, "commands", {}):
                command, words = command.commands[words[0]], words[1:]
            if hasattr(command, "commands") and words and re.fullmatch("[a-z][a-z-]*", words[0]):
                found.append(span)
        known = _options(COMMANDS) if hasattr(command, "commands") else _options(command)
        if any(word.startswith("--") and word.partition("=")[0].rstrip(",") not in known for word in words):
            found.append(span)
    return found


def _options(command: Any) -> set[str]:
    """The options of a command and of those in it."""
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    return own.union(*(_options(inner) for inner in getattr(command, "commands", {}).values()))


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _word(word: str) -> str:
    return rf"(?<![\w.-]){re.escape(word)}(?![\w-])(?!\.\w)"
