"""A name stands for the old content or the new, whatever happens while it is replaced."""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
from pathlib import Path

import pytest
from killing import in_child, killed_at_call

from avarc_cli import storage

OLD, NEW = b"old" * 1000, b"new" * 2000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "file"
    for data in (OLD, NEW, b""):
        storage.write_bytes(path, data)
        assert path.read_bytes() == data
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("before", [None, OLD])
def test_a_kill_at_any_system_call_leaves_the_old_content_or_the_new(tmp_path, before):
    path, seen, calls = tmp_path / "file", [], 0
    while True:
        if before is not None:
            path.write_bytes(before)
        ended = killed_at_call(calls, lambda: storage.write_bytes(path, NEW))
        if ended is None:
            pytest.skip("this system does not allow tracing")
        seen.append(path.read_bytes() if path.exists() else None)
        storage.remove_leftovers(tmp_path)
        assert names(tmp_path) in (["file"], [])
        path.unlink(missing_ok=True)
        if ended:
            break
        calls += 1
    assert calls > 15, "the calls were not seen"
    assert seen == sorted(seen, key=lambda data: data == NEW) and set(seen) == {before, NEW}


def test_a_kill_at_any_system_call_leaves_the_folder_complete_or_absent(tmp_path):
    path, calls = tmp_path / "folder", 0

    def make():
        with storage.new_folder(path) as temporary:
            (temporary / "a").write_bytes(OLD)
            (temporary / "b").write_bytes(NEW)

    ended = False
    while not ended:
        ended = killed_at_call(calls, make)
        if ended is None:
            pytest.skip("this system does not allow tracing")
        storage.remove_leftovers(tmp_path)
        if path.exists():
            assert [(path / name).read_bytes() for name in names(path)] == [OLD, NEW]
            (path / "a").unlink(), (path / "b").unlink(), path.rmdir()
        assert names(tmp_path) == []
        calls += 1


def test_an_error_in_the_block_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def fail(temporary):
        temporary.write_bytes(NEW)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), storage.replacing(path) as temporary:
        fail(temporary)
    assert path.read_bytes() == OLD
    with pytest.raises(KeyboardInterrupt), storage.new_folder(tmp_path / "folder") as temporary:
        fail(temporary / "a")
    assert names(tmp_path) == ["file"]


def test_two_writers_at_once_do_not_mix_their_contents(tmp_path):
    path = tmp_path / "file"
    with storage.replacing(path) as first, storage.replacing(path) as second:
        assert first != second
        first.write_bytes(OLD)
        second.write_bytes(NEW)
    assert path.read_bytes() == OLD  # the outer block ended last
    contents = [bytes([number]) * 100_000 for number in range(8)]
    writers = [
        threading.Thread(target=lambda data=data: [storage.write_bytes(path, data) for _ in range(20)])
        for data in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in [OLD, *contents]
    assert names(tmp_path) == ["file"]


def test_what_was_planted_under_a_temporary_name_is_not_written_to(tmp_path, monkeypatch):
    precious, path = tmp_path / "precious", tmp_path / "file"
    precious.write_bytes(OLD)
    planted = [tmp_path / "file.tmp", tmp_path / "file.00000000.tmp", tmp_path / "file.11111111.tmp"]
    for link in planted[:2]:
        link.symlink_to(precious)
    planted[2].write_bytes(OLD)
    guessed = iter([b"\0" * 4, b"\x11" * 4, b"\x22" * 4])
    monkeypatch.setattr(os, "urandom", lambda count: next(guessed))
    storage.write_bytes(path, NEW)
    assert (path.read_bytes(), precious.read_bytes(), planted[2].read_bytes()) == (NEW, OLD, OLD)
    assert all(link.is_symlink() for link in planted[:2])


def test_a_link_is_replaced_and_its_target_is_not(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(OLD)
    link.symlink_to(target)
    storage.write_bytes(link, NEW)
    assert (link.read_bytes(), link.is_symlink(), target.read_bytes()) == (NEW, False, OLD)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        storage.write_bytes(tmp_path / "file", NEW)
        with storage.new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_contents_and_names_are_flushed_in_this_order(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(source, path):
        events.append("rename")
        replace(source, path)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    storage.write_bytes(tmp_path / "file", NEW)
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize(("code", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_flushed_is_no_error_but_a_broken_disk_is(tmp_path, monkeypatch, code, passes):
    fsync = os.fsync

    def failing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    if passes:
        storage.write_bytes(tmp_path / "file", NEW)
    else:
        with pytest.raises(OSError, match="Input/output"):
            storage.write_bytes(tmp_path / "file", NEW)


def limited(work):
    """Like a full disk: no file may grow beyond 4096 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(OSError, match="too large"):
        work()


def test_on_a_full_disk_the_old_content_stays_and_no_space_is_taken(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(OLD)
    assert in_child(lambda: limited(lambda: storage.write_bytes(path, NEW))) == 0
    assert in_child(lambda: limited(lambda: storage.check_space(path, len(NEW)))) == 0
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["file"]
    storage.check_space(path, len(NEW))
    assert path.read_bytes() == OLD


def test_leftovers_are_deleted_and_nothing_else(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    kept = ["a", "a.tmp", "a.tmpx", "b.0123abcd.tmp", "b.tmp", "tmp"]
    for name in [*kept, "a.0123abcd.tmp"]:
        (folder / name).write_bytes(OLD)
    (folder / "a.ffffffff.tmp").mkdir()
    (folder / "a.ffffffff.tmp" / "inside").write_bytes(OLD)
    (folder / "a.eeeeeeee.tmp").symlink_to(tmp_path)
    storage.remove_leftovers(folder, lambda name: name == "a")
    assert names(folder) == kept
    storage.remove_leftovers(folder)
    assert names(folder) == ["a", "a.tmp", "a.tmpx", "b.tmp", "tmp"]


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127 + "n", "n" * 243], ids=["ascii", "two bytes", "just too long"])
def test_the_longest_names_can_be_written_and_cleaned_up_after(tmp_path, name):
    path, other = tmp_path / name, tmp_path / (name[:-1] + "m")
    storage.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    for each in (path, other):
        storage._make_temporary(each, storage._create_file)  # as a killed process leaves it
    storage.remove_leftovers_of(path)
    storage.remove_leftovers_of(other)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_companions_of_long_names_differ():
    first, second = (storage.beside(Path("d") / ("n" * 254 + end), ".lock") for end in "ab")
    assert first != second
    assert all(len(each.name) == 255 and each.name.endswith(".lock") for each in (first, second))
    assert storage.beside(Path("a/b.h5"), ".lock") == Path("a/b.h5.lock")
