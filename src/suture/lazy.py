"""Heavy libraries, imported at first use.

`suture --help`, bad-config errors and `plan` must answer before torch could even be imported
(about two seconds), yet a method file should read like ordinary code. So every module writes
`from suture.lazy import np, torch` and uses them as usual; the first attribute access imports.
Keep them out of module level (no `@torch.no_grad()` decorators, no default `torch.float32`).
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

# On a CPU torch keeps what oneDNN compiled for a shape, up to 1,024 of them, twice: in a training
# whose batches vary in length that is gigabytes after some hundred steps. 32 cost no time.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "32")
# Large tensors come from fresh memory each time; in pages of 2 MB instead of 4 KB that is six times
# as fast (a training step of a wide network spends a third of its time there otherwise).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    import numpy as np
    import torch
    import transformers
else:

    class _Lazy(ModuleType):
        def __getattr__(self, attribute: str) -> Any:
            value = getattr(importlib.import_module(self.__name__), attribute)
            setattr(self, attribute, value)  # the next use, perhaps once per tile, is a plain one
            return value

    np = _Lazy("numpy")
    torch = _Lazy("torch")
    transformers = _Lazy("transformers")

__all__ = ["np", "torch", "transformers"]
