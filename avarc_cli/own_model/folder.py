"""The folders of `avarc train classifier`: OUT, complete or not there, and OUT.training, with finished steps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from avarc_cli import strict_json
from avarc_cli.errors import CheckpointError, UsageError, describe_differences, shorten_list
from avarc_cli.names import to_json
from avarc_cli.storage import beside, new_folder, write_bytes
from avarc_cli.work.locks import only_writer
from avarc_cli.zoo import model_folder

TOKENIZER, GENERATOR = "tokenizer.safetensors", "generator.safetensors"
PLAN, CARD = "plan.json", "README.md"
OWN = {TOKENIZER, GENERATOR, PLAN, CARD, model_folder.FILE}
REQUEST = "request.json"
"""In the working folder: what is asked for, and what was decided for it."""

_Decided = TypeVar("_Decided")


def check_out(out: Path, *, overwrite: bool) -> None:
    """Check that a model folder can be written here without destroying anything. Raises: UsageError."""
    what = f"cannot write '{out}'"
    if out.name in ("", ".."):
        raise UsageError(what, "it has no name of its own", "name a new folder: --out mine/")
    if not out.parent.is_dir():
        raise UsageError(what, f"'{out.parent}' is not a folder", "name one in a folder that exists")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise UsageError(what, f"you have no permission to write into '{out.parent}'", "name one in another folder")
    work = working(out)
    _check_own(work, lambda names: REQUEST in names or all(name.startswith(REQUEST) for name in names))
    # It is deleted before the working folder.
    _check_own(_replaced(out), lambda names: names <= OWN and (work / REQUEST).exists())
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise UsageError(what, "it is not a folder", "name a folder")
    there = {path.name for path in out.iterdir()}
    if not there:
        return
    if not overwrite:
        raise UsageError(f"'{out}' exists", fix="name another folder, or add --overwrite")
    if model_folder.FILE not in there or there - OWN:
        others = shorten_list(sorted(there - OWN))
        raise UsageError(what, f"it holds other files than a model's: {others}", "name another folder")


def working(out: Path) -> Path:
    """Where finished steps are kept until OUT is complete."""
    return beside(out, ".training")


@contextmanager
def reserved(out: Path, *, overwrite: bool) -> Iterator[None]:
    """Check as `check_out`, and be the only process that makes this folder. Raises: as `only_writer` too."""
    check_out(out, overwrite=overwrite)
    with only_writer(out):
        replaced = _replaced(out)
        if replaced.is_dir():  # of a process that was killed while it replaced OUT
            if out.exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(out)
                check_out(out, overwrite=overwrite)
        yield


def open_working(
    out: Path, asked: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], _Decided]
) -> _Decided | None:
    """What was decided by an earlier call that did not finish; None where there was none.

    Args:
        asked: what decides about the result, as JSON types.
        parse: from what was noted of the decisions; raises TypeError or KeyError for anything else.
    Raises: UsageError for the working folder of another training, CheckpointError for a damaged one.
    """
    folder = working(out)
    try:
        text = (folder / REQUEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        values = strict_json.parse_object(text)
        earlier, decided = dict(values["asked"]), parse(values["decided"])
    except (ValueError, KeyError, TypeError) as problem:
        why = f"it has no {problem}" if isinstance(problem, KeyError) else str(problem)
        raise CheckpointError(f"'{folder / REQUEST}' is damaged", why, f"delete '{folder}'") from None
    if differences := describe_differences(earlier, asked):
        raise UsageError(
            f"'{folder}' holds an unfinished training of something else",
            differences,
            f"repeat that command to finish it, or delete '{folder}' to start over",
        )
    return decided


def start_working(out: Path, asked: Mapping[str, Any], decided: Mapping[str, Any]) -> bool:
    """Note what is asked for, and decided, before anything is trained.

    Returns: whether nothing was noted before.
    Raises: OSError.
    """
    folder = working(out)
    folder.mkdir(exist_ok=True)
    if (folder / REQUEST).exists():  # `open_working` has compared it
        return False
    write_bytes(folder / REQUEST, json.dumps({"asked": asked, "decided": decided}, indent=1).encode())
    return True


def finish(out: Path, facts: Mapping[str, Any], card: str, *, has_plan: bool) -> None:
    """Make OUT from the working folder, in one step, and delete that. Raises: OSError."""
    work, replaced = working(out), _replaced(out)
    with new_folder(out) as temporary:
        for name in (TOKENIZER, GENERATOR, *([PLAN] if has_plan else [])):
            shutil.copyfile(work / name, temporary / name)
        (temporary / model_folder.FILE).write_text(to_json(facts, indent=1) + "\n", encoding="utf-8")
        (temporary / CARD).write_text(card, encoding="utf-8")
        if out.exists():
            out.rename(replaced)
    if replaced.is_dir():
        shutil.rmtree(replaced)
    _delete(work)


def _replaced(out: Path) -> Path:
    return beside(out, ".replaced")


def _check_own(folder: Path, is_own: Callable[[set[str]], bool]) -> None:
    """Raises: UsageError when something else than our own folder has this name.

    Args:
        is_own: whether our own may hold what has these names.
    """
    if not os.path.lexists(folder):
        return
    why = "it is not a folder"
    if folder.is_dir() and not folder.is_symlink():
        names = {path.name for path in folder.iterdir()}
        if is_own(names):
            return
        why = f"it holds {shorten_list(sorted(names))}"
    raise UsageError(f"'{folder}' is not a folder of avarc's", why, "move it, or name another --out")


def _delete(work: Path) -> None:
    """Delete the working folder, its request last: without one, a kill would leave a folder that is not ours."""
    for path in work.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != REQUEST:
            path.unlink()
    shutil.rmtree(work)
