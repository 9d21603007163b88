"""A published file onto this disk: looked up, room made sure of, fetched, verified, and only then put in its place.

Its place is the Hugging Face cache, laid out as huggingface_hub documents it (blobs by sha256, snapshots by commit,
refs by branch), so that other tools find the file and this one finds theirs; or a plain folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from avarc_cli.errors import AvarcError
from avarc_cli.progress import Progress
from avarc_cli.storage import move_into_place
from avarc_cli.zoo import hub, local_files, weights_index
from avarc_cli.zoo.card import HubFile
from avarc_cli.zoo.fetch import disk_trouble, fetch

PARTIAL = ".incomplete"  # huggingface_hub's own suffix


@dataclass(frozen=True)
class Planned:
    """What is to be done for one file.

    target is the file whose content is verified: a blob of the cache, or the file in a plain folder. remote is None
    where the file is here and nobody was asked (offline, or a commit that is here).
    """

    file: HubFile
    folder: Path | None
    target: Path
    commit: str
    sha256: str | None
    remote: hub.Remote | None

    @property
    def partial(self) -> Path:
        """Where bytes gather until they are verified."""
        return self.target.with_name(self.target.name + PARTIAL)

    @property
    def missing(self) -> int:
        """Bytes that the disk must still take, as far as that is known."""
        if self.target.exists() or self.remote is None:
            return 0
        here = self.partial.stat().st_size if self.partial.exists() else 0
        return max(0, (self.remote.size or 0) - here)


@dataclass(frozen=True)
class Downloaded:
    """A verified file: where it is, and exactly what it is."""

    repo: str
    filename: str
    revision: str | None
    commit: str
    sha256: str
    size: int  # bytes
    path: Path
    was_here: bool


def plan(file: HubFile, *, folder: Path | None, offline: bool, say: hub.Say) -> Planned:
    """Find out what is to be done. Nothing is written.

    Args:
        file: with the wanted revision.
        folder: a plain folder to put it in, or None for the Hugging Face cache.
        offline: ask nobody; the file must be in the cache.
        say: hears about waiting, and that the hub could not be asked about a file that is here.
    Raises: as hub.look_up; AvarcError when offline and the file is not here.
    """
    here = local_files.locate(file)
    if offline or constants.HF_HUB_OFFLINE or (here and hub.is_commit(file.revision)):
        if here is None:
            raise AvarcError(
                f"{file.filename} of {file.repo} is not on this machine",
                f"{constants.HF_HUB_CACHE} does not hold it, and offline nobody is asked",
                "run it again online, or copy the file from a machine that has it",
            )
        return _of_cached(file, here, folder)
    try:
        remote = hub.look_up(file, say)
    except hub.Unreachable as problem:
        if here is None:
            raise
        say(f"{problem.what}; the {file.filename} that is here is taken")
        return _of_cached(file, here, folder)
    target = folder / file.filename if folder else _storage(file) / "blobs" / remote.sha256
    return Planned(file, folder, target, remote.commit, remote.sha256, remote)


def check_space(planned: Sequence[Planned]) -> None:
    """Raises AvarcError when the disk cannot take what is missing, before the first byte is fetched."""
    disks: dict[int, tuple[Path, int]] = {}
    for one in {one.target: one for one in planned}.values():
        place = next(parent for parent in one.target.absolute().parents if parent.is_dir())
        disk = place.stat().st_dev
        disks[disk] = place, disks.get(disk, (place, 0))[1] + one.missing
    for place, size in disks.values():
        free = shutil.disk_usage(place).free
        if size > free:
            raise AvarcError(
                "there is not enough space for the download",
                f"{size / 1e9:,.2f} GB are needed in {place}, {free / 1e9:,.2f} GB are free",
                "free some space, move the cache (HF_HOME), or use --dir on another disk",
            )


def carry_out(planned: Planned, progress: Progress, say: hub.Say) -> Downloaded:
    """Fetch what is missing, verify it, and put it in its place.

    Raises: AvarcError as `fetch`; when the content is not what the hub says it is (then it is deleted); when a plain
        folder holds another file of this name. Interrupted, with what is here kept.
    """
    file, target = planned.file, planned.target
    try:
        was_here = _is_right(planned, progress, say)
        if not was_here:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(planned, say):
                if not _is_right(planned, progress, say):  # nobody else made it meanwhile
                    _make(planned, progress, say)
        path = target if planned.folder or planned.remote is None else _link(planned, planned.remote)
        sha256, size = planned.sha256 or weights_index.digest(path), path.stat().st_size
    except OSError as problem:
        raise disk_trouble(planned.partial, problem) from None
    progress(size, size, "verified" if planned.sha256 else "")
    return Downloaded(file.repo, file.filename, file.revision, planned.commit, sha256, size, path, was_here)


def _is_right(planned: Planned, progress: Progress, say: hub.Say) -> bool:
    """Whether the verified file is here already. A damaged one in the cache is deleted, one of the user's is not."""
    target, sha256 = planned.target, planned.sha256
    if not target.exists():
        return False
    if sha256 is None or _digest(target, progress) == sha256:
        return True
    if planned.folder:
        raise AvarcError(
            f"{target} is another file than {planned.file.filename} of {planned.file.repo}",
            f"its sha256 is not {sha256}",
            "take it away, or name another --dir",
        )
    target.unlink()
    say(f"{target} was damaged (its sha256 is wrong) and is deleted")
    return False


