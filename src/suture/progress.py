"""Progress with ETA on standard error: a live line on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_QUIET_SECONDS = 2.0  # nothing is shown before; short work needs no bar
_PLAIN_EVERY = 10.0  # seconds between lines when piped

silent = False  # set by --json and by tests


def track(
    items: Iterable[T],
    label: str,
    *,
    total: int | None = None,
    told: Callable[[], str] | None = None,
) -> Iterator[T]:
    """Yield `items` unchanged while reporting `label`, count, ETA and what `told` gives."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    began = last = time.monotonic()
    live = sys.stderr.isatty()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        every = 0.2 if live else _PLAIN_EVERY
        if silent or now - began < _QUIET_SECONDS or now - last < every:
            continue
        last = now
        _show(label, done, total, now - began, live, told() if told else "")
    elapsed = time.monotonic() - began
    if not silent and elapsed >= _QUIET_SECONDS:
        prefix = "\r\x1b[2K" if live else ""
        more = f", {told()}" if told else ""
        sys.stderr.write(f"{prefix}{label}: {done} in {elapsed:.1f} s{more}\n")
        sys.stderr.flush()


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is reported meanwhile: for small steps inside one that reports."""
    global silent
    before, silent = silent, True
    try:
        yield
    finally:
        silent = before


def note(message: str) -> None:
    """One line to standard error unless silenced: a stage begins, a cache is reused."""
    if not silent:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


def _show(label: str, done: int, total: int | None, elapsed: float, live: bool, more: str) -> None:
    text = f"{label}: {done}"
    if total:
        eta = elapsed / done * (total - done)
        text += f"/{total} ({100 * done // total}%), ETA {eta:.0f} s"
    if more:
        text += f", {more}"
    sys.stderr.write(f"\r\x1b[2K{text}" if live else text + "\n")
    sys.stderr.flush()
