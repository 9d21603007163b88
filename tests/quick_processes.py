"""Processes of --devices that are forks of one that has imported torch, and otherwise as new as those of users.

They get their work through pickle, as those that avarc spawns; to import torch takes them two seconds of a core each.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from types import SimpleNamespace
from typing import Any

import pytest

from avarc_cli.work import device_chunks

IMPORTED = ["avarc_cli.classifier", "avarc_cli.loading", "avarc_cli.results.scorer", "avarc_cli.tokens.encoder"]
"""What most of these processes import, torch included."""


@contextmanager
def instead_of_spawned() -> Iterator[None]:
    """From here on, processes on devices are such forks."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["avarc_cli.work.device_worker", *IMPORTED])

    def get_context(method: str) -> Any:
        forkserver.ensure_running()  # here, because what starts it later does so with signals blocked
        return server

    stand_in = SimpleNamespace(get_context=get_context, get_start_method=multiprocessing.get_start_method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_chunks, "multiprocessing", stand_in)
        yield
