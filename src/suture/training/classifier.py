"""Fine-tuning a language model to classify texts: what it brings to a task it was not made for.

A linear layer on one state per text: of the last token where the model is causal, the mean over
all tokens where it sees both sides. Everything is trained (`full`), or the layer alone (`probe`).
Settings as in CEA (arXiv 2403.02436, section 9): batches of 32, 6% warm-up, linear decay, weight
decay 0.01, the learning rate chosen from a few on rows of the training set that are held out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.lazy import torch
from suture.progress import quiet
from suture.rng import generator
from suture.training.batches import Batch, Example, collate, epoch_plan
from suture.training.loop import TrainConfig, train

if TYPE_CHECKING:
    from suture.inference.reading import Reader


class FineTuning(FrozenConfig):
    """How a classifier is trained."""

    epochs: int = Field(3, ge=1, description="passes over the rows")
    rates: tuple[float, ...] = Field(
        (3e-4, 1e-3), min_length=1, description="learning rates; the best on the rows held out"
    )
    scope: Literal["full", "probe"] = Field("full", description="the model too, or its layer alone")
    batch: int = Field(32, ge=1, description="rows per step")
    held_out: float = Field(0.1, gt=0, lt=0.5, description="share of rows that choose the rate")
    seed: int = 0


@dataclass(frozen=True)
class FineTuned:
    """A trained classifier. `rate`: the one chosen; `chosen_by`: accuracy on the rows held out, by
    learning rate."""

    model: Any
    labels: tuple[str, ...]
    rate: float
    chosen_by: dict[float, float]


def fine_tune(
    reader: Reader, texts: Sequence[str], labels: Sequence[str], config: FineTuning
) -> FineTuned:
    """Train a copy of the reader's model; the reader stays as it is.

    Rows of the same tokens count once, with their first label. Ties between rates go to the first.
    Error E955: fewer than two labels, or too few rows to hold any out.
    """
    names = tuple(sorted(set(labels)))
    by_ids: dict[tuple[int, ...], int] = {}
    for ids, label in zip(encoded(reader, texts), labels, strict=True):
        by_ids.setdefault(ids, names.index(label))
    order = generator(config.seed, "fine-tuning rows").permutation(len(by_ids))
    rows = [Example(ids) for ids in by_ids]
    cut = math.ceil(config.held_out * len(rows))
    dev, used = [rows[i] for i in order[:cut]], [rows[i] for i in order[cut:]]
    if len(names) < 2 or len(used) < 2:
        raise SutureError(
            "E955",
            f"there are {len(names)} labels and {len(rows)} different rows to train on",
            where="train",
            fix="give at least two labels and some rows of each",
        )
    chosen_by: dict[float, float] = {}
    best: Any = None
    for rate in config.rates:
        model = _train(reader, used, by_ids, names, rate, config)
        said = predict(model, [row.ids for row in dev])
        right = sum(by_ids[row.ids] == one for row, one in zip(dev, said, strict=True))
        chosen_by[rate] = right / len(dev)
        if best is None or chosen_by[rate] > chosen_by[best[0]]:
            best = (rate, model)
    return FineTuned(best[1], names, best[0], chosen_by)


def encoded(reader: Reader, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of every text, cut at the context; a text without tokens is its end token."""
    found = reader.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    empty = (int(reader.tokenizer.eos_token_id or 0),)
    return [tuple(ids[: reader.context]) or empty for ids in found]


def predict(model: Any, rows: Sequence[tuple[int, ...]], batch_tokens: int = 4096) -> list[int]:
    """The number of the likeliest label of every row."""
    examples = [Example(ids) for ids in rows]
    said = [0] * len(rows)
    plan = epoch_plan([len(e.ids) for e in examples], batch_tokens=batch_tokens, seed=0, epoch=0)
    device = next(model.parameters()).device
    with torch.no_grad():
        for places in plan:
            logits = model(collate([examples[i] for i in places]).to(device))
            for place, label in zip(places, logits.argmax(-1).tolist(), strict=True):
                said[place] = label
    return said


def _train(
    reader: Reader,
    rows: Sequence[Example],
    labels: dict[tuple[int, ...], int],
    names: Sequence[str],
    rate: float,
    config: FineTuning,
) -> Any:
    model = _classifier(reader, len(names), config)
    steps = config.epochs * math.ceil(len(rows) / config.batch)
    settings = TrainConfig(
        epochs=config.epochs, batch_rows=config.batch, batch_tokens=4096, learning_rate=rate,
        warmup=max(1, round(0.06 * steps)), schedule="linear", final_share=0.0, weight_decay=0.01,
        beta2=0.999, seed=config.seed,
    )  # fmt: skip

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        lengths = batch.attend.sum(1).tolist()
        found = [labels[tuple(ids[:n])] for ids, n in zip(batch.ids.tolist(), lengths, strict=True)]
        target = torch.tensor(found, device=batch.ids.device)
        return torch.nn.functional.cross_entropy(model(batch).float(), target)

    loss.weight = lambda batch: float(len(batch.ids))  # type: ignore[attr-defined]
    with quiet():
        train(model, rows, settings, objective=loss)
    return model


def _classifier(reader: Reader, count: int, config: FineTuning) -> Any:
    """The trunk of a copy of the model below a linear layer of zeros, so that every seed and
    architecture begins with no opinion."""
    whole = copy.deepcopy(reader.model)
    trunk = getattr(whole, whole.base_model_prefix)
    causal = reader.causal

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk
            self.head = torch.nn.Linear(whole.config.hidden_size, count)
            torch.nn.init.zeros_(self.head.weight)
            torch.nn.init.zeros_(self.head.bias)

        def forward(self, batch: Batch) -> torch.Tensor:
            # a causal model's states do not depend on the padding behind them
            mask = None if causal else batch.attend
            output = self.trunk(input_ids=batch.ids, attention_mask=mask)
            states = output.last_hidden_state
            lengths = batch.attend.sum(1)
            if causal:
                state = states[torch.arange(len(states), device=states.device), lengths - 1]
            else:
                state = (states * batch.attend[..., None]).sum(1) / lengths[:, None]
            logits: torch.Tensor = self.head(state)
            return logits

    model = Classifier().to(reader.device)
    model.trunk.requires_grad_(config.scope == "full")
    model.head.requires_grad_(True)
    return model.eval()
