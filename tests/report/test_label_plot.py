"""The distribution of labels drawn: bars add up, every item is somewhere, text is escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from suture.errors import SutureError
from suture.report import standalone
from suture.report.label_plot import Panel, _by_bin, label_plot

SOFT = [0.0, 0.05, 0.1, 0.49, 0.5, 0.95, 1.0, None]
HARD = ["E", "E", "E", "E", "I", "I", None, None]
PANEL = Panel("E/I", ("E", "I"), SOFT, HARD)


def test_every_label_is_in_one_bin() -> None:
    columns = _by_bin(PANEL)
    assert sum(map(sum, columns)) == 7
    assert columns[0] == [2, 0, 0]
    assert columns[1] == [1, 0, 0]
    assert columns[5] == [0, 1, 0]
    assert columns[9] == [0, 1, 1]  # the last bin has both ends


def test_the_drawing_is_well_formed_and_says_what_it_shows() -> None:
    other = Panel("E/I", ("E", "I"), [0.3] * 8, ["E"] * 8)
    drawn = label_plot([PANEL], title="T <1>", over=[other], names=("a", "b & c"))
    root = ElementTree.fromstring(standalone(drawn))
    text = "".join(root.itertext())
    assert "6 labelled: E 4 · I 2" in text
    assert "b & c: 8 items" in text
    assert "mean 0.44" in text
    assert "hard label: first pole (left end)" in text
    assert "no hard label" in text
    assert "in brackets" not in text
    tall = [float(h) for h in re.findall(r'<rect[^>]* height="([0-9.]+)"', str(drawn))]
    assert len(tall) == 6 + 3  # and the legend
    assert max(tall[:6]) == 2 * min(tall[:6])
    assert label_plot([], title="none") == ""


def test_the_axis_has_a_name() -> None:
    root = ElementTree.fromstring(standalone(label_plot([PANEL], title="T")))
    assert "items" in [node.text for node in root.iter() if node.tag.endswith("text")]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"items": list("abcdefgx")}, "2 stand in one only"),
        ({"items": list("abcd"), "soft": [0.1] * 4, "hard": ["E"] * 4}, "of 8 and 4 items"),
        ({"name": "S/N"}, "no dimension is in both"),
        ({"poles": ("I", "E")}, "has the poles E, I, and I, E"),
        ({"poles": ("E", "X"), "hard": ["E", "X", *"EEEEEE"]}, "has the poles E, I, and E, X"),
        ({"poles": ("E", "I", "X"), "shares": {"E": 1.0, "I": 0.0, "X": 0.0}}, "has the poles"),
    ],
)
def test_only_labels_of_the_same_are_laid_over(other: dict[str, Any], why: str) -> None:
    own = replace(PANEL, items=list("abcdefgh"))
    with pytest.raises(SutureError, match="E639") as caught:
        label_plot([own], title="T", over=[replace(own, **other)], names=("a", "b"))
    assert why in str(caught.value.why)


def test_what_only_one_side_names_stands_in_nobodys_way() -> None:
    """Another order of items, a pole nobody has, and poles of more than two in another order."""
    own = replace(PANEL, items=list("abcdefgh"))
    turned = replace(own, items=own.items[::-1], soft=SOFT[::-1], hard=HARD[::-1])
    bare = replace(own, poles=("first", "second"), hard=[None] * 8)
    for over in (turned, bare):
        for pair in ((own, over), (over, own)):
            assert "b: " in label_plot([pair[0]], title="T", over=[pair[1]], names=("a", "b"))
    shares = {"a": 0.5, "b": 0.25, "c": 0.25}
    more = Panel("x", ("a", "b", "c"), [], ["a", "a", "b", None], shares)
    other = replace(more, poles=("c", "b", "a"))
    text = str(label_plot([more], title="x", over=[other], names=("one", "two")))
    assert re.findall(r"two: (\d) items", text) == ["2", "1", "0"]


def test_more_poles_have_a_bar_each() -> None:
    shares = {"a": 0.5, "b": 0.25, "c": 0.25}
    panel = Panel("x", ("a", "b", "c"), [], ["a", "a", "b", None], shares)
    text = "".join(ElementTree.fromstring(standalone(label_plot([panel], title="x"))).itertext())
    assert "a (0.50)" in text
    assert "b: 1 b" in text
    assert "in brackets each pole's mean share" in text
    assert "left end" not in text
    assert str(label_plot([panel], title="x")).count("fill:var(--before)") == 2  # alike
    assert "c: none" in text
