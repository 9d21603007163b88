"""Downloads published files: looks them up, checks the disk space, fetches, verifies, and only then installs them.

They go into the Hugging Face cache, in the layout that huggingface_hub documents (blobs by sha256, snapshots by commit,
refs by branch), or those of web servers into torch.hub's folder, so that other tools find files from avarc and avarc
finds theirs; or into a plain folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from avarc_cli.errors import AvarcError, CheckpointError
from avarc_cli.progress import Notify, Progress
from avarc_cli.storage import move_into_place
from avarc_cli.zoo import digests, hub, local_files, paths, weights_index
from avarc_cli.zoo.card import Downloadable, HubFile, WebFile
from avarc_cli.zoo.fetch import disk_error, fetch

PARTIAL = ".incomplete"  # huggingface_hub's own suffix

Check = Callable[[Path], None]
"""Reads a file. Raises: CheckpointError unless it holds what it should."""


@dataclass(frozen=True)
class DownloadPlan:
    """What has to be done for one file."""

    file: Downloadable  # with the requested revision
    folder: Path | None  # the plain folder that the user named; None for the cache: Hugging Face's, or torch.hub's
    target: Path  # the file whose content is verified: a blob of the cache, or the file in its folder
    commit: str  # that the revision refers to; "" for a file on a web server
    digest: str | None  # that the content must have (`digests`); None if unknown
    remote: hub.RemoteFile | None  # None if the server was not asked: offline, or what is in the cache cannot change

    @property
    def partial(self) -> Path:
        """Where the content is written until it is verified."""
        return self.target.with_name(self.target.name + PARTIAL)

    @property
    def in_hub_cache(self) -> bool:
        """Whether the target is a blob that snapshots link to."""
        return self.folder is None and isinstance(self.file, HubFile)

    @property
    def missing_bytes(self) -> int:
        """Disk space that is still needed, as far as known."""
        if self.target.exists() or self.remote is None:
            return 0
        done = self.partial.stat().st_size if self.partial.exists() else 0
        return max(0, (self.remote.size or 0) - done)


@dataclass(frozen=True)
class Downloaded:
    """A verified file. The field names are keys of the JSON output of `avarc download`."""

    repo: str  # owner/name; the server of a file that is not on the hub
    filename: str  # in the repository
    revision: str | None  # as requested; None for `main`
    commit: str  # that the revision refers to; "" for a file that is not on the hub
    sha256: str  # of the content, in hex
    size: int  # bytes
    path: Path  # where it is now
    was_here: bool  # whether nothing had to be downloaded


def make_plan(file: Downloadable, *, folder: Path | None, offline: bool, notify: Notify) -> DownloadPlan:
    """Find out what has to be done, without writing anything.

    Args:
        file: with the requested revision.
        folder: a plain folder to put the file into, or None for the cache.
        offline: do not use the network; the file must be in the cache.
        notify: called about waiting for retries, and if the hub is unreachable and a cached file is used.
    Raises: as hub.look_up; AvarcError if offline and the file is not in the cache.
    """
    cached = local_files.locate(file)
    never_changes = isinstance(file, WebFile) or hub.is_commit(file.revision)
    if offline or constants.HF_HUB_OFFLINE or (cached and never_changes):
        if cached is None:
            cache = paths.torch_folder() if isinstance(file, WebFile) else constants.HF_HUB_CACHE
            raise AvarcError(
                f"{file.filename} of {file.repo} is not on this machine",
                f"{cache} does not contain it, and offline it cannot be downloaded",
                "run it again online, or copy the file from a machine that has it",
            )
        return _plan_for_cached(file, cached, folder)
    if isinstance(file, WebFile):
        target = (folder or paths.torch_folder()) / file.filename
        return DownloadPlan(file, folder, target, "", file.sha256, hub.look_up_web(file, notify))
    try:
        remote = hub.look_up(file, notify)
    except hub.Unreachable as problem:
        if cached is None:
            raise
        notify(f"{problem.what}; using the cached {file.filename}")
        return _plan_for_cached(file, cached, folder)
    if folder is None and constants.HF_HUB_CACHE.startswith("~"):
        raise AvarcError(
            f"there is no place for {file.filename}", "the user has no home folder", "set HF_HOME, or use --dir"
        )
    target = folder / file.filename if folder else _storage(file) / "blobs" / str(remote.digest)
    return DownloadPlan(file, folder, target, remote.commit, remote.digest, remote)


def check_space(plans: Sequence[DownloadPlan]) -> None:
    """Raises: AvarcError if a disk does not have enough space for all files, before the first byte is fetched."""
    disks: dict[int, tuple[Path, int]] = {}
    for each in {each.target: each for each in plans}.values():
        folder = next(parent for parent in each.target.absolute().parents if parent.is_dir())
        disk = folder.stat().st_dev
        disks[disk] = folder, disks.get(disk, (folder, 0))[1] + each.missing_bytes
    for folder, size in disks.values():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise AvarcError(
                "there is not enough space for the download",
                f"{size / 1e9:,.2f} GB are needed in {folder}, {free / 1e9:,.2f} GB are free",
                "free some space, move the cache (HF_HOME), or use --dir on another disk",
            )


def execute(plan: DownloadPlan, progress: Progress, notify: Notify, check: Check | None = None) -> Downloaded:
    """Fetch the missing content, verify it, and install it.

    Args:
        check: of the content, after its digest.
    Raises: AvarcError as `fetch`; if the content is not what was published (it is deleted then); if a plain folder
        contains another file with this name. Interrupted, with the downloaded part kept.
    """
    file, target = plan.file, plan.target
    try:
        was_here = _is_installed(plan, progress, notify)
        if not was_here:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(plan, notify):
                if not _is_installed(plan, progress, notify):  # another process may have done it meanwhile
                    _install(plan, progress, notify, check)
        elif check is not None:
            check(target)
        path = _link(plan, plan.remote) if plan.in_hub_cache and plan.remote is not None else target
        stated = None if plan.digest is None or digests.is_git(plan.digest) else plan.digest
        sha256, size = stated or weights_index.sha256_of_file(path), path.stat().st_size
    except OSError as problem:
        raise disk_error(plan.partial, problem) from None
    progress(size, size, "verified" if plan.digest else "")
    return Downloaded(file.repo, file.filename, file.revision, plan.commit, sha256, size, path, was_here)


def _is_installed(plan: DownloadPlan, progress: Progress, notify: Notify) -> bool:
    """Whether the target exists with the right content. Otherwise deletes it, but only in the cache.

    Raises: AvarcError if it is another file in a plain folder.
    """
    target, digest = plan.target, plan.digest
    if not target.exists():
        return False
    if digest is None or _digest(target, digest, progress) == digest:
        return True
    if plan.folder:
        raise AvarcError(
            f"{target} is another file than {plan.file.filename} of {plan.file.repo}",
            f"its {_called(digest)} is not {digest}",
            "move or delete it, or use another --dir",
        )
    target.unlink()
    notify(f"{target} was corrupt (its {_called(digest)} is wrong) and has been deleted")
    return False


def _install(plan: DownloadPlan, progress: Progress, notify: Notify, check: Check | None) -> None:
    """Get the content from the cache or its server, verify it, and rename it to the target."""
    partial, cached = plan.partial, _cached_blob(plan)
    if cached is not None:
        shutil.copyfile(cached, partial)
    elif plan.remote is not None:
        fetch(plan.remote, partial, progress, notify)
    else:
        raise AvarcError(f"{plan.target} was corrupt", "its sha256 is wrong", "run it again online")
    found = _digest(partial, plan.digest or "", progress)
    if plan.digest not in (None, found):
        partial.unlink()
        raise AvarcError(
            f"the downloaded {plan.file.filename} of {plan.file.repo} is corrupt and has been deleted",
            f"its {_called(found)} is {found}; {plan.digest} is published",
            f"run it again; if it happens again, something on the way ({_way(plan)}, a proxy) changes files",
        )
    if check is not None:
        try:
            check(partial)
        except CheckpointError as problem:
            partial.unlink()
            what = f"the downloaded {plan.file.filename} of {plan.file.repo} is not what it should be"
            fix = f"run it again; if it happens again, something on the way ({_way(plan)}, a proxy) changes files"
            raise AvarcError(f"{what} and has been deleted", f"{problem.what}: {problem.why}", fix) from None
    move_into_place(partial, plan.target)


def _cached_blob(plan: DownloadPlan) -> Path | None:
    """For a plain folder: a file in the cache with the same content, which need not be downloaded."""
    if plan.folder is None:
        return None
    if plan.remote is None:
        return local_files.locate(plan.file)
    if isinstance(plan.file, WebFile):
        return None  # in the cache, it would not have been looked up
    blob = _storage(plan.file) / "blobs" / str(plan.remote.digest)
    return blob if blob.exists() else None


def _plan_for_cached(file: Downloadable, cached: Path, folder: Path | None) -> DownloadPlan:
    """The plan for a file in the cache: verify it, or copy it to the folder. The name of a blob is its digest."""
    target = folder / file.filename if folder else cached
    if isinstance(file, WebFile):
        return DownloadPlan(file, folder, target, "", file.sha256, None)
    name = cached.resolve().name
    digest = file.sha256 or (name if digests.is_digest(name) else None)
    commit = cached.relative_to(_storage(file) / "snapshots").parts[0]
    return DownloadPlan(file, folder, target, commit, digest, None)


def _link(plan: DownloadPlan, remote: hub.RemoteFile) -> Path:
    """Link the commit's snapshot to the blob, and the requested branch or tag to the commit. Returns the snapshot."""
    storage = _storage(plan.file)
    pointer = storage / "snapshots" / remote.commit / plan.file.filename
    if not pointer.exists() or pointer.resolve() != plan.target.resolve():
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)
        try:
            pointer.symlink_to(os.path.relpath(plan.target, pointer.parent))
        except OSError:  # the file system has no links
            shutil.copyfile(plan.target, pointer)
    revision = plan.file.revision or constants.DEFAULT_REVISION
    ref = storage / "refs" / revision
    if revision != remote.commit and (not ref.is_file() or ref.read_text() != remote.commit):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(remote.commit)
    return pointer


