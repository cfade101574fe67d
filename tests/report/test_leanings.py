"""How answers lean, drawn: bars as high as their shares, intervals where they belong."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from helpers import write_jsonl
from suites.mbti.people import PEOPLE
from suture.cli.main import run
from suture.report.leanings import Leaning, Panel, distributions, leanings
from suture.report.svg import standalone
from suture.suites import measure


def test_bars_are_shares() -> None:
    panel = Panel("E/I", "low", "high", truth=[0.0, 0.5, 0.5, 1.0], said=[0.0, 0.0, 1.0, 1.0])
    chart = str(distributions({"<model>": [panel]}))
    ElementTree.fromstring(standalone(distributions({"<model>": [panel]})))
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" style', chart)][:18]
    up, down = heights[0::2], heights[1::2]
    assert up == [23, 0, 0, 0, 46, 0, 0, 0, 23]
    assert down == [46, 0, 0, 0, 0, 0, 0, 0, 46]
    assert "100.0% of 4 answers and 50.0% of 4 labels in the outermost parts" in chart
    assert "<model>" not in chart
    assert distributions({"m": [Panel("x", "a", "b", [], [])]}) == ""


def test_heaped_answers_leave_labels_their_height() -> None:
    """Both have a scale of their own, told beside the bars."""
    truth = [k / 8 for k in range(9)]
    chart = str(distributions({"m": [Panel("E/I", "a", "b", truth, [0.5] * 9, unread=3)]}))
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" style', chart)][:18]
    assert min(heights[0::2]) > 20
    assert max(heights[1::2]) == 46
    assert re.findall(r">([\d.]+%)</text>", chart) == ["20%", "0%", "100%"]
    assert ">9 read, 3 not<" in chart
    assert "3 answers unread" in chart


def test_names_too_long_for_their_place_are_cut() -> None:
    panel = Panel("E/I", "a", "b", [0.0], [0.0])
    assert f">{'x' * 40}<" not in str(distributions({"x" * 40: [panel], "y": [panel]}))
    long = Panel("E/I", "Extraversion", "Introversion", [0.0], [0.0])
    for models, apart in ((1, 0), (4, 14)):
        chart = str(distributions({f"m{n}": [long] for n in range(models)}))
        low, high = (
            int(y)
            for pole in ("Extraversion", "Introversion")
            for y in re.findall(rf'y="(\d+)"[^>]*>{pole}<', chart)[:1]
        )
        assert high - low == apart
    chart = str(leanings({"bias": {"E/I": {"x" * 40: Leaning(0.1, 0.0, 0.2, 7)}}}))
    assert f">{'x' * 21}…<" in chart
    assert f">{'x' * 40}</text>" in chart  # the legend has all of it


def test_intervals_lie_around_zero() -> None:
    a, b = Leaning(0.1, 0.0, 0.2, 5), Leaning(-0.2, -0.2, -0.1, 6)
    chart = str(leanings({"bias": {"E/I": {"a": a, "b": b}}}))
    ElementTree.fromstring(standalone(leanings({"bias": {"E/I": {"a": a}}})))
    spans = re.findall(r'<line x1="([\d.]+)%" y1="\d+" x2="([\d.]+)%" y2="\d+" style', chart)
    assert spans == [("59.00", "89.00"), ("29.00", "44.00")]
    assert "bias, E/I, a: +0.100 (+0.000 to +0.200), n 5" in chart
    assert (chart.count(">a</text>"), chart.count(">n 6</text>")) == (2, 1)  # row and legend
    assert '<text x="0"' not in chart  # nothing touches the border
    assert '<text x="0.00%"' not in chart
    assert leanings({}) == ""


@pytest.mark.parametrize("form", ["soft", "hard"])
def test_the_command(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = write_jsonl(tmp_path / "people.jsonl", PEOPLE)
    rnd = random.Random(1)
    rows = [
        {
            "item": f"{one['id']}/{key}",
            "reply": f"[[{rnd.randint(1, 9)}]]"
            if form == "soft"
            else f"CHOICE: {rnd.choice('AB')}",
        }
        for one in PEOPLE
        for key in ("EI", "SN", "TF", "JP")
    ]
    replies = write_jsonl(tmp_path / "replies.jsonl", rows)
    file = tmp_path / "m.json"
    options = {"form": form}
    measure("personality", "m", data=people, replies=replies, options=options).save(file)
    for bias in (False, True):
        out = tmp_path / f"{bias}.svg"
        code = run(["plot", str(file), "-o", str(out), *(["--bias"] if bias else [])])
        said = capsys.readouterr().err
        if form == "hard" and not bias:
            assert (code, "E634" in said) == (1, True)
            continue
        assert code == 0
        drawn = ElementTree.fromstring(out.read_text(encoding="utf-8"))
        assert drawn.get("width") == "720"
        assert ("more extreme" in out.read_text()) == (bias and form == "soft")


def replied(tmp_path: Path, name: str, replies: list[str], people: list[dict[str, Any]]) -> str:
    """A measurement of these people; each reply is given in turn."""
    data = write_jsonl(tmp_path / f"{name}.people.jsonl", people)
    items = [f"{one['id']}/{key}" for one in people for key in ("EI", "SN", "TF", "JP")]
    rows = [
        {"item": item, "reply": replies[place % len(replies)]} for place, item in enumerate(items)
    ]
    given = write_jsonl(tmp_path / f"{name}.jsonl", rows)
    file = tmp_path / f"{name}.json"
    measure("personality", name, data=data, replies=given).save(file)
    return str(file)


def test_answers_that_could_not_be_read_are_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They count as 0.5 in the metrics, and would stand in the middle bar as if they were said."""
    out = tmp_path / "x.svg"
    some = replied(tmp_path, "some", ["[[9]]", "no idea"], PEOPLE)
    assert run(["plot", some, "-o", str(out)]) == 0
    assert "some: 12 of 24 answers could not be read: left out" in capsys.readouterr().out
    drawn = out.read_text(encoding="utf-8")
    assert drawn.count(">6 read<") == drawn.count(">0 read, 6 not<") == 2
    assert "part 5 of 9: labels 100.0%, answers 0.0%" in drawn  # S/N: nobody said 0.5
    assert run(["plot", some, "--bias", "-o", str(out)]) == 0
    assert "some (50% read)" in out.read_text(encoding="utf-8")
    none = replied(tmp_path, "none", ["no idea"], PEOPLE)
    out.unlink()
    assert run(["plot", none, "-o", str(out)]) == 1
    assert "E634: there is nothing to draw: none of the answers" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("bias", [[], ["--bias"]])
def test_other_people_are_not_drawn_beside_each_other(
    bias: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [replied(tmp_path, f"m{n}", ["[[9]]"], PEOPLE[:n]) for n in (5, 6)]
    assert run(["plot", *files, *bias, "-o", str(tmp_path / "x.svg")]) == 1
    assert "E631" in capsys.readouterr().err


def test_a_drawing_is_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = replied(tmp_path, "m", ["[[9]]"], PEOPLE)
    assert run(["plot", file, "-o", str(tmp_path / "x.png")]) == 1
    assert "E633" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
