from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import suture.report
from report.sample import heat, ledger_rows, sweep
from suture.report import Point, pareto_front, standalone, tradeoff
from suture.report.heatgrid import brief, heat_grid, norm_of, ramp, share_of, step_of
from suture.report.svg import dumbbell, interval_mark, key, ticks

NASTY = "<b>&\"'</title><script>\x00\x1b[31m\u202e"


def drawn() -> dict[str, str]:
    plan = sweep()
    rows = [{**row, "metric": row["metric"] + NASTY} for row in ledger_rows()]
    return {
        **{f"dumbbell {i}": dumbbell(row) for i, row in enumerate(rows)},
        **{f"interval {i}": interval_mark(row, 0.7) for i, row in enumerate(rows)},
        "norm": heat_grid(heat(), norm_of, NASTY),
        "share": heat_grid(heat(layers=80), share_of, "share"),
        "tradeoff": tradeoff(
            [*plan.points, Point(0.1, 0.1, NASTY, NASTY, picked=True)],
            x_label=NASTY,
            y_label=plan.y_label,
            x_limit=0.6,
            y_limit=-0.05,
        ),
    }


@pytest.mark.parametrize("name", list(drawn()))
def test_charts_are_well_formed_and_named(name: str) -> None:
    root = ET.fromstring(drawn()[name])
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext("title")
    assert root.findtext("desc")
    assert not [element for element in root.iter() if element.tag in ("script", "b", "image")]
    assert not re.search(r"nan|inf\b", "".join(str(e.attrib) for e in root.iter()))


def test_standalone_file_has_namespace_and_style() -> None:
    plan = sweep()
    text = standalone(tradeoff(plan.points, x_label="gain", y_label="price"))
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("width") == "720"
    assert "--paper" in root.findtext("{http://www.w3.org/2000/svg}style")
    heading = root.findtext("{http://www.w3.org/2000/svg}text")
    inner = root.find("{http://www.w3.org/2000/svg}svg")
    assert heading == inner.findtext("{http://www.w3.org/2000/svg}title")
    assert float(root.get("height")) == float(inner.get("y")) + float(inner.get("height"))
    assert len([e for e in text.split("<svg") if "xmlns" in e.split(">")[0]]) == 1


def x_of(fragment: str) -> float:
    return float(re.search(r'<svg x="([\d.]+)%"', fragment)[1])


def test_dumbbell_turns_with_the_direction() -> None:
    row = {**ledger_rows()[2], "reference": None, "against": "before"}
    row |= {"before": 0.02, "after": 0.06, "difference": -0.04, "ci95": [-0.06, -0.02]}
    root = ET.fromstring(dumbbell(row))
    box = root.find("rect")
    left = float(box.get("x").rstrip("%"))
    wide = float(box.get("width").rstrip("%"))
    circles = [
        float(s.get("x").rstrip("%")) for s in root.findall("svg") if s.find("circle") is not None
    ]
    before, after = circles
    assert before < after
    assert left < after < left + wide  # fewer is better: the bar lies around after, above before
    assert left + wide / 2 == pytest.approx(after, abs=0.02)


