"""A training run as a file: start from a checkpoint, read rows, end in another one.

Full training writes a checkpoint and, if asked, its patch; LoRA training a PEFT folder.

`suture train recipes/unaligned.yaml` makes the unaligned model that IRR's safety vector needs out
of the aligned one, with affirmative prefixes instead of harmful answers (inferred, see
docs/methods/irr.md: the paper trains on BeaverTails answers).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from suture.checkpoint import TensorEdit
from suture.config import FrozenConfig, one_or_many, override, read_yaml
from suture.data import (
    AnsweredPair,
    ChatTemplate,
    Pair,
    Passage,
    encode,
    read_answered_numbered,
    rows_sha256,
    same_text,
)
from suture.errors import SutureError, some
from suture.lazy import torch
from suture.progress import note
from suture.training.batches import Example
from suture.training.known import check_known
from suture.training.loop import TrainConfig, TrainResult, train
from suture.training.lora import LoraConfig, attach, save_adapter
from suture.training.meter import peak_memory
from suture.training.objectives import Material, NextToken, ObjectiveConfig
from suture.training.objectives.retain import Unlearning
from suture.training.texts import pieces

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.inference import LoadedModel

OnEpoch = Callable[[int, "LoadedModel", Any], None]  # (passes done, model, what is trained of it)


class DataFile(FrozenConfig):
    """JSONL rows {"prompt", "response"}, {"question", "answer"} or {"text"}, or a text file."""

    file: Path
    repeat: int = Field(1, ge=1, description="times each row enters the training set")
    limit: int | None = Field(None, ge=1, description="only the first rows")

    @model_validator(mode="before")
    @classmethod
    def _by_path_alone(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str | Path) else value


DataFiles = Annotated[tuple[DataFile, ...], BeforeValidator(one_or_many)]


class TrainRecipe(FrozenConfig):
    """Everything that decides the result of `suture train`."""

    model: Path = Field(description="checkpoint folder to start from")
    data: DataFiles = Field(
        min_length=1, description="rows to learn or to forget: a path, several, or with repeat"
    )
    output: Path | None = Field(
        None, description="folder of the trained checkpoint, or of the LoRA adapter"
    )
    patch: Path | None = Field(None, description="folder of the patch from model to what it became")
    loss: Literal["response", "all"] = Field("response", description="tokens that count")
    response_tokens: int | None = Field(
        None, ge=1, description="only the first so many tokens of a response; the rest is cut off"
    )
    objective: ObjectiveConfig = Field(
        NextToken(), description="what is minimised: next-token, gradient-ascent, npo, ..."
    )
    retain: DataFiles = Field((), description="rows whose behaviour is to be kept")
    dev: DataFiles = Field(
        (), description="rows not trained on; the epoch that answers them best is the result"
    )
    scope: Literal["model", "all", "qv"] = Field(
        "model", description="trained: every tensor, the blocks' matrices, or query and value"
    )
    lora: LoraConfig | None = None
    train: TrainConfig
    max_length: int | None = Field(
        None, ge=8, description="longer examples lose their end; default: 1024, or the context"
    )
    too_long: Literal["refuse", "leave-out"] = Field(
        "refuse", description="rows whose prompt alone fills max_length"
    )
    chat_template: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class TrainReport:
    """What `suture train` prints. Losses: means over the first and the last tenth of the steps.

    Losses, `tokens`, `seconds` and `peak_memory` (bytes) are of this process, which went on after
    step `resumed_at`; `best_step`: whose weights were written, where dev rows chose.
    """

    output: str | None
    patch: dict[str, Any] | None
    examples: int
    steps: int
    tokens: int
    seconds: float
    first_loss: float | None
    last_loss: float | None
    best_step: int | None = None
    peak_memory: int | None = None
    resumed_at: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainRecipe:
    """The recipe in a YAML file: its paths are relative to it, those of `--set` to where you are.

    Errors: E701–E705 for unknown keys and wrong values, with file and nearest right name.
    """
    return TrainRecipe.load(training_values(path, overrides), where=path)


def training_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a training recipe says, its paths resolved."""
    values = read_yaml(path)
    folder = Path(path).parent
    for key in ("model", "output", "patch", "chat_template"):
        if isinstance(values.get(key), str):
            values[key] = folder / values[key]
    for key in ("data", "retain", "dev"):
        if values.get(key) is not None:
            values[key] = [_placed(part, folder) for part in _many(values[key])]
    objective = values.get("objective")
    for key in ("augmented", "cache"):
        if isinstance(objective, dict) and isinstance(objective.get(key), str):
            objective[key] = folder / objective[key]
    return override(values, overrides)


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _placed(part: Any, folder: Path) -> Any:
    """A data file of a recipe, its path below the recipe's folder."""
    if isinstance(part, str):
        return folder / part
    if isinstance(part, dict) and isinstance(part.get("file"), str):
        return {**part, "file": folder / part["file"]}
    return part


