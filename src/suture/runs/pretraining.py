"""A pre-training with its curves, and what it will need: `suture train` and `suture plan`."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from suture.checkpoint.jsonfile import write_atomic
from suture.patch import open_model
from suture.report.curves import curves
from suture.report.svg import standalone
from suture.runs.plan import (
    BASE_MEMORY,
    FIXED_SECONDS,
    existing,
    flops,
    memory_there,
    shortages,
)
from suture.runs.training_plan import TRAIN_SHARE
from suture.training.newborn import model_config, size_of
from suture.training.packed import PARTS, Packed, characters, packing_identity
from suture.training.pretrain import (
    PretrainRecipe,
    PretrainReport,
    early,
    kept_steps,
    packed_folder,
    run_pretraining,
)
from suture.training.record import Record
from suture.training.vocabulary import TrainedTokenizer

_STATE = 16  # bytes per parameter of weights, gradients and both moments
_CHARACTERS = 3.6  # per token of English in a small vocabulary, about
_POINTS = 300  # on the curve of the training loss
_ROUTERS = ("load_entropy", "router_entropy")
_PARTS = ("balance", "z", "trunk", "inner", "attention", "logits", "hidden")


@dataclass(frozen=True)
class PretrainingPlan:
    """The costs of a pre-training. `tokens`: of all steps; `text_tokens`: of the text that is
    trained on, exact once it is packed; `passes`: how often it is read."""

    arm: str | None
    model_type: str
    parameters: int
    steps: int
    tokens: int
    text_tokens: int
    packed: bool
    passes: float
    checkpoints: int
    peak_memory: int
    memory_there: int | None
    disk: int
    disk_free: int
    seconds: float
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def run_with_curves(recipe: PretrainRecipe) -> PretrainReport:
    """`run_pretraining`; with every dev loss the curves beside its record are drawn anew."""
    name = recipe.output.name if recipe.arm is None else f"{recipe.output.name} ({recipe.arm})"
    return run_pretraining(recipe, on_record=lambda record: draw(record, name))


def draw(record: Record, name: str) -> None:
    """Beside the record, over the steps: training and dev loss (`curves.svg`), how even the routers
    are (`routers.svg`), and what else is descended, unweighted (`parts.svg`)."""
    losses = {"training": thinned(record.curve("lm") or record.curve("loss"))}
    losses["dev"] = [(float(step), value) for step, value in record.curve("dev")]
    for file, what, unit, lines in (
        ("curves", "Pre-training of", "loss in nats", losses),
        ("routers", "Routers of", "entropy in nats, mean over layers", _found(record, _ROUTERS)),
        ("parts", "Further losses of", "unweighted", _found(record, _PARTS)),
    ):
        drawn = curves(
            lines, title=f"{what} {name}", x_label="step", y_label=unit, as_percent=False
        )
        if drawn:
            write_atomic(record.file.parent / f"{file}.svg", standalone(drawn).encode())


def _found(record: Record, names: tuple[str, ...]) -> dict[str, list[tuple[float, float]]]:
    """The curves of these names that are not empty."""
    return {name: thinned(points) for name in names if (points := record.curve(name))}


def thinned(points: list[tuple[int, float]], most: int = _POINTS) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of those it stands for."""
    size = max(1, -(-len(points) // most))
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [
        (sum(step for step, _ in some) / len(some), sum(value for _, value in some) / len(some))
        for some in groups
    ]


def plan_pretraining(recipe: PretrainRecipe) -> PretrainingPlan:
    """The plan of a pre-training; it raises what the training would raise of model and files.

    The text is read, but not tokenized: where it is not packed yet, its tokens are estimated.
    """
    from suture.inference.loading import load_tokenizer

    spec, config = recipe.pretrain, recipe.train
    folder = packed_folder(recipe)
    if recipe.start is not None:
        open_model(recipe.start)  # it is there
    packing_identity(spec.texts, spec.tokenizer, spec.held_out)  # the files are there
    there = (folder / "packed.json").is_file()
    if there:
        facts = Packed.open(folder).facts
        text, dev = (int(facts["tokens"][part]) for part in PARTS)
    else:
        found = characters(spec.texts, spec.held_out)
        text, dev = (int(found[part] / _CHARACTERS) for part in PARTS)
        trained = isinstance(spec.tokenizer, TrainedTokenizer)
        size = spec.tokenizer.vocabulary if trained else len(load_tokenizer(spec.tokenizer))  # type: ignore[union-attr,arg-type]
        facts = {"vocabulary": size, "end": 0}
    shape = model_config(recipe.shape, facts, block=spec.block)
    numbers = size_of(shape, spec.objective.name)
    rows = config.batch_rows or max(1, config.batch_tokens // spec.block) * config.accumulate
    each = max(1, text // spec.block // rows)
    steps = config.steps or each * (config.epochs or 1)
    settings = config.model_copy(
        update={"steps": steps, "warmup": each if config.warmup == "epoch" else config.warmup}
    )
    tokens = steps * rows * spec.block
    kept = len(kept_steps(recipe.checkpoints, steps)) if recipe.checkpoints else 0
    vocabulary = int(shape.vocab_size)
    hidden, layers = int(shape.hidden_size), int(shape.num_hidden_layers)
    wide = int(getattr(shape, "ffn_width", 0) or getattr(shape, "intermediate_size", 4 * hidden))
    batch = config.batch_tokens * 4 * (layers * (16 * hidden + 4 * wide) + 3 * vocabulary)
    memory = BASE_MEMORY + _STATE * numbers + batch
    products = 6.0 * numbers * tokens
    if recipe.distil is not None:
        teacher = recipe.distil.teacher_config(shape, _tokenizer(recipe, folder if there else None))
        taught = size_of(teacher, spec.objective.name)
        memory += 4 * taught + batch  # its states beside the student's
        products += 2.0 * taught * tokens
    disk = (1 + kept) * 4 * numbers + 2 * 12 * numbers + (0 if there else 3 * text) + 2**20
    free = shutil.disk_usage(existing(recipe.output)).free
    room = memory_there()
    warnings = []
    if text < spec.block * rows:
        warnings.append("the text does not fill one step; give more, or lower train.batch_tokens")
    if dev < spec.block:
        warnings.append("the text held out does not fill a block; raise pretrain.held_out")
    warnings += early(settings) + shortages(memory, room, disk, free)
    return PretrainingPlan(
        arm=recipe.arm,
        model_type=str(shape.model_type),
        parameters=numbers,
        steps=steps,
        tokens=tokens,
        text_tokens=text,
        packed=there,
        passes=round(tokens / max(1, text), 2),
        checkpoints=kept,
        peak_memory=memory,
        memory_there=room,
        disk=disk,
        disk_free=free,
        seconds=round(FIXED_SECONDS + products / (flops() * TRAIN_SHARE), 1),
        warnings=warnings,
    )


def _tokenizer(recipe: PretrainRecipe, packed: Path | None) -> Path | None:
    """The folder of the tokenizer, None where it is to be trained."""
    if packed is not None:
        return Packed.open(packed).tokenizer
    given = recipe.pretrain.tokenizer
    return given if isinstance(given, Path) else None
