"""Independent pieces of an operation on several threads, each of which computes its pieces alone.

PyTorch divides every operation among its threads, which wait for each other at its end. A piece that takes many small
operations is done sooner by one thread, while the others do other pieces. Its bits do not depend on the number of
threads either.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


def share(work: Callable[[Iterator[T]], None], pieces: Sequence[T]) -> None:
    """Call `work` on as many threads as PyTorch has, without gradients; each gets an iterator over its share.

    A thread asks for another piece when it is done with one, so that a slow core holds nothing up.

    Args:
        pieces: all of them are done at the end.
    Raises: what `work` raises.
    """
    left, threads = iter(pieces), torch.get_num_threads()  # next() of a list's iterator is atomic
    if threads == 1:
        work(left)
        return
    inference = torch.is_inference_mode_enabled()

    def alone() -> None:
        with torch.inference_mode(inference), torch.no_grad():  # which are a thread's own
            work(left)

    pool = _pool(os.getpid(), threads)
    futures = [pool.submit(alone) for _ in range(min(threads, len(pieces)))]
    wait(futures)
    for future in futures:
        future.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads on which PyTorch computes alone. process: a fork has no threads but the one that it began with."""
    begun = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # its first call in a thread sets the number that was set last, in any thread
        torch.set_num_threads(1)
        begun.wait()

    pool = ThreadPoolExecutor(threads, "avarc", begin)
    for _ in range(threads):
        pool.submit(int)
    begun.wait()
    torch.set_num_threads(threads)  # for threads that begin later: they take what was set last
    return pool
