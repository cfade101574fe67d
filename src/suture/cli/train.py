"""`suture train FILE`: fine-tune, unalign or unlearn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from suture.cli.terminal import emit, emit_json, size


def train(
    file: Annotated[Path, typer.Argument(help="recipe, e.g. recipes/unaligned.yaml")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. --set model=DIR")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Train as the recipe says; a killed run resumes with the same command."""
    from suture.training.recipe import read_recipe, run_recipe

    report = run_recipe(read_recipe(file, set_ or ()))
    if json:
        emit_json(report.as_dict())
        return
    wrote = report.output or (report.patch or {})["path"]
    speed = f", {report.tokens / report.seconds:,.0f} tokens/s" if report.seconds else ""
    emit(f"wrote {wrote}: {report.steps} steps, {report.tokens} tokens, {report.seconds} s{speed}")
    if report.first_loss is not None:
        emit(f"loss {report.first_loss:.4f} -> {report.last_loss:.4f}")
    if report.best_step is not None:
        emit(f"the weights are those after step {report.best_step}, best on the dev rows")
    if report.peak_memory is not None:
        emit(f"memory at most {size(report.peak_memory)}")
    if report.patch:
        emit(f"patch {report.patch['path']}: {report.patch['tensors']} tensors")


COMMANDS: dict[str, Callable[..., Any]] = {"train": train}
