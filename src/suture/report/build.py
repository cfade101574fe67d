"""Write the report: `report.html`, `report.json`, `report.md`, each whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from suture.checkpoint.jsonfile import write_atomic
from suture.errors import SutureError
from suture.report import figures
from suture.report.facts import ReportFacts
from suture.report.html import limits, render_html
from suture.report.markdown import answer_counts, render_markdown

FORMAT = "suture-report/1"


def report_dict(facts: ReportFacts) -> dict[str, Any]:
    """The content of `report.json`: plain JSON, without prompts and replies.

    `seconds` is the total, `stages` its parts. Numbers that are not finite become null.
    """
    source = facts.provenance
    content = {
        "format": FORMAT,
        "title": facts.title,
        "verdict": facts.verdict,
        "exit_code": facts.exit_code,
        "ledger": facts.ledger,
        "patch": facts.patch,
        "before": facts.before,
        "after": facts.after,
        "reference": facts.reference,
        "junk": facts.junk,
        "derived": facts.derived,
        "answers": answer_counts(facts),
        "heatmap": facts.heatmap.as_dict() if facts.heatmap else None,
        "sweep": None if facts.sweep is None else asdict(replace(facts.sweep, plots=())),
        "versions": source.versions,
        "seconds": total_seconds(facts),
        "stages": {name: value for name, value in facts.seconds.items() if name != "total"},
        "provenance": {
            "recipe": source.recipe,
            "command": source.command,
            "method": source.method,
            "config": source.config,
            "seeds": source.seeds,
            "data": source.data,
            "measurements": source.measurements,
            "template": source.template,
            "decoding": source.decoding,
            "roles_sha256": source.roles_sha256,
            "licences": source.licences,
        },
        "missing": facts.missing,
        "limits": limits(facts),
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def total_seconds(facts: ReportFacts) -> float:
    """The stage `total` where given, else the sum of the stages."""
    given = figures.finite(facts.seconds.get("total"))
    return math.fsum(facts.seconds.values()) if given is None else given


def write_report(facts: ReportFacts, out: str | Path) -> dict[str, Path]:
    """Write the three files into the folder `out` (made if absent) and return their paths.

    All three are rendered before the first is written; each replaces its older version in one
    rename. `report.html` may hold harmful replies: it is readable by its owner only, unless there
    are none or `redact` left them out. E761 when the folder cannot be written.
    """
    out = Path(out)
    private = not facts.redact and any(pair.harmful for pair in facts.answers)
    report = json.dumps(report_dict(facts), indent=1, ensure_ascii=True, allow_nan=False)
    rendered = {
        "report.html": (render_html(facts), 0o600 if private else 0o644),
        "report.json": (report + "\n", 0o644),
        "report.md": (render_markdown(facts), 0o644),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        return {
            name.removeprefix("report."): _write(out / name, text, mode)
            for name, (text, mode) in rendered.items()
        }
    except OSError as error:
        raise SutureError(
            "E761",
            f"the report could not be written: {error.strerror or error}",
            where=str(out),
            fix="choose a folder that can be written to",
        ) from error


def _write(path: Path, text: str, mode: int) -> Path:
    write_atomic(path, text.encode("utf-8"), mode=mode)
    return path


def _plain(value: Any) -> Any:
    """JSON types only: tuples as lists, paths as text, non-finite numbers as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return str(value)
