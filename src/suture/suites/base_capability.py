"""Base capability: the loss on running text, domain by domain, in and out of the distribution.

    NAME_loss   mean −log p per predicted token of the domain NAME, in nats: of each passage, and
                the mean over its passages
    out_loss    mean over the domains of --data, each counting the same
    in_loss     the same over the domains of `trained`, on sections that were held out of training

`--data` is a YAML file with a list `texts` (`suture.training.documents.TextSource`). Options:

    root      folder that the files of both lists lie below; default: beside the list
    trained   the list a model was pre-trained on, for `in_loss`
    held_out  the share of it that was held out, or less; a model whose `pretraining.json` says
              otherwise is refused
    passages  of each domain, spread evenly over it
    length    characters of a passage, about

An encoder predicts masked tokens, so its numbers stand beside those of encoders only; and losses
per token compare models of one tokenizer (CEA, arXiv 2403.02436, section 9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.ledger import Better, Row
from suture.suites.passages import Domains, OfPassages, Passage, masking

if TYPE_CHECKING:
    from suture.inference.reading import Reader


class BaseCapability(OfPassages[Domains]):
    """Items: `Passage`. Nothing is generated."""

    name = "base-capability"
    options = Domains
    what = "base capability"
    why = "it is the loss on text that the model reads"
    usage = "--data DOMAINS.yaml"

    def __init__(self, asked: Domains | None = None) -> None:
        super().__init__(asked)
        self.metrics: Mapping[str, Better] = {"out_loss": "lower", "in_loss": "lower"}

    def read(self, files: Sequence[Path], limit: int | None) -> list[Passage]:
        items = super().read(files, limit)
        domains = dict.fromkeys(f"{item.domain}_loss" for item in items)
        self.metrics = {name: "lower" for name in ("out_loss", "in_loss", *domains)}
        return items

    def rows(self, lm: Any, items: list[Passage]) -> list[Row]:
        return losses(lm, items)


def losses(reader: Reader, items: Sequence[Passage]) -> list[Row]:
    """A row per passage, with its loss under its domain's name and under `in_loss` or `out_loss`.

    A passage in which an encoder was asked for nothing is left out.
    """
    from suture.inference.text_loss import text_losses

    found = text_losses(
        reader, [item.prompt for item in items], mask=masking(reader), label="base capability"
    )
    return [
        Row(
            item.id,
            {f"{item.domain}_loss": one.mean, "in_loss" if item.inside else "out_loss": one.mean},
            item.cluster,
        )
        for item, one in zip(items, found, strict=True)
        if one.tokens
    ]


SUITE = BaseCapability()
