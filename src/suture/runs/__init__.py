"""Runs: a recipe, the folder that holds everything about it, and the stages between them."""

from __future__ import annotations

from suture.runs.folder import RunFolder, StageResult
from suture.runs.pipeline import Outcome, run
from suture.runs.plan import Plan, plan
from suture.runs.recipe import Recipe, read_recipe

__all__ = [
    "Outcome",
    "Plan",
    "Recipe",
    "RunFolder",
    "StageResult",
    "plan",
    "read_recipe",
    "run",
]