def test_nothing_to_draw_is_nothing() -> None:
    assert dumbbell({"metric": "x", "before": None, "after": 1.0}) == ""
    assert interval_mark({"ci95": None}, 1.0) == ""
    assert tradeoff([], x_label="x", y_label="y") == ""


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_the_range(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert found[0] <= low + 1e-6 * span
    assert found[-1] >= low + span - 1e-6 * max(span, abs(low))
    assert len(found) <= 9
    assert found == sorted(found)


def test_pareto_front() -> None:
    points = [Point(x, y, "s", str(i)) for i, (x, y) in enumerate([(0, 3), (1, 2), (1, 1), (2, 0)])]
    assert [p.label for p in pareto_front(points)] == ["0", "1", "3"]
    assert [p.label for p in pareto_front(points, "lower", "lower")] == ["0", "2", "3"]
    assert len(pareto_front([Point(1, 1, "s"), Point(1, 1, "t")])) == 2


def test_landmarks_are_drawn_and_not_on_the_front() -> None:
    points = [Point(0.2, 0.4, "s", "1"), Point(0.9, 0.9, "models", "aligned", landmark=True)]
    assert [p.label for p in pareto_front(points)] == ["1"]
    svg = tradeoff(points, x_label="x", y_label="y", label_all=True)
    root = ET.fromstring(svg)
    assert root.findtext("desc") == "1 setting; on the Pareto front: 1 (20%, 40%)."
    texts = [element.text for element in root.iter("text")]
    assert {"1", "aligned"} <= set(texts)


def test_labels_of_crowded_points_do_not_collide() -> None:
    points = [Point(0.5 + 0.004 * i, 0.5 - 0.004 * i, "s", f"setting {i}") for i in range(12)]
    svg = tradeoff(points, x_label="x", y_label="y", label_all=True)
    boxes = []
    for element in ET.fromstring(svg).iter("text"):
        words = element.text or ""
        if not words.startswith("setting "):
            continue
        wide, dx = 6.6 * len(words), float(element.get("dx") or 0)
        shift = {"start": wide / 2, "end": -wide / 2, "middle": 0.0}[element.get("text-anchor")]
        x = float((element.get("x") or "").rstrip("%")) * 6.2 + dx + shift
        boxes.append((x, float(element.get("y") or 0), wide))
    assert len(boxes) == len(points)
    for place, one in enumerate(boxes):
        for two in boxes[place + 1 :]:
            apart = abs(one[0] - two[0]) >= (one[2] + two[2]) / 2 or abs(one[1] - two[1]) >= 15
            assert apart, (one, two)


def test_the_levels_of_constraints_are_in_the_key() -> None:
    points = [Point(0.2, 0.4, "s", "1"), Point(0.9, 0.9, "s", "2")]
    svg = tradeoff(points, x_label="task.accuracy", y_label="safety.rate", x_limit=0.6)
    texts = [element.text for element in ET.fromstring(svg).iter("text")]
    assert "constraint on task.accuracy: 60%" in texts
    assert not [t for t in texts if t and t.startswith("constraint on safety")]


def test_heat_steps_and_values() -> None:
    assert [step_of(v, 1.0) for v in (0.0, 1e-9, 0.5, 1.0, None)] == [0, 1, 5, 9, 9]
    assert [brief(v) for v in (0.0, 4e-5, 0.0042, 0.038, 0.47, None)] == [
        "·", "&lt;.01", ".42", "3.8", "47", "new",
    ]  # fmt: skip
    assert "3.8" in ramp(heat(), norm_of)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


STYLE = (Path(suture.report.__file__).parent / "templates" / "style.css").read_text()
THEMES = [
    {k: v if len(v) == 7 else "#ffffff" for k, v in re.findall(r"--(\w+): (#\w+);", part)}
    for part in STYLE.split("@media print")[0].split("@media (prefers-color-scheme: dark)")
]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_contrast_is_aa(theme: int) -> None:
    c = THEMES[theme]
    pairs = [
        (ink, ground)
        for ink in ("ink", "muted", "before", "after", "ref", "good", "bad", "open")
        for ground in ("paper", "card")
    ]
    pairs += [("ink", "ins"), ("ink", "del"), ("muted", "h0"), ("muted", "wash")]
    pairs += [("ink", f"h{step}") for step in range(1, 6)]
    pairs += [("paper", f"h{step}") for step in range(6, 10)]
    poor = {pair: round(contrast(c[pair[0]], c[pair[1]]), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in poor.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_heat_ramp_is_ordered_by_lightness(theme: int) -> None:
    steps = [luminance(THEMES[theme][f"h{i}"]) for i in range(1, 10)]
    assert steps == sorted(steps, reverse=theme == 0)


def test_key_names_every_sign() -> None:
    root = ET.fromstring(key())
    words = " ".join("".join(item.itertext()) for item in root)
    for sign in ("before", "after", "reference", "95% interval", "margin"):
        assert sign in words
