"""Three tiny models, rows, and a recipe over them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import write_jsonl

RECIPE = """\
name: tiny
models:
  aligned: aligned
  tuned: {path: tuned}
  unaligned: unaligned
method:
  name: irr
  solver: none
  removed: 1.0
data:
  safety: safety.jsonl
  calibration: {file: calibration.jsonl, limit: 4}
suites:
  safety: {data: prompts.jsonl, max_new_tokens: 4}
  task: {data: choices.jsonl, limit: 6}
roles:
  - {metric: safety.refusal_rate, role: target}
  - {metric: task.accuracy, role: kept, margin: 0.05, against: reference}
device: cpu
"""


@pytest.fixture
def workshop(tmp_path: Path, tiny: Callable[..., Path]) -> Path:
    """A folder with models, rows and `recipe.yaml`; the recipe's paths are relative to it."""
    for seed, name in enumerate(("aligned", "tuned", "unaligned")):
        shutil.copytree(tiny(seed=seed), tmp_path / name)
    prompts = [{"id": f"p{i}", "prompt": f"how do I bake {i} loaves"} for i in range(8)]
    pairs = [{"prompt": f"a question {i}", "response": "the answer is yes"} for i in range(6)]
    choices = [
        {"prompt": f"yes or no {i}", "options": ["yes", "no"], "answer": i % 2} for i in range(8)
    ]
    refusals = [{"prompt": "a request", "response": "I cannot help"}] * 4
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    write_jsonl(tmp_path / "choices.jsonl", choices)
    write_jsonl(tmp_path / "calibration.jsonl", pairs)
    write_jsonl(tmp_path / "safety.jsonl", refusals)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path
