"""Curves: every point is drawn where it belongs, and the words say what the picture shows."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from suture.report.curves import curves
from suture.report.svg import standalone


def test_points_lie_where_they_belong() -> None:
    chart = curves(
        {"up": [(2, 1.0), (0, 0.0)], "flat <b>": [(0, 0.5), (1, 0.5), (2, 0.5)]},
        title="Learning",
        x_label="epoch",
        y_label="share",
        posts={"fixed": 1},
    )
    root = ElementTree.fromstring(standalone(chart))
    assert "<b>" not in str(chart)
    assert "up from 0% to 100%" in str(chart)
    segments = re.findall(
        r'x1="([\d.]+)%" y1="([\d.]+)" x2="([\d.]+)%" y2="([\d.]+)" style', str(chart)
    )
    assert ("0.00", "260", "100.00", "0") in segments
    assert ("0.00", "130", "50.00", "130") in segments
    assert root.get("aria-label") == "Learning"


def test_one_value_and_none() -> None:
    assert curves({"a": []}, title="t", x_label="x", y_label="y") == ""
    assert "a from 30% to 30%" in curves(
        {"a": [(1, 0.3)]}, title="t", x_label="x", y_label="y", as_percent=True
    )
