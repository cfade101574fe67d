"""`suture import`: logs of other harnesses as measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from suture.cli.measured import save, show
from suture.cli.terminal import emit


def import_log(
    log: Annotated[
        Path, typer.Argument(help="lm-eval samples file or its folder, inspect .eval or .json log")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="measurement file to write")],
    task: Annotated[
        str | None, typer.Option("--task", help="the task to take, where the log has several")
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="name in the ledger; default: the task's")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="name of the model; default: what the log says")
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="do not write the replies")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Bring in a log of lm-eval (--log_samples) or inspect; rows are paired by item as any other.

    The weights behind a log are unknown, so the model is what the log calls it.
    """
    from suture.suites.importing import read_log

    found = read_log(log, task=task, suite=suite, model=model)
    show(found, out, json, replaced=save(found, out, redact=redact))
    if not json:
        emit(f"suite {found.suite}: {', '.join(found.metrics)}")


COMMANDS: dict[str, Any] = {"import": import_log}
