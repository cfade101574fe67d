"""Differences of bit patterns: exact both ways for any bytes, small for fine-tunes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture.errors import SutureError
from suture.patch import encodings
from suture.patch.encodings import decode, encode, encode_tile

TILE = 64


def tiled(raw: bytes) -> list[bytes]:
    return [raw[at : at + TILE] for at in range(0, len(raw), TILE)]


def encoded(base: bytes, result: bytes, width: int) -> bytes:
    pairs = zip(tiled(base), tiled(result), strict=True)
    return b"".join(block for block, _changed in encode(pairs, width))


def decoded(payload: bytes, side: bytes, width: int, *, reverse: bool) -> bytes:
    def read(start: int, count: int) -> bytes:
        return payload[start : start + count]

    return b"".join(decode(read, len(payload), tiled(side), width, reverse=reverse))


@given(st.data(), st.sampled_from([1, 2, 4, 8]), st.integers(0, 40))
def test_any_bytes_round_trip_both_ways(data: st.DataObject, width: int, count: int) -> None:
    size = width * count
    base = data.draw(st.binary(min_size=size, max_size=size))
    result = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
    if data.draw(st.booleans()):  # few changes: the sparse way
        keep = data.draw(st.lists(st.integers(0, max(0, count - 1)), max_size=2))
        for index in range(count):
            if index not in keep:
                result[index * width : (index + 1) * width] = base[
                    index * width : (index + 1) * width
                ]
    payload = encoded(base, bytes(result), width)
    assert decoded(payload, base, width, reverse=False) == result
    assert decoded(payload, bytes(result), width, reverse=True) == base


def test_sparse_is_chosen_and_exact() -> None:
    base = np.arange(10_000, dtype="<u4")
    result = base.copy()
    result[[0, 77, 9_999]] = [2**32 - 1, 5, 0]
    block, changed = encode_tile(base.tobytes(), result.tobytes(), 4)
    assert changed == 3
    assert block[0] == encodings._SPARSE
    assert len(block) < 120
    plain = encodings.decode_tile(block[0], block[5:], base.tobytes(), 4, reverse=False)
    assert plain == result.tobytes()


def test_changed_counts_words_and_equal_tiles_cost_nothing() -> None:
    assert encode_tile(b"\1\2\3\4", b"\1\2\3\4", 2) == (bytes(5), 0)
    assert encode_tile(b"\1\2\3\4", b"\1\2\3\5", 2)[1] == 1
    assert encode_tile(b"", b"", 2)[1] == 0


@pytest.mark.parametrize("scale", [3e-4, 1e-3, 3e-3])
def test_fine_tune_of_bf16_comes_near_its_entropy(scale: float) -> None:
    """Bits per weight within 3% of the zeroth-order entropy of the two byte planes."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(400_000, generator=generator) * 0.03
    new = old + torch.randn(400_000, generator=generator) * scale
    a, b = (t.bfloat16().view(torch.int16).numpy().view("<u2") for t in (old, new))
    steps = (b - a).view("<i2").astype(np.int32)
    folded = ((steps << 1) ^ (steps >> 15)).astype("<u2")
    bits = 0.0
    for plane in (folded & 255, folded >> 8):
        share = np.bincount(plane) / len(plane)
        share = share[share > 0]
        bits -= float((share * np.log2(share)).sum())
    block, _changed = encode_tile(a.tobytes(), b.tobytes(), 2)
    spent = 8 * len(block) / len(a)
    assert spent < 1.05 * bits + 0.1
    assert spent < 16 * 0.55  # a 10 MB model: at most 5.5 MB


@given(st.data())
def test_damaged_payloads_never_crash_or_grow(data: st.DataObject) -> None:
    base, result = bytes(range(128)), bytes(reversed(range(128)))
    payload = bytearray(encoded(base, result, 2))
    at = data.draw(st.integers(0, len(payload) - 1))
    cut = data.draw(st.booleans())
    damaged = payload[:at] if cut else payload
    if not cut:
        damaged[at] ^= data.draw(st.integers(1, 255))
    try:
        plain = decoded(bytes(damaged), base, 2, reverse=False)
    except SutureError as error:
        code = error.code
    else:
        code = None
        assert len(plain) == len(base)  # what is altered silently is caught by the result hash
    assert code in (None, "E205")


def test_a_bomb_is_refused_at_its_declared_size() -> None:
    import zlib

    bomb = zlib.compress(bytes(10_000_000))
    with pytest.raises(SutureError, match="E205"):
        encodings.inflate(bomb, 100)


def test_order_and_window_of_the_threads() -> None:
    started: list[int] = []

    def items() -> object:
        for index in range(50):
            started.append(index)
            yield index

    for expected, got in enumerate(encodings.ordered(lambda x: x * x, items(), threads=3)):  # type: ignore[arg-type]
        assert got == expected * expected
        assert len(started) <= expected + 3
