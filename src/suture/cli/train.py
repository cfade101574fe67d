"""`suture train FILE`: pre-train, fine-tune, unalign or unlearn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.terminal import emit, emit_json, size, table

if TYPE_CHECKING:
    from suture.runs.trajectory import Trajectory
    from suture.training.pretrain import PretrainReport


def train(
    file: Annotated[Path, typer.Argument(help="recipe, e.g. recipes/unaligned.yaml")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. --set model=DIR")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Train as the recipe says; a killed run resumes with the same command."""
    from suture.progress import note
    from suture.recipes import check_kind
    from suture.runs.first_tokens import first_tokens
    from suture.runs.trajectory import read_training, run_training
    from suture.training.pretrain import is_pretraining, read_pretraining

    check_kind(file, "train")
    if is_pretraining(file):
        from suture.runs.pretraining import run_with_curves

        made = run_with_curves(read_pretraining(file, set_ or ()))
        if json:
            emit_json(made.as_dict())
        else:
            emit(_pretrained(made))
        return
    recipe = read_training(file, set_ or ())
    notes = first_tokens(recipe)
    for line in notes:
        note(line)
    report, trajectory = run_training(recipe)
    if json:
        found: dict[str, Any] = {"notes": notes} if notes else {}
        found |= {} if trajectory is None else {"trajectory": trajectory.as_dict()}
        emit_json({**report.as_dict(), **found})
        return
    wrote = report.output or (report.patch or {})["path"]
    speed = f", {report.tokens / report.seconds:,.0f} tokens/s" if report.seconds else ""
    here = f"; here, after step {report.resumed_at}:" if report.resumed_at else ","
    spent = f"{report.tokens} tokens, {report.seconds} s{speed}"
    emit(f"wrote {wrote}: {report.steps} steps{here} {spent}")
    if report.first_loss is not None:
        emit(f"loss {report.first_loss:.4f} -> {report.last_loss:.4f}")
    if report.best_step is not None:
        emit(f"the weights are those after step {report.best_step}, best on the dev rows")
    if report.peak_memory is not None:
        emit(f"memory at most {size(report.peak_memory)}")
    if report.patch:
        emit(f"patch {report.patch['path']}: {report.patch['tensors']} tensors")
    if trajectory is not None:
        emit(_epochs(trajectory, written=report.best_step is None))


def _pretrained(report: PretrainReport) -> str:
    """What a pre-training came to, for people."""
    speed = f", {report.tokens / report.seconds:,.0f} tokens/s" if report.seconds else ""
    beside = f"{report.checkpoints} checkpoints and curves" if report.checkpoints else "curves"
    lines = [
        f"wrote {report.output}: {report.parameters:,} parameters, {report.steps} steps, "
        f"{report.tokens} tokens, {report.seconds} s{speed}",
        f"dev loss {report.dev[0][1]:.4f} -> {report.dev[-1][1]:.4f}; {beside}: {report.folder}",
        *(f"warning: {line}" for line in report.warnings),
    ]
    if report.peak_memory is not None:
        lines.append(f"memory at most {size(report.peak_memory)}")
    return "\n".join(lines)


def _epochs(trajectory: Trajectory, *, written: bool) -> str:
    """The epochs that are reported and the last, metric by metric; the rest lies in the folder.

    `written`: the last epoch's weights are the ones that were written.
    """
    found = {one.epoch: one.metrics for one in trajectory.epochs}
    shown = dict(sorted(trajectory.reported.items()))
    last = max(found)
    if written:
        shown[last] = f"{shown[last]}, written" if last in shown else "written"
    heads = [f"epoch {epoch} ({why})" for epoch, why in shown.items()]
    rows = [
        (name, *(f"{found[epoch][name]:.4g}" if name in found[epoch] else "" for epoch in shown))
        for name in found[trajectory.fixed]
    ]
    patches = [
        f"epoch {epoch}: {path}" for epoch in shown if (path := trajectory.patch(epoch)) is not None
    ]
    curve = f"all {len(found)} measured epochs: {trajectory.folder / 'trajectory.svg'}"
    return "\n".join([table(rows, ("metric", *heads)), *patches, curve])


COMMANDS: dict[str, Callable[..., Any]] = {"train": train}
