"""Random numbers keyed by (seed, name, offset): order, sharding and resume never change a bit."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from suture.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def uniform(seed: int, name: str, start: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1); number i depends only on (seed, name, start + i).

    Philox-4x64 keyed by a hash of seed and name, addressed by counter; 53-bit resolution.
    """
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    bits.advance(start // 4)  # one counter step yields four 64-bit words
    skip = start % 4
    raw = bits.random_raw(skip + count)[skip:]
    return np.asarray((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def generator(seed: int, name: str) -> np.random.Generator:
    """A numpy generator for sampling without random access (bootstrap, shuffles)."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))
