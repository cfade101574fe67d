"""What `suture train FILE` will do, need and take: from headers, rows and the tokenizer alone.

Steps, tokens and the size of RKLD's teacher are exact, since rows are tokenized as the training
will; memory and disk are upper estimates, time a rough one for this machine's CPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.config import read_yaml
from suture.recipes import verb_of
from suture.runs.plan import (
    BASE_MEMORY,
    FIXED_SECONDS,
    about,
    existing,
    flops,
    memory_there,
    numel,
    shortages,
)
from suture.training.batches import Example
from suture.training.objectives import RKLD
from suture.training.recipe import TrainRecipe, check_apart, check_free, encoded, named_rows
from suture.training.schedule import planned
from suture.training.teacher import augmenting, teacher_bytes

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource

TRAIN_SHARE = 0.4  # of the matrix product's speed that a training step reaches
STEP_OVERHEAD = 0.02  # seconds of a step whatever the size
STATE = 12  # bytes per trained parameter of weights and both moments
_PEFT = 64 * 2**20  # the library
_HOLD_A_COPY = ("gradient-ascent-kl", "kl-min", "rmu", "undial")  # of the model before training


@dataclass(frozen=True)
class TrainingPlan:
    """The costs of a training. `trained`: parameters; `tokens`: of all steps, padding aside;
    `teacher`: positions, vocabulary and bytes of RKLD's teacher, None without one."""

    model: dict[str, Any]
    objective: str
    trained: int
    examples: int
    dev: int
    steps: int
    tokens: int
    teacher: dict[str, int] | None
    peak_memory: int
    memory_there: int | None
    disk: int
    disk_free: int
    seconds: float
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def is_training(path: str | Path) -> bool:
    """Whether a recipe file is one for `suture train`."""
    return verb_of(read_yaml(path)) == "train"


def plan_training(recipe: TrainRecipe) -> TrainingPlan:
    """The plan of a training; it raises what the training would raise of its rows and outputs."""
    from suture.patch import open_model

    check_free(recipe)
    source = open_model(recipe.model)
    data, retain = named_rows(recipe.data), named_rows(recipe.retain)
    check_apart(data, retain)
    reading: Any = _Reading(source, recipe)
    examples = encoded(reading, data, recipe)[1]
    dev = encoded(reading, named_rows(recipe.dev), recipe)[1]
    lengths = [len(example.ids) for example in examples]
    steps = planned(recipe.train, lengths)[0]
    tokens = _seen(recipe, lengths, steps)
    trained = _trained(recipe, source)
    teacher = _teacher(recipe, source, examples)
    memory = _memory(recipe, source, trained)
    disk = _disk(recipe, source, trained, teacher)
    place = recipe.output or recipe.patch or Path()
    free, there = shutil.disk_usage(existing(place)).free, memory_there()
    warnings = shortages(memory, there, disk, free)
    return TrainingPlan(
        model=about(source),
        objective=recipe.objective.name,
        trained=trained,
        examples=len(examples),
        dev=len(dev),
        steps=steps,
        tokens=tokens,
        teacher=teacher,
        peak_memory=memory,
        memory_there=there,
        disk=disk,
        disk_free=free,
        seconds=_seconds(recipe, source, lengths, steps, tokens),
        warnings=warnings,
    )


def activations(source: TensorSource, tokens: int, *, again: bool = False) -> int:
    """Bytes that a batch of `tokens` leaves for the backward pass; `again`: blocks recompute."""
    layers = int(source.config.get("num_hidden_layers") or 1)
    hidden = int(source.config.get("hidden_size") or 0)
    inner = int(source.config.get("intermediate_size") or 4 * hidden)
    block = tokens * 4 * (16 * hidden + 4 * inner)
    inside = block + tokens * layers * 4 * hidden if again else block * layers
    head = 3 * 4 * _vocabulary(source) * tokens // 4  # logits for labelled positions alone
    return inside + head


class _Reading:
    """As much of a loaded model as reading rows takes."""

    def __init__(self, source: TensorSource, recipe: TrainRecipe) -> None:
        from suture.data import ChatTemplate
        from suture.inference.loading import load_tokenizer

        self.tokenizer = load_tokenizer(source.path)
        self.template = ChatTemplate.from_folder(source.path, override=recipe.chat_template)
        room = source.config.get("max_position_embeddings")
        self.context = room if isinstance(room, int) else None

    def within(self, tokens: int) -> int:
        return tokens if self.context is None else min(tokens, self.context)

    def check_rows(self, *_: Any) -> None:
        """The embedding is looked at when the training begins."""


