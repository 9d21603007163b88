"""Changes to a class bank. Each one reads the bank again under its lock and replaces bank.json atomically."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avarc_cli.bank import FILE, Addition, Bank, Base, read
from avarc_cli.data.labels import LabelSpace, normalize
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.storage import remove_leftovers, write_bytes
from avarc_cli.work.locks import lock_file, only_writer

if TYPE_CHECKING:
    from avarc_cli.added_classes import AddedClass

WAIT = 30.0  # seconds to wait for another process's change, which takes milliseconds
CLASS_FILE = re.compile(r".+-([0-9a-f]{12})\.safetensors")  # ends with the first digits of its sha256
FORBIDDEN = re.compile(r"[,\x00-\x1f\x7f]")  # names are used in comma-separated lists and one to a line


@dataclass(frozen=True, kw_only=True)
class NewClass:
    """A fitted class that is to be stored."""

    name: str  # of the class
    added: AddedClass  # its parameters
    method: str  # one of added_classes.METHODS
    offset: float  # nats
    facts: dict[str, Any]  # about the fit, for `avarc classes show`


@dataclass(frozen=True, kw_only=True)
class Existing:
    """What to do with names that the bank has already. By default they are an error."""

    replace: bool = False  # fit the class again
    skip: bool = False  # leave it as it is


def check_names(names: list[str], classes: LabelSpace | None, bank: Bank | None, existing: Existing) -> list[str]:
    """The names to add, with those that the bank has treated as `existing` says.

    Args:
        classes: the model's own, None where they are not known yet. bank: None where there is none.
    Raises: UsageError for names that the model has, that cannot be class names, or that appear twice.
    """
    added = () if bank is None else bank.additions
    stored = {normalize(a.name) for a in added}
    if existing.skip:
        names = [name for name in names if normalize(name) not in stored]
    known = classes or LabelSpace(f"the classes of '{bank.path}'" if bank else "", (), ())
    if bank is not None and not existing.replace:
        known = bank.extend(known)
    for name in names:
        check_name(name, known)
    if len({normalize(name) for name in names}) < len(names):
        raise UsageError(
            "two of the classes have the same name",
            ", ".join(names),
            "case and underscores are ignored",
        )
    return names


def check_name(name: str, classes: LabelSpace) -> None:
    """Check the name of a new class. Raises: UsageError for an unusable one, and one that `classes` has already."""
    if not name.strip() or name != name.strip() or FORBIDDEN.search(name):
        raise UsageError(
            f"'{name}' cannot be a class name",
            "a name is not empty and has no commas, no control characters and no spaces at either end",
        )
    if normalize(name) in {normalize(known) for known in (*classes.ids, *classes.names)}:
        raise UsageError(
            f"the class '{name}' exists already",
            f"among {classes.name}",
            "choose another name, or --replace an added one",
        )


def open_or_new(path: Path, base: Base) -> Bank:
    """The bank at `path`, checked against `base`; an empty one where none exists.

    Raises: UsageError for a bank of another model, and for a folder with other contents.
    """
    bank = read_if_any(path)
    if bank is None:
        return Bank(path, base)
    bank.check(base)
    return bank


def read_if_any(path: Path) -> Bank | None:
    """The bank at `path`, of whatever model; None where none exists. Raises: UsageError for other contents."""
    if (path / FILE).exists():
        return read(path)
    if path.exists() and (not path.is_dir() or any(not e.name.startswith(FILE) for e in path.iterdir())):
        raise UsageError(f"'{path}' is not a class bank", f"it exists, and has no {FILE}", "name another --bank")
    return None


def store(path: Path, base: Base, new: Sequence[NewClass], *, replacing: bool = False) -> Bank:
    """Add these classes to the bank at `path`, all or none, and return the changed bank.

    Waits for another process that is changing the bank. With `replacing`, classes of the same names are removed; the
    others keep their order and files.

    Raises: UsageError when a name was taken meanwhile; AvarcError when the bank stays locked or cannot be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    with _editing(path):
        bank = open_or_new(path, base)
        _remove_unrecorded(bank)
        if not (path / FILE).exists():
            _write_bank(bank)  # first: a killed process leaves a bank, to which the same command adds again
        names = {normalize(c.name) for c in new}
        taken = [a for a in bank.additions if normalize(a.name) in names]
        if taken and not replacing:
            raise UsageError(
                f"the class '{taken[0].name}' exists already", f"in '{path}'", "rename one, or --replace it"
            )
        kept = tuple(a for a in bank.additions if a not in taken)
        changed = replace(bank, additions=kept + tuple(_write(path, c) for c in new))
        _commit(changed, taken)
    return changed


