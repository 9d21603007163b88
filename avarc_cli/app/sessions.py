"""Users of the app, each with images and classes of their own, for as long as they use it."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avarc_cli.classifier import Classifier
from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from avarc_cli.app.jobs import Job

MAX_SESSIONS = 64
MAX_IDLE = 3600.0  # seconds until a session is forgotten
MAX_IMAGES = 16  # of a session; the oldest are forgotten
MAX_BYTES = 2**30  # of the images of all sessions; those of the longest idle one are forgotten first


@dataclass(eq=False)
class Session:
    """One user's state."""

    key: str
    """In the user's cookie."""
    images: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    """Uploaded files by id, encoded as they came."""
    classifier: Classifier | None = None
    """With the classes that the user added; None without any."""
    bank: tempfile.TemporaryDirectory[str] | None = None
    """Where these are."""
    used: float = 0.0
    """When it was last asked for, seconds."""
    jobs: list[Job[Any]] = field(default_factory=list)
    """What is done for the user, or waits."""

    @property
    def progress(self) -> str:
        """Of the first of these that tells any."""
        return next(filter(None, (job.progress for job in self.jobs)), "")

    def keep(self, data: bytes) -> str:
        """Keep an uploaded file; returns its id."""
        key = secrets.token_urlsafe(8)
        self.images[key] = data
        while len(self.images) > MAX_IMAGES:
            self.images.popitem(last=False)
        return key

    def image(self, key: str) -> bytes:
        """An uploaded file. Raises: UsageError for one that is not there any more."""
        if key not in self.images:
            raise UsageError("this image is not here any more", "upload it again")
        return self.images[key]

    def bank_folder(self) -> Path:
        """The folder of this user's bank, made when it is needed first."""
        self.bank = self.bank or tempfile.TemporaryDirectory(prefix="avarc-app-", ignore_cleanup_errors=True)
        return Path(self.bank.name) / "bank"

    def close(self) -> None:
        """Delete what the user added."""
        if self.bank is not None:
            self.bank.cleanup()


class Sessions:
    """All sessions, of which the idle ones are forgotten."""

    def __init__(self) -> None:
        self._by_key: dict[str, Session] = {}

    def find(self, key: str | None) -> Session:
        """The session of a cookie; a new one for an unknown cookie, or none. Raises: UsageError where all are busy."""
        now = time.monotonic()
        session = self._by_key.get(key or "")
        if session is None:
            self._forget(now)
            session = Session(secrets.token_urlsafe(24))
            self._by_key[session.key] = session
        session.used = now
        return session

    def keep(self, session: Session, data: bytes) -> str:
        """Keep a file that this user uploaded last; returns its id."""
        key = session.keep(data)
        idle_first = sorted(self._by_key.values(), key=lambda s: (s is session, s.used))
        while sum(len(each) for s in idle_first for each in s.images.values()) > MAX_BYTES:
            next(s for s in idle_first if s.images).images.popitem(last=False)
        return key

    def _forget(self, now: float) -> None:
        """Make room for a session more."""
        idle = sorted((s for s in self._by_key.values() if not s.jobs), key=lambda s: s.used)
        excess = len(self._by_key) - MAX_SESSIONS + 1
        if excess > len(idle):
            raise UsageError("too many people are using this app", f"it serves {MAX_SESSIONS} at a time", "try later")
        for number, session in enumerate(idle):
            if number < excess or now - session.used > MAX_IDLE:
                del self._by_key[session.key]
                session.close()

    def close(self) -> None:
        """Forget all."""
        for session in self._by_key.values():
            session.close()
        self._by_key.clear()
