"""One training loop: examples and a model in, the trained model out.

Weights and optimiser state stay in float32 while matrix products run in bfloat16 (autocast), so
small updates are not lost to rounding. Everything drawn depends on (seed, number of the step)
alone, dropout is off, and state goes to disk as safetensors and JSON, never pickle: a run that is
killed and started again ends in the same bytes as one that was not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.lazy import torch
from suture.progress import track
from suture.training.batches import Batch, Example, Step
from suture.training.early_stop import EarlyStop
from suture.training.logits import answer_count, answer_positions, answer_tokens, logits_at
from suture.training.meter import Meter
from suture.training.optimizers import build_optimizers
from suture.training.schedule import rate
from suture.training.short_rows import quick_attention
from suture.training.state import load_state, save_state
from suture.training.supply import Rows, Supply

Objective = Callable[[Any, Batch], "torch.Tensor"]
"""(model, batch) to the scalar loss: the mean over what the objective weighs.

Optional attributes: `weight(batch)`, what a batch counts in a step of several (default: its
labelled tokens); `begin(number)`, told before the first batch how many micro-batches came before.
"""


class EnoughTraining(Exception):  # noqa: N818 - no error
    """Raised by an objective instead of a loss: training ends before this step.

    It must depend on model and batch alone, so that a resumed run ends at the same step.
    """


class TrainConfig(FrozenConfig):
    """Schedule and optimiser of one run. Exactly one of `steps` and `epochs` says how long."""

    steps: int | None = Field(None, ge=1, description="optimiser steps")
    epochs: int | None = Field(None, ge=1, description="passes over the rows, instead of steps")
    batch_tokens: int = Field(
        4096, ge=8, description="tokens at once, padding included: a step's, unless it has several"
    )
    batch_rows: int | None = Field(
        None, ge=1, description="rows per step, worked off in pieces of batch_tokens"
    )
    accumulate: int = Field(1, ge=1, description="batches of batch_tokens per step")
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate of AdamW")
    muon_rate: float = Field(
        0.0, ge=0, description="peak rate of Muon for the blocks' matrices; 0 = AdamW for all"
    )
    warmup: Literal["epoch"] | int = Field(
        20, description="steps of linear warm-up, or `epoch`: those of the first pass"
    )
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_share: float = Field(0.05, ge=0, le=1, description="share of the peak rate at the end")
    beta2: float = Field(0.95, gt=0, lt=1, description="decay of AdamW's second moment")
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0, description="gradient norm above which it is scaled down")
    compute: Literal["bfloat16", "float32"] = "bfloat16"
    gradient_checkpointing: bool = Field(
        False, description="work the blocks out twice instead of keeping what they computed"
    )
    patience: int | None = Field(
        None, ge=1, description="epochs without a better loss on the dev rows that end the training"
    )
    seed: int = 0
    save_every: int = Field(
        100,
        ge=1,
        description="steps between resumable states; and after each pass, if cheap",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.batch_rows is not None and self.accumulate > 1:
            raise ValueError("batch_rows says how large a step is: leave out accumulate")
        if isinstance(self.warmup, int) and self.warmup < 0:
            raise ValueError("warmup must be 0 or more steps, or `epoch`")
        return self

    @model_serializer(mode="wrap")
    def _settings(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings that came later are left out at their defaults, so that fingerprints of older
        recipes, and states of trainings that are under way, stay what they were."""
        later = "epochs batch_rows accumulate beta2 gradient_checkpointing patience".split()
        fields = type(self).model_fields
        return {
            name: value
            for name, value in handler(self).items()
            if name not in later or value != fields[name].default
        }


@dataclass(frozen=True)
class TrainResult:
    """`losses`: one per step since this process took over; `steps`: taken in all, fewer than asked
    for where the objective or the dev rows ended the training; `tokens`: trained on by this
    process; `best_step`: the step whose weights are the result, None: the last."""

    losses: list[float]
    steps: int
    tokens: int
    seconds: float
    best_step: int | None = None


