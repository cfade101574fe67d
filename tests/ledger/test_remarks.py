"""What a ledger says beside its verdicts."""

from __future__ import annotations

from typing import Any

from suture.ledger import Measurement, Role, Row, compare
from suture.ledger.remarks import asked_differently


def measured(model: str, **data: Any) -> Measurement:
    rows = [Row(str(i), {"accuracy": float(i % 3 > 0)}) for i in range(30)]
    return Measurement(
        suite="sentiment", model={"fingerprint": model}, n=30, metrics={"accuracy": 2 / 3},
        better={"accuracy": "higher"}, rows=rows, data={"sha256": "d", **data},
        template={"fingerprint": "t"}, decoding={"max_new_tokens": 8},
    )  # fmt: skip


def notes(before: Measurement, after: Measurement) -> list[str]:
    return compare([before], [after], [], [Role.target("sentiment.accuracy:higher")]).notes


def test_sides_that_were_asked_differently_are_told_apart() -> None:
    plain = measured("a", options={"task": "sst2"}, shown_sha256="1")
    shots = measured("a", options={"task": "sst2", "shots": 4}, shown_sha256="2")
    found = [note for note in notes(plain, shots) if "asked differently" in note]
    assert found == [
        "sentiment: before and after were asked differently (shots: not set → 4; other prompts); "
        "the difference is the asking's as well as the model's."
    ]
    assert not any(
        "asked differently" in note for note in notes(plain, measured("b", **plain.data))
    )


def test_other_prompts_alone_are_told() -> None:
    assert asked_differently(measured("a", shown_sha256="1"), measured("b", shown_sha256="2")) == (
        "other prompts"
    )
    assert asked_differently(measured("a"), measured("b")) == ""
