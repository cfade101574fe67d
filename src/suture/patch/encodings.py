"""Differences of raw bit patterns, exact in both directions and small.

A tensor's bytes are taken as words of its element width, in tiles. Per tile the difference is the
xor of the words or their wrapping difference folded so that small steps of either sign become
small numbers (zigzag); whichever measures smaller. The words' byte planes are compressed apart:
last-place noise fills the low plane, the high ones are nearly zero. Where few words change, their
positions and differences are kept instead. Only integers are involved, so −0.0, NaN payloads,
booleans and packed 4-bit floats come back bit by bit.

Noise has no repeats for a dictionary coder to find: Huffman coding alone comes within a few
hundredths of a bit of the entropy at over 100 MB/s, run-length matching wins on sparse planes, and
only a plane whose sample shrinks further pays for the slow search.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from zlib_ng import zlib_ng as zlib  # twice as fast as the one of the standard library

from suture.checkpoint import lanes
from suture.errors import SutureError
from suture.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.unsignedinteger[Any]]

TILE = 1 << 22  # raw bytes per tile of what is written; patch.json says which
_SAME, _XOR, _SUB, _SPARSE = range(4)
_HEAD = struct.Struct("<BI")  # operation, length of the body
_SAMPLE = 1 << 16
_PIECE = 1 << 16  # words that are worked on at once: temporaries stay in the cache
_SPARSE_SHARE = 16  # positions are tried when fewer than one word in so many changes
_DAMAGED = "the data does not decode"


def encode_tile(base: Any, result: Any, width: int) -> tuple[bytes, int]:
    """One tile's block and how many words differ. `base` and `result` have equal lengths."""
    old = np.frombuffer(base, dtype=f"<u{width}")
    new = np.frombuffer(result, dtype=f"<u{width}")
    changed = int(np.count_nonzero(old != new))
    if changed == 0:
        return _HEAD.pack(_SAME, 0), 0
    step = max(1, len(old) // (_SAMPLE // width))
    sampled = [_fold(new[::step], old[::step], op) for op in (_XOR, _SUB)]
    sizes = [sum(len(_squeeze(plane, search=False)) for plane in _planes(s)) for s in sampled]
    op = _XOR if sizes[0] < sizes[1] else _SUB
    words = _fold(new, old, op)
    body = _join([_squeeze(plane) for plane in _planes(words)])
    if changed * _SPARSE_SHARE < len(old):
        positions = np.flatnonzero(words).astype("<u4")
        gaps = np.diff(positions, prepend=np.uint32(0)).astype("<u4")
        few = _fold(new[positions], old[positions], _SUB)
        streams = [_squeeze(_flat(gaps)), _squeeze(_flat(few))]
        sparse = struct.pack("<I", changed) + _join(streams)
        if len(sparse) < len(body):
            op, body = _SPARSE, sparse
    return _HEAD.pack(op, len(body)) + body, changed


def decode_tile(op: int, body: bytes, source: Any, width: int, *, reverse: bool) -> memoryview:
    """Apply a block to a tile of base bytes, or with `reverse` take it out of result bytes."""
    old = np.frombuffer(source, dtype=f"<u{width}")
    if op == _SAME and not body:
        return memoryview(source)
    if op in (_XOR, _SUB):
        planes = [memoryview(_inflate(part, len(old))) for part in _split(body, width)]
        found = np.empty_like(old)
        for at in range(0, len(old), _PIECE):
            piece = slice(at, at + _PIECE)
            _from_planes([plane[piece] for plane in planes], found[piece])
            _unfold(old[piece], found[piece], op, reverse)
        return found.view(np.uint8).data
    if op == _SPARSE and len(body) >= 4:
        (count,) = struct.unpack_from("<I", body)
        if count > len(old):
            raise damaged(_DAMAGED)
        streams = _split(body[4:], 2)
        gaps = _unflat(_inflate(streams[0], 4 * count), 4)
        positions = np.cumsum(gaps, dtype=np.uint64)
        if count and int(positions[-1]) >= len(old):
            raise damaged(_DAMAGED)
        few = _unflat(_inflate(streams[1], width * count), width)
        new = old.copy()
        new[positions] = _unfold(old[positions], few, _SUB, reverse)
        return new.view(np.uint8).data
    raise damaged(f"unknown operation {op}")


def encoding_of(operations: Iterable[int]) -> str:
    """What a record calls blocks of these operations: sparse when only positions are listed."""
    return "sparse" if {_SAME, _SPARSE}.issuperset(operations) else "bits"


def encode(pairs: Iterable[tuple[bytes, bytes]], width: int) -> Iterator[tuple[bytes, int]]:
    """Blocks of a stream of (base tile, result tile), compressed on a few threads, in order."""
    return ordered(lambda pair: encode_tile(pair[0], pair[1], width), pairs)


def decode(
    read: Callable[[int, int], bytes],
    size: int,
    tiles: Iterable[Any],
    width: int,
    *,
    reverse: bool,
) -> Iterator[memoryview]:
    """The other side of every tile, two worked on at a time. `read(start, count)` reads the payload
    of `size` bytes.

    SutureError E205 when the payload is cut short, too long or malformed.
    """

    def blocks() -> Iterator[tuple[int, bytes, Any]]:
        at = 0
        for tile in tiles:
            if at + _HEAD.size > size:
                raise damaged("the data ends too early")
            op, length = _HEAD.unpack(read(at, _HEAD.size))
            at += _HEAD.size
            if at + length > size:
                raise damaged("the data ends too early")
            yield op, read(at, length), tile if lanes.here() else bytes(tile)
            at += length
        if at != size:
            raise damaged("the data is longer than the tensor")

    def work(block: tuple[int, bytes, Any]) -> memoryview:
        return decode_tile(*block, width, reverse=reverse)

    yield from _in_order(lanes.submit, work, blocks(), 1 if lanes.here() else lanes.LANES)


def ordered(work: Callable[[Any], Any], items: Iterable[Any], *, threads: int = 4) -> Iterator[Any]:
    """`map` on a few threads, results in order, at most `threads` items in flight.

    zlib works outside the interpreter lock; the window bounds memory.
    """
    with ThreadPoolExecutor(threads) as pool:
        yield from _in_order(pool.submit, work, items, threads)


def _in_order(
    submit: Callable[..., Future[Any]],
    work: Callable[[Any], Any],
    items: Iterable[Any],
    most: int,
) -> Iterator[Any]:
    """Results of `work` on the items, in order, of which at most `most` are in flight."""
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(submit(work, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def damaged(what: str, where: str | None = None) -> SutureError:
    """The refusal of a patch whose data is not what it was when it was written."""
    return SutureError(
        "E205",
        f"damaged patch: {what}",
        where=where,
        why="applying it would give another model than the one it was made for",
        fix="copy the patch again from where it came from",
    )


def deflate(data: bytes) -> bytes:
    """Plain bytes (small files), compressed."""
    return zlib.compress(data, 9)


def inflate(data: bytes, size: int) -> bytes:
    """The other way; exactly `size` bytes or SutureError E205."""
    return _inflate(data, size) if data else b""


def _fold(new: Words, old: Words, op: int) -> Words:
    if op == _XOR:
        return new ^ old
    bits = new.dtype.itemsize * 8
    delta = (new - old).view(f"<i{new.dtype.itemsize}")
    folded: Words = ((delta << 1) ^ (delta >> (bits - 1))).view(new.dtype)
    return folded


def _unfold(old: Words, words: Words, op: int, reverse: bool) -> Words:
    """The other side of `old`, in the place of `words`."""
    if op == _XOR:
        words ^= old
        return words
    sign = words & words.dtype.type(1)
    words >>= words.dtype.type(1)
    words ^= np.negative(sign, out=sign)
    if reverse:
        np.subtract(old, words, out=words)
    else:
        words += old
    return words


def _planes(words: Words) -> list[bytes]:
    """Byte plane 0 (least significant) first."""
    table = words.view(np.uint8).reshape(-1, words.dtype.itemsize)
    return [table[:, index].tobytes() for index in range(table.shape[1])]


def _from_planes(planes: Sequence[bytes | memoryview], words: Words) -> Words:
    """`words`, made those of which `planes` are the bytes."""
    if words.dtype.itemsize > 2:
        table = words.view(np.uint8).reshape(-1, words.dtype.itemsize)
        for index, plane in enumerate(planes):
            table[:, index] = np.frombuffer(plane, dtype=np.uint8)
        return words
    words[:] = np.frombuffer(planes[-1], dtype=np.uint8)
    if len(planes) == 2:
        words <<= words.dtype.type(8)
        words |= np.frombuffer(planes[0], dtype=np.uint8)
    return words


def _flat(words: Words) -> bytes:
    return b"".join(_planes(words))


def _unflat(data: bytes, width: int) -> Words:
    count = len(data) // width
    planes = [data[i * count : (i + 1) * count] for i in range(width)]
    return _from_planes(planes, np.empty(count, dtype=f"<u{width}"))


def _squeeze(plane: bytes, *, search: bool = True) -> bytes:
    """A byte plane in the smallest of the cheap codings; empty when it is all zeros."""
    if not any_nonzero(plane):
        return b""
    best = min((_zlib(plane, 1, s) for s in (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)), key=len)
    if search and len(plane) > 1024:
        sample = plane[:_SAMPLE]
        cheap = len(_zlib(sample, 1, zlib.Z_HUFFMAN_ONLY))
        if len(zlib.compress(sample, 6)) < 0.9 * min(cheap, len(_zlib(sample, 1, zlib.Z_RLE))):
            best = min(best, zlib.compress(plane, 6), key=len)
    return best


def any_nonzero(data: bytes) -> bool:
    """Whether any byte differs from zero (a fast C loop)."""
    return data.count(0) != len(data)


def _zlib(data: bytes, level: int, strategy: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes, size: int) -> bytes:
    """Exactly `size` bytes, never more memory than that; an empty stream stands for zeros."""
    if not data:
        return bytes(size)
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(data, size + 1)
    except zlib.error:  # type: ignore[misc]  # its stubs make it an instance
        raise damaged(_DAMAGED) from None
    if len(plain) != size or not unpacker.eof or unpacker.unused_data:
        raise damaged(_DAMAGED)
    return plain


def _join(streams: list[bytes]) -> bytes:
    return struct.pack(f"<{len(streams)}I", *map(len, streams)) + b"".join(streams)


def _split(body: bytes, count: int) -> list[bytes]:
    if len(body) < 4 * count:
        raise damaged(_DAMAGED)
    sizes = struct.unpack_from(f"<{count}I", body)
    if 4 * count + sum(sizes) != len(body):
        raise damaged(_DAMAGED)
    parts, at = [], 4 * count
    for size in sizes:
        parts.append(body[at : at + size])
        at += size
    return parts