@quick_attention()
def train(
    model: torch.nn.Module,
    examples: Sequence[Example] | Supply,
    config: TrainConfig,
    *,
    objective: Objective | None = None,
    dev: Sequence[Example] = (),
    state: Path | None = None,
    identity: str = "",
    label: str = "train",
    on_epoch: Callable[[int], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train `model` in place (float32 parameters) and return the record.

    `objective(model, batch)` gives the scalar loss; the default is next-token cross-entropy on
    the labelled positions. It may end the training by `EnoughTraining`. A step of several batches
    is the mean over all that they weigh, so it does not depend on how it was cut; rows to keep are
    drawn batch by batch, and those do.
    `examples`: rows, or a supply of batches from elsewhere (blocks of packed text).
    `dev`: rows for `patience`; with them the best epoch's weights are the result.
    `state`: folder for resumable states; the same call continues there.
    `identity`: hash of what else decides the run (starting weights, recipe): a state made under
    another one, with other settings or other examples is refused (E904).
    `on_epoch(n)`: called when `n` passes over the rows are done, the model ready to be measured;
    after a kill it may be called again for the same pass. `on_step(n, loss)`: the same after
    every step, `n` steps done.
    Errors: E901 no examples, E902 a loss or gradient that is not finite (the state before it
    stays), E903 parameters not in float32, E914 patience without dev rows, E917 no checkpointing.
    """
    if not len(examples):
        raise SutureError("E901", "no training examples", fix="give a data file with rows")
    if config.patience is not None and not dev:
        raise SutureError(
            "E914", "patience needs rows that are not trained on", fix="give them as dev"
        )
    if any(p.requires_grad and p.dtype != torch.float32 for p in model.parameters()):
        raise SutureError(
            "E903", "trainable weights must be float32", why="smaller types lose small updates"
        )
    objective = objective or next_token_loss
    optimizers = build_optimizers(model, config)
    if dev:
        identity += f" dev {len(dev)}"
    supply = Rows(examples) if isinstance(examples, Sequence) else examples
    rows = supply.examples if isinstance(supply, Rows) else ()
    identity += supply.identity
    own = run_identity(config, [*rows, *dev], identity) if state else ""
    first, notes = load_state(state, model, optimizers, own) if state else (0, {})
    stop = EarlyStop(dev, config, state) if dev else None
    if stop and "early_stop" in notes:
        stop.resume(notes["early_stop"])
    by_epochs = config.epochs is not None
    config = supply.resolved(config)
    assert config.steps is not None
    stream = supply.steps(config, first)
    meter = Meter(next(model.parameters()).device)
    losses: list[float] = []
    done = first
    since, cost = time.monotonic(), 0.0  # of the last state: when it was written, how long it took
    # Dropout stays off: teachers and frozen models must see what the student sees, and no generator
    # has a state that a resumed run would lack.
    model.eval()
    blocks = _blocks(model) if config.gradient_checkpointing else []
    for number in track(
        range(first, config.steps), label, total=config.steps - first, told=meter.told
    ):
        if stop and stop.over:
            break
        step = next(stream)
        if number == first and hasattr(objective, "begin"):
            objective.begin(step.before)
        _set_rates(optimizers, config, number)
        try:
            with _recomputing(blocks):
                loss = _one_step(model, step, objective, optimizers, config)
        except EnoughTraining:
            break
        except _NotFinite as found:
            kept = state and save_state(state, model, optimizers, number, own, _notes(stop))
            raise _diverged(found, number, label, kept or None) from None
        losses.append(loss)
        done = number + 1
        meter.add(loss, sum(int(batch.attend.sum()) for batch in step.batches))
        if on_step:
            on_step(done, loss)
        if step.last and stop:
            stop.after_epoch(model, stop.loss(model), done)
        if step.last and on_epoch:
            on_epoch(step.epoch + 1)
        at_end = done == config.steps or (stop is not None and stop.over)
        # What a pass over the rows took is worth a state, unless writing one takes longer.
        worth = by_epochs and step.last and time.monotonic() - since >= cost
        if state and (at_end or worth or done % config.save_every == 0):
            began = time.monotonic()
            moments = [] if at_end else optimizers  # nothing goes on from the last state
            save_state(state, model, moments, done, own, _notes(stop))
            since = time.monotonic()
            cost = since - began
    if stop:
        stop.restore(model)
    best = stop.best_step if stop and stop.best_step else None
    return TrainResult(losses, done, meter.tokens, meter.seconds, best)


def _notes(stop: EarlyStop | None) -> dict[str, Any]:
    return {} if stop is None else {"early_stop": stop.facts()}


def _diverged(found: _NotFinite, step: int, label: str, kept: Path | None) -> SutureError:
    fix = "lower learning_rate, or inspect the data"
    if kept is not None:
        fix += f"; other settings begin anew: delete {kept.parent}"
        fix += f" (the weights before this step are in {kept})"
    return SutureError("E902", f"the {found} at step {step}", where=label, fix=fix)


def run_identity(config: TrainConfig, examples: Sequence[Example], identity: str) -> str:
    """SHA-256 over settings, tokenised examples and the caller's own `identity`."""
    state = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode())
    state.update(identity.encode())
    for example in examples:
        state.update(repr((example.loss_from, example.ids)).encode())
    return state.hexdigest()


def next_token_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens given what stands before them."""
    logits = logits_at(model, batch, answer_positions(batch))
    loss: torch.Tensor = torch.nn.functional.cross_entropy(logits, answer_tokens(batch))
    return loss


def hidden_states(model: Any, batch: Batch) -> torch.Tensor:
    """Last hidden states (rows, width, hidden) of a causal language model."""
    trunk = _decoder(model)
    output = trunk(input_ids=batch.ids, attention_mask=batch.attend, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def _decoder(model: Any) -> Any:
    """The part below the vocabulary head, adapters included."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.get_decoder()


class _NotFinite(Exception):  # noqa: N818 - becomes an error where the step's number is known
    """A loss or gradient is NaN or infinite; the weights are still those before the step."""


def _one_step(
    model: torch.nn.Module,
    step: Step,
    objective: Objective,
    optimizers: Sequence[tuple[torch.optim.Optimizer, float]],
    config: TrainConfig,
) -> float:
    """Σ_m w_m / Σ w · loss_m over the micro-batches m, its gradient, one update."""
    device = next(model.parameters()).device
    weights = [weight_of(objective, batch) for batch in step.batches]
    total = sum(weights) or 1.0
    loss = torch.zeros((), device=device)
    try:
        for batch, weight in zip(step.batches, weights, strict=True):
            batch = batch.to(device)
            with torch.autocast(
                device.type, dtype=torch.bfloat16, enabled=config.compute == "bfloat16"
            ):
                part = objective(model, batch)
            if len(weights) > 1:
                part = part * (weight / total)
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
    except EnoughTraining:
        model.zero_grad(set_to_none=True)
        raise
    norm = torch.nn.utils.clip_grad_norm_(_trainable(model), config.clip)
    for name, value in (("loss", float(loss)), ("gradient", float(norm))):
        if not math.isfinite(value):
            model.zero_grad(set_to_none=True)
            raise _NotFinite(f"{name} is {value}")
    for optimizer, _ in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss)