@contextmanager
def _lock(plan: DownloadPlan, notify: Notify) -> Iterator[None]:
    """Let only one process download a file; in the Hugging Face cache with the same lock as huggingface_hub."""
    if not plan.in_hub_cache:
        path = plan.target.with_name(f".{plan.target.name}.lock")
    else:
        folder = repo_folder_name(repo_id=plan.file.repo, repo_type="model")
        path = Path(constants.HF_HUB_CACHE) / ".locks" / folder / f"{plan.target.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(path, timeout=1))
        except Timeout:
            notify(f"another process is downloading {plan.file.filename}; waiting for it")
            stack.enter_context(FileLock(path))
        try:
            yield
        finally:
            if not plan.in_hub_cache:
                path.unlink(missing_ok=True)  # while the lock is held; other folders contain no such files


def _digest(path: Path, like: str, progress: Progress) -> str:
    size = path.stat().st_size
    return digests.of_file(path, like, lambda done: progress(done, size, f"checking {_called(like)}"))


def _way(plan: DownloadPlan) -> str:
    return hub.mirror_variable(plan.file)


def _called(digest: str) -> str:
    return "git digest" if digests.is_git(digest) else "sha256"


def _storage(file: Downloadable) -> Path:
    """The repository's folder in the Hugging Face cache."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.repo, repo_type="model")
