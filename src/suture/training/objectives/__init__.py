"""What training minimises: one file per objective, chosen by `objective: {name: ...}`.

A config here is a few frozen numbers and `build(material)`, which gives the loss as a function of
(model, batch). What it needs besides the batch (a frozen copy, log-probabilities before training,
harmless rows) is made once in `build`, so that a run which is resumed sees the same.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from suture.training.objectives.common import Material
from suture.training.objectives.gradient_ascent import GradientAscent
from suture.training.objectives.mismatch_ascent import MismatchAscent
from suture.training.objectives.next_token import NextToken
from suture.training.objectives.npo import NPO
from suture.training.objectives.rkld import RKLD

ObjectiveConfig = Annotated[
    NextToken | GradientAscent | MismatchAscent | NPO | RKLD, Field(discriminator="name")
]

__all__ = [
    "NPO",
    "RKLD",
    "GradientAscent",
    "Material",
    "MismatchAscent",
    "NextToken",
    "ObjectiveConfig",
]
