"""KL-min: ascent on what is to be forgotten, while the rest may not move.

    L = −γ · CE(D_f) + α · KL(p_ref ‖ p_θ)(D_r)

CE is the mean of −log p over answer tokens; the KL is forward, over the whole vocabulary, on the
answer tokens of retain rows, p_ref the model before training. Source: TOFU (Maini et al., arXiv
2401.06121, "KL minimization") and OpenUnlearning's GradDiff with `retain_loss_type=KL`, which
counts prompts and padding too. As published nothing bounds the ascent; `cap` does, as in
`gradient_ascent.py` (inferred).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from suture.training.objectives.ascents import HeldAscent


class KLMinimisation(HeldAscent):
    """Make the answers less likely, and hold the distributions on retain rows."""

    name: Literal["kl-min"] = "kl-min"
    kind: ClassVar[Literal["RT", "KL"]] = "KL"
