"""GradDiff: ascent on what is to be forgotten, descent on what is to be kept.

    L = −γ · CE(D_f) + α · CE(D_r)

CE is the mean of −log p over answer tokens. Source: TOFU (Maini et al., arXiv 2401.06121, "gradient
difference") and OpenUnlearning's GradDiff with an NLL retain loss. As published nothing bounds the
ascent; `cap` does, as in `gradient_ascent.py` (inferred).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from suture.training.objectives.ascents import HeldAscent


class GradientDifference(HeldAscent):
    """Make the answers less likely, and the answers of the retain rows likely."""

    name: Literal["grad-diff"] = "grad-diff"
    kind: ClassVar[Literal["RT", "KL"]] = "RT"
