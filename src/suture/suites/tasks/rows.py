"""A task as rows to train on: prompt and right answer, as `suture train` reads them.

The tuned paradigm of the survey: train on the rows of the training split, measure on the test
split with the same task. Wordings take turns by lot, so that a model learns the task and not one
prompt. Tasks held out are refused: what a mean of unseen tasks is made of is not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suture.errors import SutureError
from suture.progress import note
from suture.rng import generator
from suture.suites.common import thin
from suture.suites.tasks.asked import TaskOptions
from suture.suites.tasks.gold import gold_of
from suture.suites.tasks.rendering import canonical, ordered, render, shown_labels
from suture.suites.tasks.spec import load_task
from suture.suites.tasks.suite import TaskSuite


def training_rows(
    name: str,
    data: Sequence[Path],
    *,
    split: str = "train",
    paraphrases: int | None = None,
    orders: int = 1,
    limit: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """{id, prompt, response, cluster} of each record whose right answer is known.

    `name`: of a task, or its YAML file. `data`: a folder of data sets, or JSONL files of records.
    `paraphrases`: so many of the zero-shot wordings (default all); `orders`: of so many orders of
    the labels. Errors: E574 no such task, E582 no data, E586 a task held out, or without one
    right answer, E580 more wordings or orders than there are, E702 less than one.
    """
    spec = load_task(name)
    if spec.held_out:
        raise SutureError(
            "E586",
            f"the task {spec.name} is held out: nothing is trained on it",
            why="means over held-out tasks say how far training carries over to tasks unseen",
            fix="take another task, or a copy of its YAML file with held_out: false",
        )
    options = {"task": [name], "split": split, "seed": seed, "orders": orders}
    options |= {} if paraphrases is None else {"paraphrases": paraphrases}
    suite = TaskSuite(spec.suite, TaskOptions.load(options, where="task rows"))
    suite.check()
    records = suite.records_of(spec, data, split)
    known = [record for record in records if gold_of(spec, record) is not None]
    if not known:
        raise SutureError(
            "E586",
            f"no record of {spec.name} says what is right",
            where=", ".join(map(str, data)),
            fix="give records with gold, or another --split",
        )
    if split in ("test", "all"):
        note(f"rows of the split {split}: what learns from them cannot be measured on it")
    wordings = spec.prompts["zero-shot"][:paraphrases]
    draws = generator(seed, f"task rows/{spec.name}/{split}")
    rows = []
    for record in thin(known, limit):
        turns = wordings[int(draws.integers(len(wordings)))]
        labels = ordered(shown_labels(spec.answer), int(draws.integers(orders)), seed)
        row = {
            "id": f"{spec.name}/{record.id}",
            "prompt": "\n\n".join(render(spec, record, turns, labels)),
            "response": canonical(spec.answer, gold_of(spec, record)),
        }
        rows.append(row if record.cluster is None else {**row, "cluster": record.cluster})
    return rows