def run_recipe(
    recipe: TrainRecipe,
    source: TensorSource | None = None,
    *,
    on_epoch: OnEpoch | None = None,
) -> TrainReport:
    """Train and write; the same call resumes a killed run and ends in the same bytes.

    `source`: what to start from, instead of the folder `model` (a patched model, for one).
    `on_epoch(n, lm, model)`: called after `n` passes over the rows, to measure; see `train`.
    `model` is what is trained: `lm.model`, or an adapter around it.
    The base folder is never touched. Errors: E901–E906, E911–E917, those of the objective, of
    checkpoint and data; E508 and E919 where the tokenizer is another model's.
    """
    from suture.checkpoint import CheckpointWriter, Sink
    from suture.inference import load
    from suture.patch import PatchWriter, drain, open_model

    out = recipe.output or recipe.patch
    if out is None or (recipe.lora and recipe.output is None):
        raise SutureError(
            "E913",
            "there is nowhere to write to",
            fix="a LoRA run writes an adapter: give output"
            if recipe.lora
            else "give output or patch",
        )
    check_free(recipe)
    if recipe.lora and recipe.patch:
        raise SutureError(
            "E906",
            "a LoRA run writes an adapter, not a patch",
            fix="drop `patch`, then: suture diff BASE ADAPTER -o PATCH --aligned BASE",
        )
    data, retain, dev = (named_rows(parts) for parts in (recipe.data, recipe.retain, recipe.dev))
    if recipe.objective.needs_retain and not retain:
        raise SutureError(
            "E911",
            f"objective '{recipe.objective.name}' needs rows to keep",
            fix="give them as retain: [{file: ROWS.jsonl}], or set the weights that use them to 0",
        )
    check_apart(data, retain)
    source = open_model(recipe.model) if source is None else source
    lm = load(source, device=recipe.device, dtype="float32", chat_template=recipe.chat_template)
    rows, examples = encoded(lm, data, recipe)
    room = recipe.max_length or lm.within(1024)
    state = out.parent / f".{out.name}.training"
    model = lm.model
    if recipe.lora:
        model = attach(model, recipe.lora, seed=recipe.train.seed)
    else:
        _unfreeze(model, recipe.scope)
    kept = [row for _, row in retain]
    material = Material(lm, model, rows, examples, kept, recipe.train, room, state)
    objective = recipe.objective.build(material)
    if isinstance(objective, Unlearning):
        check_known(material)
    result = train(
        model,
        examples,
        recipe.train,
        objective=objective,
        dev=encoded(lm, dev, recipe)[1],
        state=state,
        identity=_identity(recipe, source, kept),
        label=out.name,
        on_epoch=None if on_epoch is None else partial(_with_models, on_epoch, lm, model),
    )
    info: dict[str, Any] | None = None
    if recipe.lora and recipe.output:
        save_adapter(model, recipe.output, base=str(recipe.model))
    else:
        sinks: list[Sink] = []
        if recipe.output:
            sinks.append(CheckpointWriter(source, recipe.output))
        if recipe.patch:
            facts = {
                "method": "train",
                "config": recipe.model_dump(mode="json"),
                "rows_sha256": rows_sha256(row for _, row in data),
            }
            writer = PatchWriter(source, recipe.patch, provenance=facts)
            sinks.append(writer)
        drain(edits_from(lm), sinks)
        if recipe.patch and writer.info:
            info = writer.info.as_dict()
    shutil.rmtree(state, ignore_errors=True)
    return _report(recipe, info, len(examples), result, peak_memory(lm.device))


