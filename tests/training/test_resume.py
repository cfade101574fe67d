"""A training that is killed at any moment and started again ends in the same bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import suture.training.early_stop as early_stop
import suture.training.loop as loop
import suture.training.teacher as teacher
from helpers import tiny_llama, write_jsonl
from suture.training.recipe import TrainRecipe, run_recipe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks for an old name

MOMENTS = (
    (loop, "_one_step"), (loop, "save_state"), (teacher, "_logits"), (teacher, "fsync"),
    (teacher, "write_json"), (early_stop, "fsync"),
)  # fmt: skip
SETTINGS = {
    "epochs": 2, "batch_rows": 4, "batch_tokens": 120, "learning_rate": 1e-2, "warmup": "epoch",
    "save_every": 2, "compute": "float32",
}  # fmt: skip
LORA = {"rank": 2, "targets": ["q_proj", "v_proj"]}
RKLD = {"name": "rkld", "augment_epochs": 2, "cache": None}


@contextmanager
def counted(kill_at: int | None = None) -> Iterator[list[int]]:
    """Count the moments at which the run writes or steps; raise at number `kill_at`."""
    passed = [0]

    def watch(function: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            passed[0] += 1
            if passed[0] == kill_at and not after:
                raise KeyboardInterrupt
            found = function(*given, **named)
            if passed[0] == kill_at:
                raise KeyboardInterrupt
            return found

        return watched

    with pytest.MonkeyPatch.context() as patch:
        for place, (module, name) in enumerate(MOMENTS):
            patch.setattr(module, name, watch(getattr(module, name), after=bool(place % 2)))
        yield passed


def recipe(folder: Path, out: str, changes: dict[str, Any]) -> TrainRecipe:
    where = "output" if "lora" in changes else "patch"
    values = {
        "model": folder / "base", "data": [{"file": folder / "rows.jsonl"}], "device": "cpu",
        "train": SETTINGS, where: folder / out,
    }  # fmt: skip
    for key in ("retain", "dev"):
        if key in changes:
            changes = {**changes, key: [{"file": folder / f"{key}.jsonl"}]}
    return TrainRecipe.load(values | changes)


def result(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "base", vocab=300)
    for name, text in (("rows", "The answer is"), ("retain", "jumps over"), ("dev", "The answer")):
        rows = [{"prompt": f"bake loaf {i} {name}", "response": text + "!" * i} for i in range(6)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {**SETTINGS, "batch_tokens": 60}},
        {"lora": LORA},
        {"dev": True, "train": {**SETTINGS, "epochs": 4, "patience": 1, "schedule": "constant"}},
        {"objective": {"name": "npo"}},
        {"objective": RKLD},
        {"objective": {**RKLD, "retain": "RT"}, "retain": True, "lora": LORA},
        {"objective": {**RKLD, "teacher": "live"}},
    ],
    ids=["pieces", "lora", "early-stop", "npo", "rkld", "rkld-lora", "rkld-live"],
)
def test_killed_anywhere_it_ends_in_the_same_bytes(folder: Path, changes: dict[str, Any]) -> None:
    with counted() as moments:
        run_recipe(recipe(folder, "whole", changes))
    whole = result(folder / "whole")
    assert whole
    assert moments[0] > 5
    every = 1 if moments[0] < 24 else 2  # runs of many moments alike: a half of them is enough
    for at in range(1, moments[0] + 1, every):
        out = f"broken-{at}"
        with counted(kill_at=at), pytest.raises(KeyboardInterrupt):
            run_recipe(recipe(folder, out, changes))
        assert not (folder / out).exists()
        run_recipe(recipe(folder, out, changes))
        assert result(folder / out) == whole, at
    assert not list(folder.glob(".*.training"))


def test_killed_again_and_again_it_still_ends_in_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "_MARK_EVERY", 0)  # what is written is marked at once
    changes = {"objective": RKLD, "train": {**SETTINGS, "save_every": 1}}
    run_recipe(recipe(folder, "whole", changes))
    for attempt in itertools.count():
        try:
            with counted(kill_at=6):
                run_recipe(recipe(folder, "broken", changes))
        except KeyboardInterrupt:
            assert attempt < 20
            continue
        break
    assert attempt > 2
    assert result(folder / "broken") == result(folder / "whole")
