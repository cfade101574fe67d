"""How well a model predicts running text: −log p of every token, or of masked ones.

A decoder reads a text in windows of its context, each begun with the last token of the one before,
so that every token but the text's first is predicted once. An encoder predicts the tokens that are
masked by the rule of its pre-training; which ones follows from the text's number, the place of the
window in it and the window's length, so that all models with one tokenizer and one context are
asked for the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from suture.lazy import np, torch
from suture.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from suture.inference.reading import Reader

BATCH_TOKENS = 4096
IGNORED = -100

Mask = Callable[["NDArray[np.int64]", int], "NDArray[np.int64]"]
"""(ids (1, length) that it changes to what is read, number of the window) to labels."""


@dataclass(frozen=True)
class TextLoss:
    """`nats`: sum of −log p over `tokens` predicted tokens."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per predicted token; NaN where none was predicted."""
        return self.nats / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True)
class Window:
    """A piece of text number `text`: what is read, and what is predicted (−100: nothing)."""

    text: int
    ids: tuple[int, ...]
    labels: tuple[int, ...]


def text_losses(
    reader: Reader, texts: Sequence[str], *, mask: Mask | None = None, label: str = "read"
) -> list[TextLoss]:
    """The loss of every text, in order. `mask`: needed for an encoder."""
    nats, counts = [0.0] * len(texts), [0] * len(texts)
    for batch in track(batches(windows(reader, texts, mask), reader), label):
        logits = _logits(reader, batch)
        width = max(len(window.ids) for window in batch)
        labels = np.full((len(batch), width), IGNORED)
        for row, window in enumerate(batch):
            labels[row, : len(window.labels)] = window.labels
        targets = torch.from_numpy(labels).to(logits.device)
        if reader.causal:
            logits, targets = logits[:, :-1], targets[:, 1:]
        found = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
        ).view(targets.shape)
        for window, total, known in zip(
            batch, found.double().sum(1).tolist(), (targets != IGNORED).sum(1).tolist(), strict=True
        ):
            nats[window.text] += total
            counts[window.text] += known
    return [TextLoss(one, count) for one, count in zip(nats, counts, strict=True)]


def windows(reader: Reader, texts: Sequence[str], mask: Mask | None = None) -> list[Window]:
    """All texts in windows; a last one of a single token is left out, as it says nothing."""
    found = []
    for number, text in enumerate(texts):
        # verbose=False: no warning that the text is longer than the context, it is about to be cut
        ids = list(reader.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        step = reader.context - 1 if reader.causal else reader.context
        for place, at in enumerate(range(0, max(1, len(ids) - 1), step)):
            piece = ids[at : at + reader.context]
            if len(piece) < 2:
                continue
            if reader.causal:
                found.append(Window(number, tuple(piece), tuple(piece)))
                continue
            assert mask is not None
            read = np.asarray([piece], dtype=np.int64)
            labels = mask(read, number * 4096 + place)
            found.append(Window(number, tuple(read[0].tolist()), tuple(labels[0].tolist())))
    return found


def batches(found: Sequence[Window], reader: Reader) -> list[list[Window]]:
    """Windows of like length together, at most BATCH_TOKENS of them."""
    order = sorted(range(len(found)), key=lambda i: (-len(found[i].ids), i))
    made: list[list[Window]] = []
    for i in order:
        if made and (len(made[-1]) + 1) * len(made[-1][0].ids) <= BATCH_TOKENS:
            made[-1].append(found[i])
        else:
            made.append([found[i]])
    return made


def inputs(reader: Reader, batch: Sequence[Window]) -> dict[str, torch.Tensor]:
    """Ids and, where an encoder would read padding, the mask; padded on the right."""
    width = max(len(window.ids) for window in batch)
    ids = np.zeros((len(batch), width), dtype=np.int64)
    attend = np.zeros_like(ids)
    for row, window in enumerate(batch):
        ids[row, : len(window.ids)] = window.ids
        attend[row, : len(window.ids)] = 1
    given = {"input_ids": torch.from_numpy(ids).to(reader.device)}
    if not reader.causal and not attend.all():
        given["attention_mask"] = torch.from_numpy(attend).to(reader.device)
    return given


def _logits(reader: Reader, batch: Sequence[Window]) -> torch.Tensor:
    with torch.no_grad():
        output: Any = reader.model(**inputs(reader, batch))
    found: torch.Tensor = output.logits
    return found
