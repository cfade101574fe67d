"""What all sinks share: results as a stream of raw bytes, and staged folders that are published.

A result passes once. Its bytes are copied into one of a few buffers, and from there hashed, and by
each sink written or compared, behind the main thread's back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from suture.checkpoint import dtypes, lanes, memory
from suture.checkpoint.hashes import Scanner
from suture.checkpoint.source import (
    Edit,
    Slot,
    StreamedEdit,
    TensorInfo,
    edit_view,
    wrong_edit,
)
from suture.checkpoint.staging import Stage
from suture.errors import SutureError
from suture.lazy import torch

Piece = tuple[memoryview, memoryview | None]
_BUFFERS = 4


class Courier:
    """Carries results to slots in buffers that are reused; one per run."""

    def __init__(self) -> None:
        self._ring: deque[tuple[memoryview, list[Future[Any]]]] = deque()

    def deliver(self, edit: Edit, sinks: Sequence[Any]) -> None:
        """Give an edit to every sink that does not have it yet; nothing is computed if all have."""
        slots = [sink.begin(edit.name) for sink in sinks if edit.name not in sink.done]
        if slots:
            info = slots[0].info
            self.carry(info, _pieces(edit, info), slots, Scanner(info.dtype))

    def carry(
        self, info: TensorInfo, pieces: Iterable[Piece], slots: Sequence[Slot], scanner: Scanner
    ) -> lanes.Coming:
        """Bring the bytes of one tensor to the slots; returns what is known about them, in time.

        E127 when there are too few or too many.
        """
        small = info.nbytes < lanes.INLINE
        chain = lanes.Chain()
        passed = 0
        for whole, base in pieces:
            passed += len(whole)
            if passed > info.nbytes:
                break
            if small:
                scanner.update(whole)
                for slot in slots:
                    slot.write(whole, base)
                continue
            size = memory.buffer_bytes()
            for at in range(0, len(whole), size):
                piece, jobs = self._take(size)
                piece = piece[: min(size, len(whole) - at)]
                piece[:] = whole[at : at + size]
                jobs.append(chain.add(scanner.update, piece))
                for slot in slots:
                    jobs += slot.write(piece, None if base is None else base[at : at + size])
        if passed != info.nbytes:
            raise miscounted(info, passed)
        content = lanes.Ready(scanner.content()) if small else chain.add(scanner.content)
        for slot in slots:
            slot.end(content)
        return content

    def settle(self) -> None:
        """Wait until no buffer is in use any more, and raise what went wrong."""
        for _buffer, jobs in self._ring:
            lanes.settle(jobs)

    def wait(self) -> None:
        """The same, whatever they have to say: before files are closed under the lanes."""
        for _buffer, jobs in self._ring:
            lanes.wait(jobs)

    def _take(self, size: int) -> tuple[memoryview, list[Future[Any]]]:
        """The buffer that has been waiting longest, free again."""
        if len(self._ring) < _BUFFERS:
            self._ring.append((memoryview(bytearray(size)), []))
        else:
            self._ring.rotate(-1)
            lanes.settle(self._ring[-1][1])
        if len(self._ring[-1][0]) < size:
            self._ring[-1] = (memoryview(bytearray(size)), [])
        return self._ring[-1]


def miscounted(info: TensorInfo, passed: int) -> SutureError:
    """The refusal (E127) of `passed` bytes for a tensor that has another number of them."""
    return SutureError(
        "E127",
        f"the edit has {'more' if passed > info.nbytes else 'fewer'} entries than the "
        f"tensor of {info.dtype} {list(info.shape)}",
        where=info.name,
        why="an edited tensor keeps the base tensor's dtype and shape",
    )


def _pieces(edit: Edit, info: TensorInfo) -> Iterator[Piece]:
    """The raw bytes of a result, checked: E127 another dtype or shape."""
    if not isinstance(edit, StreamedEdit):
        yield edit_view(info, edit), None
        return
    for tile in edit.tiles:
        if tile.dim() != 1 or not tile.is_contiguous():
            tile = tile.contiguous().reshape(-1)
        kind = dtypes.safetensors_dtype(tile.dtype)
        if kind != info.dtype:
            raise wrong_edit(info, kind, edit.shape)
        raw = tile.view(torch.uint8).numpy().data
        yield raw, None if edit.base is None else edit.base()


class StagedSink:
    """Base of the sinks that build a folder: what happens to it in the end, well or badly.

    Subclasses give `begin` and `prepare`, and `_release` what they hold open.
    """

    stage: Stage
    done: set[str]
    _courier: Courier

    def begin(self, name: str) -> Slot:
        """Start one changed tensor."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Write and sync everything that is still missing."""
        raise NotImplementedError

    def _release(self) -> None:
        """Close files; harmless twice."""

    def put(self, edit: Edit) -> None:
        """One changed tensor, whole or streamed."""
        self._courier.deliver(edit, [self])

    def publish(self) -> None:
        """Give the prepared folder its final name."""
        self.stage.publish()

    def close(self) -> None:
        """`prepare` and `publish`; nothing staged is left behind when either fails."""
        try:
            self.prepare()
            self.publish()
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove everything staged; harmless after `close`."""
        self._let_go()
        self.stage.discard()

    def suspend(self, *, sealed: bool = False) -> None:
        """Keep what is finished for a later run of the same identity; `abort` without one.
        `sealed`: all outputs of the run are whole."""
        self._let_go()
        self.stage.suspend(sealed=sealed)

    def withdraw(self) -> None:
        """Remove the published folder again; harmless when nothing was published."""
        self.stage.withdraw()

    def _let_go(self) -> None:
        self._courier.wait()
        self._release()
