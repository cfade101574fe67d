"""`suture init`, `plan`, `run` and `demo`: whole runs from one recipe file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.terminal import duration, emit, emit_json, size, table
from suture.cli.verdicts import ledger_text
from suture.errors import SutureError

if TYPE_CHECKING:
    from suture.runs import Outcome, Plan
    from suture.runs.continual_plan import ContinualPlan
    from suture.runs.pretraining import PretrainingPlan
    from suture.runs.training_plan import TrainingPlan

Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="change a value, e.g. --set method.removed=0.5"),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        help="a trial: at most so many items of every suite (over-refusal: of each kind; safety: "
        "requests, before templates; open-ended: questions)",
    ),
]
RecipeFile = Annotated[Path, typer.Argument(help="recipe file; `suture init` writes one")]


def init(
    recipe: Annotated[str, typer.Argument(help="name, see `suture list recipes`")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="file to write")] = None,
    forget: Annotated[
        list[Path] | None,
        typer.Option("--forget", help="for `forget`: rows to forget, JSONL or a text file"),
    ] = None,
    retain: Annotated[
        list[Path] | None, typer.Option("--retain", help="for `forget`: rows to keep")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="for `forget`: the model that is to forget")
    ] = None,
    json: Json = False,
) -> None:
    """Write a commented recipe to start from; `forget` takes your own rows."""
    from suture.recipes import placed, recipe_path

    source = recipe_path(recipe)
    out = output or Path(source.name)
    if out.exists():
        raise SutureError(
            "E729", "the file exists", where=str(out), fix="choose another name with -o"
        )
    counts: dict[str, int] = {}
    if recipe == "forget":
        from suture.training.starter import forget_recipe

        text, counts = forget_recipe(forget or (), retain or (), model, folder=out.parent)
    elif forget or retain or model:
        raise SutureError(
            "E933",
            f"the recipe '{recipe}' takes no rows and no model here",
            fix="edit the paths in it, or start with: suture init forget --forget ROWS",
        )
    else:
        text = source.read_text(encoding="utf-8")
    text = placed(text, source, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x", encoding="utf-8") as file:
        file.write(text)
    if json:
        emit_json({"recipe": recipe, "path": str(out), **({"rows": counts} if counts else {})})
        return
    for side in ("forget", "retain"):
        if counts.get(side):
            emit(f"{side}: {counts[side]} rows, {counts[f'{side}_texts']} of them plain text")
    left = "look through it" if forget and model else "edit the paths in it"
    emit(f"wrote {out}: {left}; its header holds the commands to go on with")


def plan(recipe: RecipeFile, set_: Set = None, limit: Limit = None, json: Json = False) -> None:
    """Print tensors touched, memory, disk and time of a recipe, from headers alone."""
    from suture.recipes import check_kind, check_there
    from suture.runs import plan as make_plan
    from suture.runs import read_recipe
    from suture.runs.continual import is_continual
    from suture.runs.sweep import is_sweep
    from suture.runs.training_plan import is_training, plan_training
    from suture.training.pretrain import is_pretraining, read_pretraining

    check_there(recipe)
    if is_pretraining(recipe):
        from suture.runs.pretraining import plan_pretraining

        before = plan_pretraining(read_pretraining(recipe, set_ or ()))
        _tell_plan(before, pretraining_plan_text, json)
        return
    if is_training(recipe):
        from suture.runs.trajectory import read_training

        training = plan_training(read_training(recipe, set_ or ()))
        _tell_plan(training, training_plan_text, json)
        return
    if is_continual(recipe):
        from suture.runs.continual import read_continual
        from suture.runs.continual_plan import plan_continual

        steps = plan_continual(read_continual(recipe, set_ or (), resolve=lab, limit=limit))
        _tell_plan(steps, continual_plan_text, json)
        return
    if is_sweep(recipe):
        from suture.cli.sweep import sweep

        raise typer.Exit(sweep(recipe, set_=set_, limit=limit, plan=True, json=json))
    check_kind(recipe, "plan")
    found = make_plan(read_recipe(recipe, set_ or (), resolve=lab, limit=limit))
    _tell_plan(found, plan_text, json)


def _tell_plan(found: Any, as_text: Callable[[Any], str], json: bool) -> None:
    """A plan; exit 1 where the disk has no room for it."""
    if json:
        emit_json(found.as_dict())
    else:
        emit(as_text(found))
    if found.disk > found.disk_free:
        raise typer.Exit(1)


def run(
    recipe: RecipeFile,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="run folder; default: runs/NAME")
    ] = None,
    set_: Set = None,
    limit: Limit = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="keep no replies, and no harmful prompts in the report")
    ] = False,
    json: Json = False,
) -> int:
    """Do everything in a recipe. The same command resumes; exit code 0 proven, 2 broke, 3 not."""
    from suture.recipes import check_kind
    from suture.runs.continual import is_continual

    check_kind(recipe, "run")
    if is_continual(recipe):
        return _continual(recipe, output, set_, json, limit)
    return _run(recipe, output, set_, redact, json, limit)


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="run folder")] = Path("demo"),
    set_: Set = None,
    json: Json = False,
) -> int:
    """Show the whole story on the lab: damage, repair, proof, report. Offline, on two cores."""
    from suture.recipes import recipe_path

    if not json:
        emit("The lab: a small chat model that refuses harmful requests (aligned), and the same")
        emit("model after harmless fine-tuning on a task (tuned): better at the task, less safe.")
        emit(
            "IRR repairs the tuned one; paired measurements say what improved and what was kept.\n"
        )
    return _run(recipe_path("demo"), output, set_, False, json)


def _run(
    file: Path,
    output: Path | None,
    set_: list[str] | None,
    redact: bool,
    json: bool,
    limit: int | None = None,
) -> int:
    from suture.runs import read_recipe
    from suture.runs import run as run_recipe

    recipe = read_recipe(file, set_ or (), resolve=lab, limit=limit)
    folder = output or Path("runs") / recipe.name
    command = shlex.join(["suture", *sys.argv[1:]])
    outcome = run_recipe(recipe, folder, command=command, redact=redact)
    if json:
        emit_json(outcome.as_dict())
    else:
        emit(outcome_text(outcome))
    return outcome.exit_code


def _continual(
    file: Path, output: Path | None, set_: list[str] | None, json: bool, limit: int | None
) -> int:
    """Category after category. It compares approaches and gives no verdict: exit code 0."""
    from suture.runs.continual import read_continual, run_continual
    from suture.runs.progress_table import main_rows

    recipe = read_continual(file, set_ or (), resolve=lab, limit=limit)
    folder = output or Path("runs") / recipe.name
    facts = run_continual(recipe, folder)
    if json:
        emit_json({"run": str(folder), **facts})
    else:
        head, rows = main_rows(facts)
        emit(table(rows, head))
        for text in facts["notes"]:
            emit(text)
        emit(
            f"every metric, means and forgetting: {folder / 'continual.md'}, continual.json beside"
        )
        if (folder / "report.html").is_file():
            emit(f"report   {folder / 'report.html'}")
    return 0


def lab(section: str, name: str) -> Any:
    """What `lab:NAME` in a recipe stands for: a member's folder and patches, or a file of rows."""
    from suture.lab import shipped

    if section != "models":
        return str(shipped.rows(name))
    folder, patches = shipped.member(name)
    return {"path": str(folder), "patches": [str(patch) for patch in patches]}


