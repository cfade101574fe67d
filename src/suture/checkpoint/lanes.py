"""Hashing and writing behind the main thread's back.

BLAKE3 (7 GB/s on one core of 2025, five times BLAKE2b), pread and pwrite take about as long as the
arithmetic of a merge, and all of them let go of the interpreter lock. Two lanes are enough to keep
two cores busy; more hashing in parallel only moves memory around.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from suture.checkpoint import memory

LANES = 2
INLINE = 16 << 10  # fewer bytes than this are done at once: handing them over costs more

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_here = threading.local()


def submit(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Run `work` on a lane; jobs begin in the order in which they are submitted.

    A job that submits another does it itself at once: waiting for a lane could last for ever.
    """
    global _pool
    if here():
        return _done(work, arguments)
    if _pool is None:
        with _lock:
            if _pool is None:
                memory.keep_freed()
                _pool = ThreadPoolExecutor(LANES, "suture-lane", initializer=_enter)
    return _pool.submit(work, *arguments)


def run(nbytes: int, work: Callable[..., Any], *arguments: Any) -> Coming:
    """`submit` for work on so many bytes; short work is done at once, and raises at once."""
    if nbytes < INLINE:
        return Ready(work(*arguments))
    return submit(work, *arguments)


def here() -> bool:
    """Whether this is a lane, where what is submitted has been done when `submit` returns."""
    return getattr(_here, "on_lane", False)


def _enter() -> None:
    _here.on_lane = True


def _done(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(work(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


def _forget_pool() -> None:
    """A forked child has the pool but none of its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


class Chain:
    """Jobs that must follow each other, such as the tiles of one hash, on whichever lane.

    Each waits for the one before it, which has begun earlier: so no two chains can block each
    other. After a failed job the later ones fail with the same exception.
    """

    def __init__(self) -> None:
        self._last: Future[Any] | None = None

    def add(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run `work` after everything added before."""
        self._last = submit(_follow, self._last, work, arguments)
        return self._last


class Ready:
    """A value known at once, where a lane's would be expected (a Future costs more to make)."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        """The value."""
        return self._value

    def done(self) -> bool:
        """Always."""
        return True

    def exception(self) -> None:
        """What went wrong: nothing."""


Coming = Future[Any] | Ready
_Job = TypeVar("_Job", bound=Coming)


def _follow(
    before: Future[Any] | None, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    if before is not None:
        before.result()
    return work(*arguments)


def wait(jobs: Iterable[Coming]) -> None:
    """Wait until none of the jobs is running, whatever they have to say: before files are closed
    or memory is given away under them."""
    for job in jobs:
        job.exception()


def settle(jobs: list[_Job]) -> None:
    """Wait until none of the jobs touches its memory any more, and raise what went wrong."""
    failed = None
    for job in jobs:
        failed = job.exception() or failed
    jobs.clear()
    if failed is not None:
        raise failed
