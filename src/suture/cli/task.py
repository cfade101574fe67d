"""`suture task`: text tasks as rows to train on."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from suture.cli.terminal import emit, emit_json


def rows(
    name: Annotated[str, typer.Argument(help="a task (`suture list tasks`), or its YAML file")],
    data: Annotated[
        list[Path], typer.Option("--data", help="folder of data sets, or JSONL file of records")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="JSONL file to write")],
    split: Annotated[str, typer.Option("--split", help="train, dev, test or all")] = "train",
    paraphrases: Annotated[
        int | None,
        typer.Option("--paraphrases", min=1, help="so many wordings, by lot [default: all]"),
    ] = None,
    orders: Annotated[
        int, typer.Option("--orders", min=1, help="so many orders of the labels, by lot")
    ] = 1,
    limit: Annotated[
        int | None, typer.Option("--limit", help="at most so many rows, spread evenly")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="of wordings and orders")] = 0,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Write a task's training split as prompts and right answers, for `suture train`."""
    from suture.checkpoint.jsonfile import write_atomic
    from suture.suites.tasks.rows import training_rows

    found = training_rows(
        name, data, split=split, paraphrases=paraphrases, orders=orders, limit=limit, seed=seed
    )
    text = "".join(jsonlib.dumps(row, ensure_ascii=False) + "\n" for row in found)
    out.parent.mkdir(parents=True, exist_ok=True)
    word = "replaced" if out.exists() else "wrote"
    write_atomic(out, text.encode("utf-8"), mode=0o600)  # posts and dialogues are personal
    if json:
        emit_json({"file": str(out), "n": len(found)})
    else:
        emit(f"{word} {out}: {len(found)} rows of prompt and response")


COMMANDS: dict[str, Any] = {"task rows": rows}