def _vocabulary(source: TensorSource) -> int:
    return int(source.config.get("vocab_size") or 0)


def _trained(recipe: TrainRecipe, source: TensorSource) -> int:
    """Parameters that are trained."""
    from suture.methods.common import scoped_names

    if recipe.lora is None:
        return numel(source, scoped_names(source, recipe.scope))
    endings = tuple(f"{target}.weight" for target in recipe.lora.targets)
    shapes = [info.shape for name, info in source.tensors.items() if name.endswith(endings)]
    return sum(recipe.lora.rank * sum(shape) for shape in shapes)


def _teacher(
    recipe: TrainRecipe, source: TensorSource, examples: Sequence[Example]
) -> dict[str, int] | None:
    objective = recipe.objective
    if not isinstance(objective, RKLD) or objective.teacher == "live":
        return None
    unique = {example.ids: example for example in examples}.values()
    positions = sum(len(e.ids) - max(1, e.loss_from) for e in unique)
    if not objective.include_eos:
        positions -= len(unique)
    vocabulary = _vocabulary(source)
    size = teacher_bytes(positions, vocabulary)
    return {"positions": positions, "vocabulary": vocabulary, "bytes": size}


def _memory(recipe: TrainRecipe, source: TensorSource, trained: int) -> int:
    """Weights in float32, gradients and two moments of what is trained, a batch, frozen copies."""
    objective, weights = recipe.objective, 4 * numel(source, source.tensors)
    copies = 0
    if getattr(objective, "retain", "none") == "KL" or objective.name in _HOLD_A_COPY:
        copies += recipe.lora is None  # under an adapter the model without it serves
    beside = 0
    if isinstance(objective, RKLD):
        if objective.teacher == "live":
            copies += 1 if recipe.lora else 2
        elif objective.augmented is not None:
            beside = weights  # read before the first step, when there are no gradients yet
    extra = 4 * trained + _PEFT if recipe.lora else 0  # the adapter itself
    config = recipe.train
    batch = activations(source, config.batch_tokens, again=config.gradient_checkpointing)
    largest = max(numel(source, [name]) for name in source.tensors)
    beside_it = 0 if recipe.lora else 16 * largest  # a tied gradient twice, AdamW's own tables
    training = extra + STATE * trained + beside_it + batch
    return BASE_MEMORY + (1 + copies) * weights + max(training, beside)


def _disk(
    recipe: TrainRecipe, source: TensorSource, trained: int, teacher: dict[str, int] | None
) -> int:
    """States (the new one is whole before the old one goes), teacher, and what is written."""
    held = teacher["bytes"] if teacher else 0
    states = 2 * STATE * trained + (4 * trained if recipe.dev else 0)
    making = 2 * held + states + 4 * trained if teacher else 0
    written = 4 * trained if recipe.lora else 0
    if recipe.output and not recipe.lora:
        written += sum(info.nbytes for info in source.tensors.values())
    if recipe.patch:
        written += sum(info.nbytes for info in source.tensors.values()) * 9 // 8
    return max(making, held + states + written) + 2**20


def _seconds(
    recipe: TrainRecipe, source: TensorSource, lengths: Sequence[int], steps: int, tokens: int
) -> float:
    """Forward 1, backward 2 (1 where the weights are frozen), each 2 products per parameter."""
    objective, config = recipe.objective, recipe.train
    each = (2.0 if recipe.lora else 3.0) + (1.0 if config.gradient_checkpointing else 0.0)
    passes, all_steps = each * tokens, steps
    if isinstance(objective, RKLD):
        if objective.augmented is None:
            more = planned(augmenting(objective, config), lengths)[0]
            all_steps += more
            passes += each * _seen(recipe, lengths, more)
        passes += 2.0 * (tokens if objective.teacher == "live" else sum(lengths))
    if getattr(objective, "retain", "none") != "none":
        passes += each * tokens
    products = 2.0 * numel(source, source.tensors) * passes
    return round(FIXED_SECONDS + products / (flops() * TRAIN_SHARE) + all_steps * STEP_OVERHEAD, 1)


def _seen(recipe: TrainRecipe, lengths: Sequence[int], steps: int) -> int:
    """Tokens of so many steps: whole passes exactly, what is left of the last in proportion."""
    config = recipe.train.model_copy(update={"steps": None, "epochs": 1})
    return round(steps / planned(config, lengths)[0] * sum(lengths))
