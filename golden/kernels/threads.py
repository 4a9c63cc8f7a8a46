"""Threads for compiled functions, which let go of the interpreter lock while they run.

The pool belongs to one process: a forked child starts without one and makes its own at the first
call that needs it. Work is cut into pieces that end soon, so an interrupt is noticed between two.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

__all__ = ["alone", "is_forked", "share"]

_state: dict[str, object] = {}
_lock = threading.Lock()
_asked = threading.local()


def _renew() -> None:
    """Drop what belongs to the parent: its threads, and a lock that one of them may have held."""
    global _lock
    _lock = threading.Lock()
    _state.clear()
    _state["forked"] = True


os.register_at_fork(after_in_child=_renew)


def is_forked() -> bool:
    """Whether this process was forked from one that had loaded this module."""
    return "forked" in _state


@contextmanager
def alone() -> Iterator[None]:
    """Keep PyTorch to this thread; ``share`` goes on with as many as PyTorch had.

    PyTorch's own threads do not survive a fork: a child that asks them to work hangs.
    """
    before = torch.get_num_threads()
    _asked.threads = before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        del _asked.threads


def _pool() -> ThreadPoolExecutor:
    with _lock:
        found = _state.get("pool")
        if not isinstance(found, ThreadPoolExecutor):
            found = _state["pool"] = ThreadPoolExecutor(thread_name_prefix="m2xfp")
        return found


def share(
    count: int,
    part: Callable[[int, int], object],
    least: int = 1,
    most: int | None = None,
    unit: int = 1,
) -> list[object]:
    """Call ``part(start, stop)`` on ranges that cover ``count``, on as many threads as PyTorch has.

    Parameters
    ----------
    count
        How many there are to work on.
    part
        Does its share; what it returns is listed by rising ``start``.
    least
        A thread is worth so many.
    most
        Most that one call takes, so that it ends soon; None for no bound.
    unit
        Ranges start at multiples of it.
    """
    threads = getattr(_asked, "threads", None) or torch.get_num_threads()
    threads = max(1, min(threads, count // max(1, least)))
    step = max(1, -(-count // threads))
    if most is not None:
        step = min(step, max(1, most))
    step = -(-step // unit) * unit
    ranges = [(start, min(start + step, count)) for start in range(0, count, step)]
    if threads == 1 or len(ranges) == 1:
        return [part(*both) for both in ranges]
    return _together(part, ranges, threads)


def _together(
    part: Callable[[int, int], object], ranges: list[tuple[int, int]], threads: int
) -> list[object]:
    """Work on every n-th range in each of n threads; after an interrupt none starts another."""
    pool, stopped = _pool(), threading.Event()

    def some(first: int) -> list[object]:
        found = []
        for both in ranges[first::threads]:
            if stopped.is_set():
                break
            found.append(part(*both))
        return found

    jobs: list[Future[list[object]]] = []
    try:
        for first in range(threads):
            jobs.append(pool.submit(some, first))
        found = [job.result() for job in jobs]
    finally:
        stopped.set()
    return [found[i % threads][i // threads] for i in range(len(ranges))]
