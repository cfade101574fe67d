"""A run folder as `suture run` leaves it, from two tiny checkpoints and made-up rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from suture.ledger import Measurement, ReplyRow, Row, mean_scores

ITEMS = 120


def measurement(
    suite: str, metric: str, better: str, values: list[float], model: str
) -> Measurement:
    rows = [Row(str(i), {metric: value}) for i, value in enumerate(values)]
    return Measurement(
        suite=suite,
        model={"fingerprint": model, "path": f"models/{model}", "patches": []},
        n=len(rows),
        metrics=mean_scores(rows),
        better={metric: better},
        rows=rows,
        data={"name": f"{suite}.jsonl", "sha256": "0" * 64, "n": len(rows)},
        template={"fingerprint": "t"},
        decoding={"greedy": True},
        versions={"torch": "2.13.0"},
        replies=[
            ReplyRow(str(i), f"prompt {i} of {suite}", f"reply {value:g} to {i}", True, 5)
            for i, value in enumerate(values)
        ],
    )


def make_run(folder: Path, tiny: Callable[..., Path]) -> Path:
    """before refuses a quarter, after nine tenths; the task loses one item of 120."""
    from suture.checkpoint import Checkpoint
    from suture.patch import diff

    base, edited = tiny(), tiny(seed=1)
    run = folder / "run"
    run.mkdir()
    before, after = Checkpoint.open(base), Checkpoint.open(edited)
    diff(before, after, run / "patch")
    prints = {"before": before.fingerprint(), "after": after.fingerprint()}
    refused = {"before": ITEMS // 4, "after": ITEMS * 9 // 10}
    correct = {"before": 90, "after": 89}
    for side, model in prints.items():
        safety = [float(i < refused[side]) for i in range(ITEMS)]
        task = [float(i < correct[side]) for i in range(ITEMS)]
        made = (
            measurement("safety", "refusal_rate", "higher", safety, model),
            measurement("task", "accuracy", "higher", task, model),
        )
        for measured in made:
            measured.save(run / side / f"{measured.suite}.json")
    recipe = {
        "name": "repair",
        "description": "Refusals restored",
        "models": {"aligned": {"path": str(base)}, "tuned": {"path": str(base)}},
        "before": "tuned",
        "method": {"name": "irr", "removed": 0.5},
        "seed": 0,
        "roles": [
            {"metric": "safety.refusal_rate", "role": "target"},
            {"metric": "task.accuracy", "role": "kept", "margin": 0.1},
        ],
    }
    content = {"suture": "0.1.0", "roles_sha256": "5" * 64, "recipe": recipe}
    (run / "recipe.json").write_text(json.dumps(content))
    (run / "stages").mkdir()
    (run / "stages" / "derive.json").write_text(json.dumps({"stage": "derive", "seconds": 1.5}))
    return run
