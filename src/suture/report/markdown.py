"""`report.md`: the same facts as dense tables for a terminal, a pull request or a chat.

Replies are counted, not quoted, so nothing harmful can appear here.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture.report import figures
from suture.report.facts import ReportFacts, SweepFacts
from suture.report.heatmap import HeatMap
from suture.report.html import limits, stages
from suture.report.visible import code_span, home_short, markdown


def render_markdown(facts: ReportFacts) -> str:
    """Verdict, ledger, change, answers, junk checks, limits and provenance."""
    parts = [
        f"# {markdown(facts.title)}",
        f"**{figures.glyph(facts.verdict)} {markdown(facts.verdict).capitalize()}.** "
        f"{figures.VERDICT_SENTENCES.get(facts.verdict, '')}",
        _models(facts),
        ledger_table(facts),
        _derived(facts),
        _sweep(facts.sweep) if facts.sweep else "",
        _change(facts.heatmap) if facts.heatmap else "",
        _answers(facts),
        _junk(facts),
        _bullets("Not shown", facts.missing),
        _bullets("Limits of this proof", limits(facts)),
        _provenance(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells are already safe."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ledger_table(facts: ReportFacts) -> str:
    """The ledger, targets first; the empty string without one."""
    if not facts.ledger:
        return ""
    rows = []
    for row in [*facts.targets, *facts.kept]:
        verdict = str(row.get("verdict", ""))
        reference = figures.finite(row.get("reference"))
        needed = figures.finite(row.get("needed_n"))
        open_row = needed is not None and figures.tone(verdict) == "open"
        rows.append(
            [
                f"{figures.glyph(verdict)} {markdown(verdict)}"
                + (f" ({figures.settling(row, needed)})" if open_row and needed else ""),
                f"{markdown(row.get('suite'))}.{markdown(row.get('metric'))} "
                f"({markdown(row.get('role'))}, {markdown(row.get('better'))} is better)",
                figures.count(row.get("n")),
                f"{figures.level(row, 'before')} → **{figures.level(row, 'after')}**"
                + ("" if reference is None else f" ({figures.level(row, 'reference')})"),
                figures.signed(row, figures.finite(row.get("difference"))),
                figures.interval_text(row),
                figures.margin_text(row),
                "; ".join(
                    filter(
                        None,
                        [
                            markdown(row.get("test") or ""),
                            figures.p_text(figures.finite(row.get("p_value"))),
                            markdown(row.get("note") or ""),
                        ],
                    )
                ),
            ]
        )
    head = ["Verdict", "Metric", "n", "Before → after (reference)", "Difference"]
    return table([*head, "95% interval", "Must be", "Test"], rows)


def _derived(facts: ReportFacts) -> str:
    """Numbers about all rows of a suite."""
    if not facts.derived:
        return ""
    roles = ["before", "after", *(["reference"] if facts.reference else [])]
    rows = []
    for row in facts.derived:
        name = f"{markdown(row['suite'])}.{markdown(row['metric'])}"
        values = [figures.number(figures.finite(row.get(role)), 4) for role in roles]
        better = f"{markdown(row['direction'])} is better"
        if row.get("best") is not None:
            better = f"{figures.number(figures.finite(row['best']), 1)} is best"
        rows.append([name, better, figures.count(row["n"]), *values])
    return table(["Of all rows at once", "", "n", *(role.capitalize() for role in roles)], rows)


def _models(facts: ReportFacts) -> str:
    lines = []
    for role, model in (
        ("before", facts.before),
        ("after", facts.after),
        ("reference", facts.reference),
    ):
        if model:
            name = markdown(model.get("name") or "")
            lines.append(f"- {role}: {name} {code_span(model.get('fingerprint') or 'declared')}")
    if facts.patch:
        patch = facts.patch
        lines.append(
            f"- patch: {figures.count(patch.get('tensors'))} tensors, "
            f"{figures.count(patch.get('elements'))} entries, "
            f"{figures.size(patch.get('bytes'))} "
            f"{code_span(patch.get('fingerprint') or '')}"
        )
    return "\n".join(lines)


def _sweep(sweep: SweepFacts) -> str:
    names = [name for name, _ in sweep.metrics]
    rows = []
    for setting in (*sweep.landmarks, *sweep.settings):
        cells = [str(setting.number or ""), markdown(setting.label), setting.mark]
        for found in (setting.selection, setting.reported):
            cells += [
                figures.level(found[name], "after") if name in found else "" for name in names
            ]
        rows.append([*cells, markdown(setting.verdict or setting.note)])
    shown = [markdown(name) for name in names]
    head = ["", "Setting", "", *shown, *(f"{name}, reported" for name in shown), "Verdict"]
    parts = ["## What each setting buys", markdown(sweep.by), table(head, rows)]
    return "\n\n".join(part for part in parts if part)


def _change(heat: HeatMap) -> str:
    lines = [
        "## Where the weights changed",
        f"{heat.tensors_changed} of {heat.tensors} tensors, {figures.percent(heat.changed)} of "
        f"{figures.count(heat.entries)} entries, {figures.percent(heat.norm, 2)} of the norm. "
        "Cells: ‖after − before‖ / ‖before‖, and the share of entries changed.",
    ]
    if heat.layers:
        rows = []
        for layer in heat.layers:
            cells = [heat.cell(layer, matrix) for matrix in heat.matrices]
            rows.append(
                [
                    str(layer),
                    *(
                        f"{figures.percent(c.norm, 2)}, {figures.percent(c.changed)}" if c else ""
                        for c in cells
                    ),
                ]
            )
        lines.append(table(["Layer", *map(markdown, heat.matrices)], rows))
    return "\n\n".join(lines)


def _answers(facts: ReportFacts) -> str:
    if not facts.answers:
        return ""
    rows = [
        [markdown(suite), str(sum(counts.values())), *(str(counts[kind]) for kind in KINDS)]
        for suite, counts in answer_counts(facts).items()
    ]
    head = ["Suite", "Pairs", "Refuses now", "Complies now", "Other words", "Same"]
    return "## What changed in the answers\n\n" + table(head, rows)


KINDS = ("refuses now", "complies now", "changed", "same")


def answer_counts(facts: ReportFacts) -> dict[str, dict[str, int]]:
    """Pairs per suite and kind of change."""
    counts: dict[str, dict[str, int]] = {}
    for pair in sorted(facts.answers, key=lambda pair: pair.suite):
        counts.setdefault(pair.suite, dict.fromkeys(KINDS, 0))[pair.kind] += 1
    return counts


def _junk(facts: ReportFacts) -> str:
    if not facts.junk:
        return ""
    rows = [
        [
            markdown(check.get("suite", "")),
            markdown(str(check.get("column", "")).replace("_", " ")),
            markdown(check.get("against", "")),
            f"{figures.fixed(check['baseline'])} → {figures.fixed(check['after'])}",
            " to ".join(figures.fixed(end, sign=True) for end in figures.interval(check) or ()),
            "✕ worse" if check.get("worse") else "✓ sound",
        ]
        for check in facts.junk
    ]
    head = ["Suite", "Check", "Against", "Then → now", "95% interval", "Result"]
    return "## Junk checks\n\n" + table(head, rows)


def _bullets(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"## {title}\n\n" + "\n".join(f"- {markdown(line)}" for line in lines)


def _provenance(facts: ReportFacts) -> str:
    source = facts.provenance
    rows: list[tuple[str, str]] = []
    if source.method:
        settings = ", ".join(f"{key}={value}" for key, value in source.config.items())
        rows.append(("method", f"{markdown(source.method)} {code_span(settings or 'defaults')}"))
    if source.seeds:
        rows.append(("seeds", ", ".join(map(str, source.seeds))))
    if source.roles_sha256:
        rows.append(("roles and margins", code_span(source.roles_sha256)))
    for measured in source.measurements:
        data = measured.get("data") or {}
        rows.append(
            (
                f"{markdown(measured.get('role', ''))} {markdown(measured.get('suite', ''))}",
                f"n = {measured.get('n')}, data {code_span(home_short(data.get('name', '')))} "
                f"{code_span(figures.short(data.get('sha256')))}, file "
                f"{code_span(home_short(measured.get('file', '')))}",
            )
        )
    for entry in source.data:
        name = code_span(home_short(entry.get("name", "")))
        rows.append(("input", f"{name} {code_span(figures.short(entry.get('sha256')))}"))
    for name, values in (("template", source.template), ("decoding", source.decoding)):
        if values:
            rows.append((name, code_span(", ".join(f"{k}={v}" for k, v in values.items()))))
    if source.versions:
        listed = ", ".join(f"{name} {version}" for name, version in source.versions.items())
        rows.append(("versions", markdown(listed)))
    spent = ", ".join(f"{name} {figures.duration(value)}" for name, value in stages(facts))
    if spent:
        rows.append(("time", markdown(spent)))
    rows += [("licence", markdown(note)) for note in source.licences]
    if not rows:
        return ""
    return "## Where the numbers come from\n\n" + "\n".join(f"- {k}: {v}" for k, v in rows)
