"""Methods: one paper's edit each, a frozen config whose `derive` yields tensor edits.

The patch base is always the tuned model; `METHODS` maps the command-line name to the config.
"""

from __future__ import annotations

from suture.config import FrozenConfig
from suture.methods.irr import IRR, MatrixReport
from suture.methods.random_removal import RandomRemoval
from suture.methods.refusals import opens_as_refusal, safety_refusals
from suture.methods.resta import RESTA
from suture.methods.task_arithmetic import TaskArithmetic

METHODS: dict[str, type[FrozenConfig]] = {
    "irr": IRR,
    "task-arithmetic": TaskArithmetic,
    "resta": RESTA,
    "random-removal": RandomRemoval,
}

__all__ = [
    "IRR",
    "METHODS",
    "RESTA",
    "MatrixReport",
    "RandomRemoval",
    "TaskArithmetic",
    "opens_as_refusal",
    "safety_refusals",
]