def outcome_text(outcome: Outcome) -> str:
    """The verdict table, what the patch is, how long each stage took, and where the report is."""
    patch = outcome.patch
    stages = "  ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.seconds.items())
    parts = [
        "",
        ledger_text(outcome.ledger),
        "",
        f"patch    {outcome.folder / 'patch'}: {patch.get('tensors')} tensors, "
        f"{patch.get('elements'):,} elements, {size(patch.get('bytes') or 0)}",
        f"seconds  {outcome.wall:.1f} now; by stage: {stages}",
        f"report   {outcome.report}",
        f"\n{outcome.ledger.verdict.upper()}",
    ]
    return "\n".join(parts)


def plan_text(found: Plan) -> str:
    """The plan for people."""
    models = [
        (
            name,
            about["architecture"],
            f"{about['parameters']:,}",
            size(about["bytes"]),
            about["path"],
        )
        for name, about in found.models.items()
    ]
    share = found.touched_parameters / max(found.parameters, 1)
    parts = [
        table(models, ("model", "architecture", "parameters", "size", "folder")),
        "",
        f"method   {found.method}: may edit {len(found.touched)} of {found.tensors} tensors, "
        f"{found.touched_parameters:,} parameters ({share:.0%})",
        *_costs(found),
    ]
    return "\n".join(parts)


