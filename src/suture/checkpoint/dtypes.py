"""The dtypes safetensors knows: sizes, torch counterparts, which bit patterns are finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.lazy import np, torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Bits per element (safetensors 0.8; F4 and F6 are packed).
BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

_TORCH: dict[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}

FLOATS = frozenset({"F64", "F32", "BF16", "F16"})  # what can be computed with as it is

# Exponent mask of a bit pattern: all ones there means Inf or NaN.
_EXPONENT: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "C64": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),  # only S.1111.111 is NaN; there is no Inf
}
_SINGLE_NAN: dict[str, int] = {"F8_E5M2FNUZ": 0x80, "F8_E4M3FNUZ": 0x80, "F8_E8M0": 0xFF}


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that a tensor of this dtype and shape takes; -1 when it does not fill whole bytes."""
    bits = math.prod(shape) * BITS[dtype]
    return bits // 8 if bits % 8 == 0 else -1


_WORD = {dtype: 4 if dtype == "C64" else max(1, bits // 8) for dtype, bits in BITS.items()}


def word(dtype: str) -> int:
    """Width in bytes of the integers a patch takes differences of (1, 2, 4 or 8)."""
    return _WORD[dtype]


def is_float(dtype: str) -> bool:
    """Whether NaN or Inf can occur."""
    return dtype in _EXPONENT or dtype in _SINGLE_NAN


def count_nonfinite(dtype: str, raw: Any) -> int:
    """How many NaN or Inf elements these raw little-endian bytes hold."""
    if dtype in _EXPONENT:
        kind, mask = _EXPONENT[dtype]
        bits: NDArray[Any] = np.frombuffer(raw, dtype=kind)
        exponents = bits & bits.dtype.type(mask)
        if not len(exponents) or int(exponents.max()) != mask:  # the usual case, and fast
            return 0
        return int(np.count_nonzero(exponents == exponents.dtype.type(mask)))
    if dtype in _SINGLE_NAN:
        return int(np.count_nonzero(np.frombuffer(raw, dtype="u1") == _SINGLE_NAN[dtype]))
    return 0


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name; SutureError E128 when torch has none."""
    if dtype not in _TORCH:
        raise SutureError(
            "E128",
            f"dtype {dtype} has no torch counterpart",
            why="its values cannot be computed with; its bytes can still be diffed and patched",
            fix="convert this tensor to BF16 or F32 first",
        )
    found = getattr(torch, _TORCH[dtype])
    assert isinstance(found, torch.dtype)
    return found


@cache
def safetensors_dtype(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype; SutureError E128 when there is none."""
    short = str(dtype).removeprefix("torch.")
    for name, known in _TORCH.items():
        if known == short:
            return name
    raise SutureError("E128", f"torch dtype {short} cannot be stored in safetensors")


def from_bytes(raw: Any, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """A CPU tensor over writable bytes (bytearray or numpy array); no copy is made."""
    if len(raw) == 0:
        return torch.empty(tuple(shape), dtype=torch_dtype(dtype))
    flat = torch.frombuffer(raw, dtype=torch.uint8)
    return flat.view(torch_dtype(dtype)).reshape(tuple(shape))


def view_bytes(tensor: torch.Tensor) -> memoryview:
    """Raw little-endian bytes of a tensor, as safetensors stores them; no copy of a plain one."""
    if tensor.numel() == 0:
        return memoryview(b"")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def to_bytes(tensor: torch.Tensor) -> bytes:
    """The same bytes, copied."""
    return bytes(view_bytes(tensor))