def clean(path: Path) -> None:
    """Delete what a killed process left in the bank at `path`: its lock, and what it had not recorded yet.

    Raises: as `store`.
    """
    if lock_file(path / FILE).exists():
        with _editing(path):
            _remove_unrecorded(read(path))


def remove(path: Path, names: Sequence[str]) -> Bank:
    """Remove added classes and their files. Raises: UsageError for unknown names; as `store`."""
    return _change(path, lambda bank: replace(bank, additions=_without(bank, names)))


def rename(path: Path, old: str, new: str) -> Bank:
    """Rename an added class. Raises: UsageError for an unknown or a taken name; as `store`."""

    def renamed(bank: Bank) -> Bank:
        found = bank.find(old)
        others = tuple(a.name for a in bank.additions if a is not found)
        check_name(new, LabelSpace(f"the classes of '{path}'", others, others))
        return replace(bank, additions=tuple(replace(a, name=new) if a is found else a for a in bank.additions))

    return _change(path, renamed)


def _without(bank: Bank, names: Sequence[str]) -> tuple[Addition, ...]:
    removed = [bank.find(name) for name in names]
    return tuple(a for a in bank.additions if a not in removed)


def _change(path: Path, change: Callable[[Bank], Bank]) -> Bank:
    read(path)  # before a lock file is created in a folder that is no bank
    with _editing(path):
        bank = read(path)
        _remove_unrecorded(bank)
        changed = change(bank)
        _commit(changed, bank.additions)
    return changed


def _write(path: Path, new: NewClass) -> Addition:
    from safetensors.torch import save

    tensors = {key: tensor.cpu().contiguous() for key, tensor in new.added.tensors().items()}
    rank = max((len(t) for key, t in tensors.items() if ".lora_A." in key), default=0)
    # One metadata entry: safetensors writes several in any order, and the same class must give the same bytes.
    data = save(tensors, {"lora_alpha": f"{new.added.scale * rank:g}"})
    digest = hashlib.sha256(data).hexdigest()
    slug = re.sub(r"[^\w-]+", "-", new.name).strip("-")[:40] or "class"
    file = f"{slug}-{digest[:12]}.safetensors"
    write_bytes(path / file, data)
    return Addition(
        name=new.name,
        file=file,
        sha256=digest,
        method=new.method,
        scale=new.added.scale,
        offset=new.offset,
        facts=new.facts,
    )


def _commit(bank: Bank, before: Sequence[Addition]) -> None:
    """Write the bank, then delete the files that no class uses any more; equal classes share one file."""
    _write_bank(bank)
    for file in {a.file for a in before} - {a.file for a in bank.additions}:
        (bank.path / file).unlink(missing_ok=True)


def _remove_unrecorded(bank: Bank) -> None:
    """Delete the files of classes that killed processes did not record yet, or did not delete any more."""
    used = {a.file for a in bank.additions}
    for path in bank.path.glob("*.safetensors"):
        if path.name not in used and _is_class_file(path):
            path.unlink()


def _is_class_file(path: Path) -> bool:
    """Whether `_write` made the file."""
    digest = CLASS_FILE.fullmatch(path.name)
    return digest is not None and hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest[1])


def _write_bank(bank: Bank) -> None:
    write_bytes(bank.path / FILE, bank.to_json().encode())


@contextmanager
def _editing(path: Path) -> Iterator[None]:
    """Hold the bank's lock, waiting for another holder. Raises: AvarcError when it stays locked."""
    until = time.monotonic() + WAIT
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(only_writer(path / FILE))
                break
            except AvarcError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        remove_leftovers(path)
        yield