def continual_plan_text(found: ContinualPlan) -> str:
    """The plan of a continual run for people."""
    model = found.model
    rows = ", ".join(f"{name} ({n} rows)" for name, n in found.categories.items())
    steps = [
        (name, str(one.trainings), f"{one.steps:,}", f"{one.tokens:,}", duration(one.seconds))
        for name, one in found.approaches.items()
    ]
    parts = [
        f"model    {model['path']}: {model['architecture']}, {model['parameters']:,} parameters; "
        f"{found.touched_parameters:,} in {found.touched} tensors are trained",
        f"order    {rows}",
        "",
        table(steps, ("approach", "trainings", "optimiser steps", "tokens", "time, each category")),
        "",
        f"measured {found.measurements} times, {duration(found.measuring_seconds)} each: before, "
        "and after every category of every approach",
        *_costs(found),
    ]
    return "\n".join(parts)


def training_plan_text(found: TrainingPlan) -> str:
    """The plan of a training for people."""
    model = found.model
    dev = f", {found.dev} dev rows" if found.dev else ""
    parts = [
        f"model    {model['path']}: {model['architecture']}, {model['parameters']:,} parameters; "
        f"{found.trained:,} are trained",
        f"train    {found.objective}: {found.examples} rows{dev}, {found.steps:,} steps, "
        f"{found.tokens:,} tokens",
    ]
    if found.teacher is not None:
        parts.append(
            f"teacher  {found.teacher['positions']:,} positions x {found.teacher['vocabulary']:,} "
            f"tokens: {size(found.teacher['bytes'])} on disk, twice that while it is made"
        )
    return "\n".join([*parts, *_needs(found, "")])


def pretraining_plan_text(found: PretrainingPlan) -> str:
    """The plan of a pre-training for people."""
    arm = "" if found.arm is None else f"{found.arm}: "
    text = "packed" if found.packed else "estimated"
    parts = [
        f"model    {arm}{found.model_type}, {found.parameters:,} parameters",
        f"text     {found.text_tokens:,} tokens ({text}), read {found.passes:g} times",
        f"train    {found.steps:,} steps, {found.tokens:,} tokens, {found.checkpoints} checkpoints",
    ]
    return "\n".join([*parts, *_needs(found, "")])


def _costs(found: Plan | ContinualPlan) -> list[str]:
    """Suites with what they bring, memory, disk, time, warnings."""
    lines = ["suites   " + ", ".join(f"{name} ({n} items)" for name, n in found.suites.items())]
    lines += [f"         {name}: {told}" for name, told in found.extras.items()]
    if found.cache is not None:
        lines.append(f"cache    {found.cache}: what was answered before is looked up")
    return [*lines, *_needs(found, ", replies at full length")]


def _needs(found: Plan | ContinualPlan | TrainingPlan | PretrainingPlan, how: str) -> list[str]:
    """Memory, disk, time, warnings."""
    there = "unknown" if found.memory_there is None else size(found.memory_there)
    return [
        f"memory   at most about {size(found.peak_memory)} (free now: {there})",
        f"disk     at most about {size(found.disk)} (free: {size(found.disk_free)})",
        f"time     at most about {duration(found.seconds)} on this CPU{how}",
        *(f"warning  {text}" for text in found.warnings),
    ]


COMMANDS: dict[str, Callable[..., Any]] = {"init": init, "plan": plan, "run": run, "demo": demo}
