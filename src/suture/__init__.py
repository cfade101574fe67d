"""Change one capability of a language model, keep the rest, and prove it.

Everything the commands do is a call here: `suture.diff(base, edited, out)`,
`suture.apply(base, [patch], out)`, `suture.measure("safety", model)`,
`suture.compare(before, after, reference, roles)`, `suture.IRR(...).derive(...)`,
`suture.run(suture.read_recipe("repair.yaml"), "runs/repair")`. Names are resolved at first use:
`import suture` imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "SutureError": "suture.errors",
    "Checkpoint": "suture.checkpoint",
    "Patch": "suture.patch",
    "PatchedCheckpoint": "suture.patch",
    "open_model": "suture.patch",
    "diff": "suture.patch",
    "apply": "suture.patch",
    "revert": "suture.patch",
    "verify": "suture.patch",
    "METHODS": "suture.methods",
    "Prompt": "suture.data",
    "Pair": "suture.data",
    "Choice": "suture.data",
    "read_jsonl": "suture.data",
    "load": "suture.inference",
    "generate": "suture.inference",
    "IRR": "suture.methods",
    "derive": "suture.cli.derive",
    "measure": "suture.suites",
    "score": "suture.suites",
    "Measurement": "suture.ledger",
    "Role": "suture.ledger",
    "Ledger": "suture.ledger",
    "compare": "suture.ledger",
    "write_report": "suture.report",
    "Recipe": "suture.runs",
    "plan": "suture.runs",
    "read_recipe": "suture.runs",
    "run": "suture.runs",
    "read_sweep": "suture.runs.sweep",
    "run_sweep": "suture.runs.sweep",
    "pick": "suture.runs.sweep",
}
_PARTS = (
    "checkpoint cli config data errors inference lab labels ledger methods models patch progress "
    "report rng runs suites training"
)

__all__ = [
    "IRR",
    "METHODS",
    "Checkpoint",
    "Choice",
    "Ledger",
    "Measurement",
    "Pair",
    "Patch",
    "PatchedCheckpoint",
    "Prompt",
    "Recipe",
    "Role",
    "SutureError",
    "__version__",
    "apply",
    "compare",
    "derive",
    "diff",
    "generate",
    "load",
    "measure",
    "open_model",
    "pick",
    "plan",
    "read_jsonl",
    "read_recipe",
    "read_sweep",
    "revert",
    "run",
    "run_sweep",
    "score",
    "verify",
    "write_report",
]

if TYPE_CHECKING:
    from suture.data import Choice, Pair, Prompt, read_jsonl
    from suture.errors import SutureError


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    if name in _PARTS.split():
        return importlib.import_module(f"suture.{name}")
    raise AttributeError(f"module 'suture' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_PARTS.split()})
