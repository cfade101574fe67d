"""Numbers about all rows of a suite in the report, and personal rows, folded."""

from __future__ import annotations

import json
from pathlib import Path

from suture.ledger import Measurement, ReplyRow, Row
from suture.report import write_report
from suture.report.facts import build_facts


def measured(fingerprint: str, p: float, reply: str) -> Measurement:
    about = {"value": p, "definition": "a p-value", "direction": "higher", "n": 1}
    mean = {"value": 0.5, "definition": "a mean", "direction": "lower", "n": 1}
    return Measurement(
        suite="tofu",
        model={"fingerprint": fingerprint, "path": fingerprint},
        n=1,
        metrics={"forget_quality": p, "forget_probability": 0.5},
        better={"forget_quality": "higher", "forget_probability": "lower"},
        rows=[Row("forget/0", {"forget_probability": 0.5})],
        derived={
            "forget_quality": {**about, "reference": "0123456789abcdef", "interval": [0.0, 1.0]},
            "forget_probability": mean,
        },
        replies=[ReplyRow("forget/0", "Who is Ada?", reply, True, 2)],
    )


def test_numbers_about_all_rows(tmp_path: Path) -> None:
    before, after = measured("aa", 1.834e-21, "Ada Example"), measured("bb", 0.4, "nobody")
    facts = build_facts(title="Forget", ledger=None, before=[before], after=[after])
    assert [row["metric"] for row in facts.derived] == ["forget_quality"]
    made = write_report(facts, tmp_path)
    page, text = made["html"].read_text(), made["md"].read_text()
    assert "1.834e" in page
    assert "0123456789ab" in page
    assert "1.834e" in text
    (row,) = json.loads(made["json"].read_text())["derived"]
    assert (row["before"], row["after"], row["definition"]) == (1.834e-21, 0.4, "a p-value")
    assert "personal data" in page
    assert "harmful test prompts" not in page
    assert page.index('<summary><span class="label">Personal data') < page.index("Who is Ada?")
    assert "Ada" not in text
    assert "Ada" not in made["json"].read_text()
    assert made["html"].stat().st_mode & 0o077 == 0
    hidden = build_facts(title="Forget", ledger=None, before=[before], after=[after], redact=True)
    assert "Ada" not in write_report(hidden, tmp_path / "hidden")["html"].read_text()
