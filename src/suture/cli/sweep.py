"""`suture sweep` and `suture pick`: the trade-off over a grid of knobs, and one setting of it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.run import Json, Limit, RecipeFile, Set, lab
from suture.cli.terminal import duration, emit, emit_json, size, table
from suture.errors import SutureError

if TYPE_CHECKING:
    from suture.runs.sweep import SweepOutcome, SweepPlan

Where = Annotated[
    str | None,
    typer.Option("--where", help='constraints, e.g. "safety >= 0.9, task >= before - 0.03"'),
]
Best = Annotated[
    str | None, typer.Option("--best", help="metric that decides when several settings fit")
]


def sweep(
    recipe: RecipeFile,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="run folder; default: runs/NAME-sweep")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="K=V,V", help="values of a knob, e.g. removed=0.4,0.7,1.0"),
    ] = None,
    where: Where = None,
    best: Best = None,
    split: Annotated[
        float | None,
        typer.Option("--split", help="share of the rows to choose by [default: 0.5]"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="folder that settings share [default: RUN/cache]"),
    ] = None,
    limit: Limit = None,
    set_: Set = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="print settings, memory, disk and time, and stop")
    ] = False,
    redact: Annotated[
        bool, typer.Option("--redact", help="keep no replies, and no harmful prompts in the report")
    ] = False,
    json: Json = False,
) -> int:
    """Derive a method at every point of a grid, measure each, and show the trade-off.

    Settings are chosen on one split of the rows and reported on another. The same command resumes;
    more values of a knob add to what is there. Exit code: that of the chosen setting's verdict, 0
    where nothing was to be chosen, 1 where the constraints choose nothing.
    """
    from suture.recipes import check_kind
    from suture.runs.sweep import plan_sweep, read_sweep, run_sweep

    check_kind(recipe, "sweep")
    if limit is not None and limit < 1:
        raise SutureError("E702", f"limit is {limit}", where="--limit", fix="give at least 1")
    changes = [*(set_ or ()), *map(_axis, grid or ())]
    given = {"where": where, "best": best, "split": split, "cache": cache and cache.resolve()}
    changes += [
        f"sweep.{key}={_quoted(value)}" for key, value in given.items() if value is not None
    ]
    found = read_sweep(recipe, changes, resolve=lab, limit=limit)
    folder = output or Path("runs") / f"{found.report.name}-sweep"
    if plan:
        costs = plan_sweep(found, folder)
        emit_json(costs.as_dict()) if json else emit(plan_text(costs))
        return 1 if costs.disk > costs.disk_free else 0
    command = shlex.join(["suture", *sys.argv[1:]])
    outcome = run_sweep(found, folder, command=command, redact=redact)
    if json:
        emit_json(outcome.as_dict())
        return outcome.exit_code
    emit(sweep_text(outcome))
    if outcome.error is not None:
        raise outcome.error
    return outcome.exit_code


def pick(
    run: Annotated[Path, typer.Argument(help="folder of a finished sweep")],
    output: Annotated[Path, typer.Option("-o", "--output", help="recipe file to write")],
    where: Where = None,
    best: Best = None,
    setting: Annotated[
        str | None, typer.Option("--setting", help="take this one: its number in the table")
    ] = None,
    json: Json = False,
) -> None:
    """Choose a setting of a sweep by its scores on the selection split; write its exact recipe.

    What is not given holds as in the sweep's recipe; --where "" is for no constraints.
    """
    from suture.runs.sweep import pick as choose

    if setting is not None and (where is not None or best is not None):
        raise SutureError(
            "E714", "--setting chooses by itself", fix="leave --where and --best out, or --setting"
        )
    found = choose(run, output, where=where, best=best, setting=setting)
    if json:
        emit_json(found)
        return
    scores = found["selection"]["scores"]
    told = ", ".join(f"{metric} {scores[metric]:.3f}" for metric in found["axes"])
    emit(f"setting {found['number']} ({found['label']}), by {found['by']}")
    emit(f"on the rows to choose by: {told}")
    emit(f"wrote {output}; its header holds the commands to go on with")


def _axis(text: str) -> str:
    """`removed=0.4,0.7` as a change of the recipe."""
    knob, equals, values = text.partition("=")
    if not equals or not knob.strip() or not values.strip():
        raise SutureError(
            "E714", f"cannot read the axis '{text}'", fix="write --grid KNOB=VALUE,VALUE"
        )
    return f"sweep.grid.{knob.strip()}=[{values}]"


def _quoted(value: Any) -> str:
    import json

    return json.dumps(value if isinstance(value, float) else str(value))


def sweep_text(outcome: SweepOutcome) -> str:
    """The settings as a table, what was chosen, and where the report is."""
    facts = outcome.facts
    axes: list[str] = facts["axes"]
    rows = [
        ("", str(facts["models"][side]), "", *(f"{scores[m]:.3f}" for m in axes), "")
        for side, scores in facts["sides"].items()
    ]
    several = len({row["method"] for row in facts["settings"]}) > 1
    rows += [
        _row(facts, row, f"{row['method']}, {row['label']}" if several else row["label"])
        for row in facts["settings"]
    ]
    lines = ["", table(rows, ("no", "setting", "", *axes, "on other rows")), ""]
    if outcome.error is None:
        chosen = [row for row in facts["settings"] if row["key"] == facts["picked"]]
        lines += [
            f"chosen   setting {r['number']} ({r['label']}), by {facts['why']}" for r in chosen
        ]
        lines += [] if chosen else ["chosen   none; `suture pick` chooses, see --where and --best"]
    lines += [f"seconds  {outcome.wall:.1f} now", f"report   {outcome.report}"]
    return "\n".join(lines)


def _row(facts: Mapping[str, Any], row: Mapping[str, Any], label: str) -> tuple[str, ...]:
    axes = facts["axes"]
    told = row["report"]
    if row["selection"] is None:
        return (str(row["number"]), label, "failed", *("" for _ in axes), row["failed"])
    mark = "chosen" if row["key"] == facts["picked"] else "front" if row["front"] else ""
    scores = row["selection"]["scores"]
    shown = "" if told is None else ", ".join(f"{told['scores'][m]:.3f}" for m in axes)
    last = f"{shown}: {told['verdict']}" if told else row["junk"] or ""
    return (
        str(row["number"]),
        label,
        "degenerate" if row["junk"] else mark,
        *(f"{scores[m]:.3f}" for m in axes),
        last,
    )


def plan_text(found: SweepPlan) -> str:
    """The plan of a sweep for people."""
    there = "unknown" if found.memory_there is None else size(found.memory_there)
    parts = found.parts
    lines = [
        f"settings {len(found.settings)}",
        *(f"  {number}  {label}" for number, label in enumerate(found.settings, 1)),
        "choose   on " + ", ".join(f"{name} ({n} items)" for name, n in found.selection.items()),
        "report   on " + ", ".join(f"{name} ({n} items)" for name, n in found.report.items()),
        f"tensors  at most {found.touched} of {found.tensors} are edited",
        f"memory   at most about {size(found.peak_memory)} (free now: {there})",
        f"disk     at most about {size(found.disk)}, {size(found.patches)} of patches and "
        f"{size(found.cache)} of cache in it (free: {size(found.disk_free)})",
        f"time     at most about {duration(found.seconds)} on this CPU, replies at full length: "
        f"deriving {duration(parts['deriving'])}, measuring to choose "
        f"{duration(parts['selection'])}, measuring for the report {duration(parts['report'])}",
    ]
    lines += [f"warning  {text}" for text in found.warnings]
    return "\n".join(lines)


COMMANDS: dict[str, Callable[..., Any]] = {"sweep": sweep, "pick": pick}
