"""Whether a model knows what it is to forget.

A row that is less likely to the model than tokens drawn at random holds nothing to forget. In
practice the tokenizer that lies beside the weights is another model's: its ids all have an
embedding, they only mean something else, and an unlearning on them would seem to succeed.
"""

from __future__ import annotations

import math
from typing import Any

from suture.errors import SutureError
from suture.training.objectives.common import Material, reference_nll

_ROWS = 64  # of them, spread evenly, are looked at
_SLACK = 1.0  # nats: what initialisation alone does to a model that knows nothing


def check_known(material: Material) -> None:
    """Error E919: the answers to forget have more than ln V + 1 nats a token, V the vocabulary.

    The bound is ours (inferred): a model without any knowledge stays below it.
    """
    count = len(material.examples)
    spread = [material.examples[k * count // min(count, _ROWS)] for k in range(min(count, _ROWS))]
    model: Any = material.model
    nll = reference_nll(model, spread, material.train)
    tokens = {example.ids: len(example.ids) - max(example.loss_from, 1) for example in spread}
    found = sum(nll.values()) / max(1, sum(tokens.values()))
    chance = math.log(model.get_input_embeddings().num_embeddings)
    if found > chance + _SLACK:
        raise SutureError(
            "E919",
            "the model finds the rows to forget less likely than tokens drawn at random: "
            f"{found:.1f} nats a token, at random {chance:.1f}",
            where=str(material.lm.source.path),
            why="there is nothing to forget, or the tokenizer beside the weights is another "
            "model's: then other words would be forgotten than the ones given",
            fix="compare tokenizer.json with the model's own, or feel the model with: "
            f"suture chat {material.lm.source.path}",
        )