def weight_of(objective: Objective, batch: Batch) -> float:
    """What `batch` counts in a step of several: what the objective says, or its labelled tokens."""
    if hasattr(objective, "weight"):
        return float(objective.weight(batch))
    return answer_count(batch)


def _set_rates(
    optimizers: Sequence[tuple[torch.optim.Optimizer, float]], config: TrainConfig, step: int
) -> None:
    for optimizer, peak in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = peak * rate(config, step)


def _blocks(model: Any) -> list[Any]:
    """The blocks that can be worked out twice. Error E917: this model has none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not found:
        raise SutureError(
            "E917",
            f"a {model.config.model_type} model knows no gradient checkpointing",
            fix="leave out gradient_checkpointing, or lower batch_tokens",
        )
    return found


@contextmanager
def _recomputing(blocks: Sequence[Any]) -> Iterator[None]:
    """`blocks` keep their inputs alone and work the rest out again in the backward pass.

    Only a block itself, not its parts, is told that this is training, so that dropout inside it
    stays off; what it drops out by itself is set to nothing.
    """
    if not blocks:
        yield
        return
    from torch.utils.checkpoint import checkpoint

    again = functools.partial(checkpoint, use_reentrant=False)
    for block in blocks:
        block.training = block.gradient_checkpointing = True
        block._gradient_checkpointing_func = again
        for name, value in vars(block).items():
            if "dropout" in name and isinstance(value, float):
                setattr(block, name, 0.0)
    try:
        yield
    finally:
        for block in blocks:
            block.training = block.gradient_checkpointing = False


def _trainable(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
