"""What a training's progress line says besides steps and time left: loss, speed, memory."""

from __future__ import annotations

import sys
import time

from suture.lazy import torch


class Meter:
    """Counts tokens (padding left out) and keeps the last step's loss."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.tokens, self.loss = 0, 0.0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since training began, or went on."""
        return time.monotonic() - self._began

    def add(self, loss: float, tokens: int) -> None:
        """One step is done."""
        self.loss, self.tokens = loss, self.tokens + tokens

    def told(self) -> str:
        """For the progress line."""
        text = f"loss {self.loss:.4f}, {self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s"
        peak = peak_memory(self.device)
        return text if peak is None else f"{text}, {peak / 1e9:.1f} GB"


def peak_memory(device: torch.device) -> int | None:
    """Most bytes held at once: on an accelerator its tensors', else of the whole process.

    None where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