def _with_models(on_epoch: OnEpoch, lm: LoadedModel, model: Any, epochs: int) -> None:
    on_epoch(epochs, lm, model)


def check_free(recipe: TrainRecipe) -> None:
    """Error E905: an output is there already."""
    for out in (recipe.output, recipe.patch):
        if out is not None and out.exists():
            raise SutureError(
                "E905",
                "the output folder exists",
                where=str(out),
                fix="choose another output, or remove it",
            )


def named_rows(parts: Sequence[DataFile]) -> list[tuple[str, AnsweredPair]]:
    """The rows of some files, `repeat` times over, all with a response (E306), each with what
    errors call it by: FILE:LINE, since an id may be the name of somebody to be forgotten."""
    return [
        (f"{part.file}:{line}", row)
        for part in parts
        for line, row in read_answered_numbered(part.file, limit=part.limit) * part.repeat
    ]


def check_apart(
    data: Sequence[tuple[str, Pair]], retain: Sequence[tuple[str, Pair]], shown: int = 5
) -> None:
    """Error E915: rows that are to be trained on stand among those to keep, named.

    Rows are the same if prompt and response are, case and blanks aside (as in the suites).
    """
    held = {_text(row): name for name, row in retain}
    both = {name: held[_text(row)] for name, row in data if _text(row) in held}
    if both:
        pairs = [f"{name} = {held_name}" for name, held_name in list(both.items())[:shown]]
        more = f" and {len(both) - shown} more" if len(both) > shown else ""
        raise SutureError(
            "E915",
            f"{len(both)} rows stand in data and in retain",
            where=", ".join(pairs) + more,
            why="the same answer would be changed and kept",
            fix="take them out of one of the two",
        )


def _text(row: Pair) -> tuple[str, str]:
    return same_text(row.prompt), same_text(row.response or "")


def encode_rows(
    tokenizer: Any,
    template: ChatTemplate,
    rows: Sequence[Pair],
    *,
    loss: Literal["response", "all"] = "response",
    max_length: int = 1024,
) -> list[Example]:
    """Chat-formatted examples; rows whose prompt alone fills `max_length` are left out.

    A plain text becomes as many examples as it takes, in all of which everything counts.
    """
    examples = []
    for row in rows:
        if isinstance(row, Passage):
            examples += pieces(tokenizer, str(row.response), max_length)
            continue
        coded = encode(tokenizer, template, row.prompt, row.response)
        if coded.prompt_length < max_length:
            start = coded.prompt_length if loss == "response" else 0
            examples.append(Example(tuple(coded.ids[:max_length]), start))
    return examples


