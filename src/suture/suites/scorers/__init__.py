"""Scorers: from one reply to one number. A new scorer is a new module with a `SCORER`.

`load("refusal")` imports `suture.suites.scorers.refusal`; there is no registry to edit.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any, Protocol

from suture.errors import SutureError, nearest


class Scorer(Protocol):
    """Scores replies by their text alone, the same way every time."""

    @property
    def identity(self) -> dict[str, Any]:
        """Name and sha256 of everything that decides a score: measurements record it."""
        ...

    def score(self, prompt: str, reply: str) -> float:
        """1.0 or 0.0, or a number between, for one reply."""
        ...


def load(name: str) -> Scorer:
    """The scorer of the module called `name` (E525 when there is none)."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        close = nearest(name, known)
        raise SutureError(
            "E525",
            f"no scorer is called '{name}'",
            fix=f"did you mean '{close}'?" if close else f"there are: {', '.join(known)}",
        )
    scorer: Scorer = importlib.import_module(f"{__name__}.{name}").SCORER
    return scorer
