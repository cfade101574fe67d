"""What a ledger says beside its verdicts: how far one run reaches, and what the two sides were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suture.ledger.measurement import Measurement
    from suture.ledger.verdicts import Role


def remarks(sides: Mapping[str, Mapping[str, Measurement]], roles: Sequence[Role]) -> list[str]:
    """The remarks on a comparison; `sides`: before, after and reference, each by suite."""
    found = ["One paired run proves a checkpoint, not a method: that takes at least 5 seeds."]
    if not any(role.role == "kept" for role in roles):
        found.append("No metric had to be kept: nothing says what else has changed.")
    prints = {
        side: {m.model.get("fingerprint") for m in measured.values()}
        for side, measured in sides.items()
    }
    if prints["before"] == prints["after"] != {None}:
        found.append("before and after are the same weights.")
    for suite in dict.fromkeys(role.suite for role in roles):
        told = asked_differently(sides["before"][suite], sides["after"][suite])
        if told:
            found.append(
                f"{suite}: before and after were asked differently ({told}); the difference is "
                "the asking's as well as the model's."
            )
    return found


def asked_differently(before: Measurement, after: Measurement) -> str:
    """What differs in how two paired measurements were asked; empty where nothing does.

    A suite may let such differences be paired, to learn what an example, a caption or another
    wording does: then the ledger has to say so.
    """
    was, now = (side.data.get("options") or {} for side in (before, after))
    differing = [
        f"{key}: {_shown(was.get(key))} → {_shown(now.get(key))}"
        for key in sorted({*was, *now})
        if was.get(key) != now.get(key)
    ]
    prompts = [side.data.get("shown_sha256") for side in (before, after)]
    if prompts[0] != prompts[1]:
        differing.append("other prompts")
    return "; ".join(differing)


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