def _make(planned: Planned, progress: Progress, say: hub.Say) -> None:
    partial, cached = planned.partial, _cached_blob(planned)
    if cached is not None:
        shutil.copyfile(cached, partial)
    elif planned.remote is not None:
        fetch(planned.remote, partial, progress, say)
    else:
        raise AvarcError(f"{planned.target} was damaged", "its sha256 is wrong", "run it again online")
    found = _digest(partial, progress)
    if planned.sha256 not in (None, found):
        partial.unlink()
        raise AvarcError(
            f"{planned.file.filename} of {planned.file.repo} came damaged, and was deleted",
            f"its sha256 is {found}; the hub says {planned.sha256}",
            "run it again; should it stay so, something on the way (HF_ENDPOINT, a proxy) changes files",
        )
    move_into_place(partial, planned.target)


def _cached_blob(planned: Planned) -> Path | None:
    """For a plain folder: the same content in the cache, so that it need not be fetched."""
    if planned.folder is None:
        return None
    if planned.remote is None:
        return local_files.locate(planned.file)
    blob = _storage(planned.file) / "blobs" / planned.remote.sha256
    return blob if blob.exists() else None


def _of_cached(file: HubFile, here: Path, folder: Path | None) -> Planned:
    """The plan for a file of the cache: check it, or copy it. A blob's name is its sha256."""
    blob = here.resolve()
    sha256 = blob.name if len(blob.name) == 64 else None
    commit = here.relative_to(_storage(file) / "snapshots").parts[0]
    return Planned(file, folder, folder / file.filename if folder else here, commit, sha256, None)


def _link(planned: Planned, remote: hub.Remote) -> Path:
    """Let the commit's snapshot, and the branch or tag that was asked for, lead to the blob."""
    storage = _storage(planned.file)
    pointer = storage / "snapshots" / remote.commit / planned.file.filename
    if not pointer.exists() or pointer.resolve() != planned.target.resolve():
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)
        try:
            pointer.symlink_to(os.path.relpath(planned.target, pointer.parent))
        except OSError:  # a file system without links
            shutil.copyfile(planned.target, pointer)
    revision = planned.file.revision or constants.DEFAULT_REVISION
    ref = storage / "refs" / revision
    if revision != remote.commit and (not ref.is_file() or ref.read_text() != remote.commit):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(remote.commit)
    return pointer


@contextmanager
def _lock(planned: Planned, say: hub.Say) -> Iterator[None]:
    """Only one process fetches a file; in the cache with the lock that huggingface_hub itself holds."""
    if planned.folder:
        path = planned.target.with_name(f".{planned.target.name}.lock")
    else:
        folder = repo_folder_name(repo_id=planned.file.repo, repo_type="model")
        path = Path(constants.HF_HUB_CACHE) / ".locks" / folder / f"{planned.target.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(path, timeout=1))
        except Timeout:
            say(f"another process is downloading {planned.file.filename}; waiting for it")
            stack.enter_context(FileLock(path))
        try:
            yield
        finally:
            if planned.folder:
                path.unlink(missing_ok=True)  # while it is held: a plain folder stays plain


def _digest(path: Path, progress: Progress) -> str:
    size = path.stat().st_size
    return weights_index.digest(path, lambda done: progress(done, size, "checking sha256"))


def _storage(file: HubFile) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.repo, repo_type="model")