def encoded(
    lm: LoadedModel, rows: Sequence[tuple[str, AnsweredPair]], recipe: TrainRecipe
) -> tuple[list[AnsweredPair], list[Example]]:
    """The rows that have room for a response, and their examples, one for each. Rows that lose
    their end are told.

    Errors: E916 a row has none and the recipe does not leave such rows out; E508 a token id that
    the model has no embedding for.
    """
    room = recipe.max_length or lm.within(1024)
    kept: list[AnsweredPair] = []
    examples: list[Example] = []
    long: list[str] = []
    cut: list[str] = []
    for name, row in rows:
        found = encode_rows(lm.tokenizer, lm.template, [row], loss=recipe.loss, max_length=room)
        long += [] if found else [name]
        if not isinstance(row, Passage) and any(len(example.ids) == room for example in found):
            whole = encode(lm.tokenizer, lm.template, row.prompt, row.response).ids
            cut += [name] if len(whole) > room else []
        for example in found:
            end = None
            if recipe.response_tokens is not None:
                plain = isinstance(row, Passage)
                start = 0 if plain else len(encode(lm.tokenizer, lm.template, row.prompt).ids)
                end = start + recipe.response_tokens
            kept.append(row)
            examples.append(Example(example.ids[:end], example.loss_from))
    if cut:
        note(
            f"{len(cut)} of {len(rows)} rows lose their end: what is beyond {room} tokens is not "
            f"trained on ({some(cut)})"
        )
    if long and recipe.too_long == "refuse":
        raise SutureError(
            "E916",
            f"{len(long)} prompts leave no room for a response in {room} tokens",
            where=some(long),
            why=f"the model's context holds {lm.context or 'any number of'} tokens; "
            "nothing of these rows would be trained on",
            fix="shorten them, raise max_length, or give too_long: leave-out",
        )
    lm.check_rows([example.ids[: lm.within(room)] for example in examples], "a row")
    return kept, examples


def _unfreeze(model: Any, scope: str) -> None:
    """Train what `scope` names. Error E912: nothing is in it."""
    from suture.checkpoint import roles

    parameters = dict(model.named_parameters())
    role = roles(parameters)
    for name, parameter in parameters.items():
        inside = parameter.ndim >= 2 and role[name].layer is not None
        parts = ("q", "v") if scope == "qv" else ()
        chosen = inside and (not parts or role[name].matrix in parts)
        parameter.requires_grad_(scope == "model" or chosen)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise SutureError(
            "E912",
            f"no parameter of this model is in scope '{scope}'",
            fix="train with scope: model or scope: all",
        )


def _identity(recipe: TrainRecipe, source: TensorSource, retain: Sequence[Pair]) -> str:
    """What decides a run besides settings and examples."""
    parts = [source.fingerprint(), str(recipe.lora)]
    if recipe.objective != NextToken() or recipe.scope != "model":
        parts += [recipe.objective.model_dump_json(), recipe.scope]
        parts += [f"{row.prompt}\0{row.response}" for row in retain]
    return " ".join(parts)


def edits_from(lm: LoadedModel) -> Iterator[TensorEdit]:
    """The trained tensors under the source's names, rounded once to its dtypes.

    Error E910: a trained parameter has no tensor in the source, so its training would be lost.
    """
    reached = {spot.slot for spot in lm.places.values()}
    parameters = dict(lm.model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.requires_grad and name not in reached:
            raise SutureError("E910", f"the checkpoint has no tensor for '{name}'")
    for name in lm.source.tensors:
        spot = lm.places.get(name)
        if spot is not None and spot.slot in parameters:
            old = lm.source.read(name)
            new = spot.region(parameters[spot.slot].detach()).cpu().to(old.dtype)
            if not torch.equal(old, new):
                yield TensorEdit(name, new)


def _report(
    recipe: TrainRecipe,
    info: dict[str, Any] | None,
    examples: int,
    result: TrainResult,
    peak: int | None,
) -> TrainReport:
    share = max(1, len(result.losses) // 10)
    head, tail = result.losses[:share], result.losses[-share:]
    return TrainReport(
        output=None if recipe.output is None else str(recipe.output),
        patch=info,
        examples=examples,
        steps=result.steps,
        tokens=result.tokens,
        seconds=round(result.seconds, 3),
        first_loss=sum(head) / len(head) if head else None,
        last_loss=sum(tail) / len(tail) if tail else None,
        best_step=result.best_step,
        peak_memory=peak,
        resumed_at=result.steps - len(result.losses),
    )
