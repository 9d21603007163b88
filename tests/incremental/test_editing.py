"""Changes to a bank, killed at any step: the same change again gives the bytes of one that was not disturbed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from killing import DieAt, in_child

from avarc_cli.added_classes import AddedClass
from avarc_cli.bank import Base, read
from avarc_cli.errors import UsageError
from avarc_cli.incremental import editing
from avarc_cli.incremental.editing import NewClass

BASE = Base(name="tiny", sha256="0" * 64, tokenizer_sha256="1" * 64)


@pytest.fixture(scope="module")
def new_classes(tiny):
    base = tiny.likelihood()

    def new(name, seed):
        generator = torch.Generator().manual_seed(seed)
        added = AddedClass.new(base, seed, "embedding", rank=1, generator=generator).requires_grad_(False)
        return NewClass(name=name, added=added, method="embedding", offset=0.5, facts={})

    return [new("owl", 1), new("fox", 2)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def add(path, new_classes, *, die_at=None):
    if die_at is not None:
        DieAt(die_at).watch_files()
    editing.store(path, BASE, new_classes, replacing=True)


@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_addition_is_repeated_in_a_new_bank_and_in_one_that_exists(tmp_path, new_classes, existing):
    whole, step, died = tmp_path / "whole", 0, True
    if existing:
        add(whole, new_classes[:1])
    add(whole, new_classes)
    while died:
        bank = tmp_path / f"bank{step}"
        if existing:
            add(bank, new_classes[:1])
        died = in_child(partial(add, bank, new_classes, die_at=step)) < 0
        editing.open_or_new(bank, BASE)  # whatever the kill left is a bank, or can become one
        add(bank, new_classes)
        assert contents(bank) == contents(whole), step
        step += 1
    assert step > 5, f"only {step} steps were seen"


def test_files_of_classes_that_a_killed_process_did_not_record_are_deleted_and_others_kept(tmp_path, new_classes):
    bank = tmp_path / "bank"
    add(bank, new_classes)
    orphan = bank / read(bank).find("owl").file
    content = orphan.read_bytes()
    editing.remove(bank, ["owl"])
    assert not orphan.exists()
    orphan.write_bytes(content)
    mine = bank / "notes-0123456789ab.safetensors"  # named as one of ours, but its content is not what the name says
    mine.write_bytes(b"precious")
    editing.rename(bank, "fox", "red fox")
    assert not orphan.exists() and mine.read_bytes() == b"precious"
    orphan.write_bytes(content)  # as a kill leaves it before the last step of a removal
    with pytest.raises(UsageError, match="owl"):
        editing.remove(bank, ["owl"])
    assert not orphan.exists()
