"""What training minimises: one file per objective, chosen by `objective: {name: ...}`.

A config here is a few frozen numbers and `build(material)`, which gives the loss as a function of
(model, batch). What it needs besides the batch (a frozen copy, log-probabilities before training,
retain rows) is made once in `build`, so that a run which is resumed sees the same.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from suture.training.objectives.ce_u import CEU
from suture.training.objectives.common import Material
from suture.training.objectives.dpo import DPO
from suture.training.objectives.gradient_ascent import GradientAscent
from suture.training.objectives.gradient_difference import GradientDifference
from suture.training.objectives.idk import IDK
from suture.training.objectives.kl_minimisation import KLMinimisation
from suture.training.objectives.mismatch_ascent import MismatchAscent
from suture.training.objectives.next_token import NextToken
from suture.training.objectives.npo import NPO
from suture.training.objectives.rkld import RKLD
from suture.training.objectives.rmu import RMU
from suture.training.objectives.satimp import SatImp
from suture.training.objectives.simnpo import SimNPO
from suture.training.objectives.undial import UNDIAL
from suture.training.objectives.wga import WGA

ObjectiveConfig = Annotated[
    NextToken
    | GradientAscent
    | MismatchAscent
    | GradientDifference
    | KLMinimisation
    | IDK
    | DPO
    | NPO
    | RKLD
    | SimNPO
    | RMU
    | UNDIAL
    | CEU
    | WGA
    | SatImp,
    Field(discriminator="name"),
]

__all__ = [
    "CEU",
    "DPO",
    "IDK",
    "NPO",
    "RKLD",
    "RMU",
    "UNDIAL",
    "WGA",
    "GradientAscent",
    "GradientDifference",
    "KLMinimisation",
    "Material",
    "MismatchAscent",
    "NextToken",
    "ObjectiveConfig",
    "SatImp",
    "SimNPO",
]
