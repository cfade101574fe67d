"""`suture labels`: files, what is printed, exit codes."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from crowd import graded
from helpers import write_jsonl
from suture.cli.main import run

MARKS = {"E/I": ["E+", "E-", "I-", "I+"], "S/N": ["S+", "S-", "N-", "N+"]}


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    tables = {name: graded(40, 3, seed) for seed, name in enumerate(MARKS)}
    rows = [
        {
            "id": i,
            "annotation": {
                d: {f"A{k}": MARKS[d][tables[d][i][k]] for k in range(3)} for d in MARKS
            },
            "self_report": "ES" if i % 2 else "IN",
        }
        for i in range(40)
    ]
    return write_jsonl(tmp_path / "votes.jsonl", rows)


def told(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> Any:
    assert run(["labels", *args, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_estimate_writes_rows_and_their_record(
    votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "labels.jsonl"
    assert run(["labels", "estimate", str(votes), "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "40 items, 3 annotators, mode released" in shown
    assert "A2  " in shown
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(40))
    assert set(rows[0]) == {"id", "softlabels", "hardlabels", "posterior"}
    for row in rows:
        for name in MARKS:
            assert (row["softlabels"][name] < 0.5) == (row["posterior"][name] <= 0.5)
    record = json.loads((tmp_path / "made" / "labels.estimate.json").read_text())
    assert record["knobs"]["tolerance"] == 0.1
    assert len(record["votes"]["sha256"]) == 64
    assert record["scales"]["E/I"] == {"E": ["E+", "E-"], "I": ["I-", "I+"]}
    assert {row["annotator"] for row in record["reliability"]["S/N"]} == {"A0", "A1", "A2"}
    for file in (out, tmp_path / "made" / "labels.estimate.json"):  # people's types, by id
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_estimates_are_compared_with_labels_in_the_file(
    votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.jsonl"
    told(capsys, "estimate", str(votes), "-o", str(out))
    made = [json.loads(line) for line in out.read_text().splitlines()]
    given = [json.loads(line) for line in votes.read_text().splitlines()]
    again = write_jsonl(
        tmp_path / "again.jsonl", [{**g, **m} for g, m in zip(given, made, strict=True)]
    )
    stored = told(capsys, "estimate", str(again))["stored"]
    assert stored["soft_equal"] == stored["soft"] == stored["hard_equal"] == 80
    other = told(capsys, "estimate", str(again), "--mode", "converged")["stored"]
    assert other["soft_equal"] < 80


def test_draws_add_intervals(
    votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.jsonl"
    facts = told(capsys, "estimate", str(votes), "-o", str(out), "--draws", "30")
    assert set(facts["stability"]) == set(MARKS)
    for line in out.read_text().splitlines():
        row = json.loads(line)
        low, high = row["interval"]["E/I"]
        assert 0 <= low <= high <= 1
        assert 0 <= row["kept"]["E/I"] <= 1
    error = told(capsys, "estimate", str(votes), "--draws", "3", code=1)["error"]
    assert error["code"] == "E702"


def test_knobs_belong_to_converged(votes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = told(capsys, "estimate", str(votes), "--mode", "converged", "--tolerance", "0.01")
    assert facts["dimensions"]["E/I"]["converged"]
    for args, code in (
        (["--tolerance", "0.01"], "E399"),
        (["--mode", "realeased"], "E702"),
        (["--mode", "converged", "--prior", "none"], "E702"),
        (["--soft", "spred"], "E702"),
        (["--dimension", "E/J"], "E388"),
        (["-o", str(votes)], "E398"),
        (["-o", "labels.csv"], "E702"),
    ):
        error = told(capsys, "estimate", str(votes), *args, code=1)["error"]
        assert error["code"] == code, args
        assert error["next"]


def test_agreement_and_check(
    votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["labels", "agreement", str(votes), "--dimension", "E/I"]) == 0
    shown = capsys.readouterr().out
    assert "Krippendorff" in shown
    assert "n=40" in shown
    assert "(A0, A1)" in shown or "(A0, A2)" in shown or "(A1, A2)" in shown
    assert "S/N" not in shown
    rows = tmp_path / "doubts.jsonl"
    facts = told(capsys, "check", str(votes), "-o", str(rows), "--below", "0.5")
    assert facts["labels"] == 80
    assert facts["users"] == 40
    assert facts["wrong"] == sum(one["wrong"] for one in facts["by_dimension"].values())
    assert facts["rate"] <= facts["user_rate"]
    assert stat.S_IMODE(rows.stat().st_mode) == 0o600
    listed = [json.loads(line) for line in rows.read_text().splitlines()]
    low = sum(value < 0.5 for row in listed for value in row["confidence"].values())
    assert low == facts["doubtful"]
    assert run(["labels", "check", str(votes)]) == 0
    assert "users with any" in capsys.readouterr().out
    reports = [{"id": i if i < 10 else f"u{i}", "self_report": "ES"} for i in range(40)]
    said = write_jsonl(tmp_path / "said.jsonl", reports)
    assert told(capsys, "check", str(votes), "--self-report", str(said))["without_item"] == 30
    assert run(["labels", "check", str(votes), "--self-report", str(said)]) == 0
    assert "30 rows of" in capsys.readouterr().out


def test_one_dimension_whatever_the_others_hold(
    votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in votes.read_text().splitlines()]
    for row in rows:
        row["annotation"]["S/N"] = {}
    path = write_jsonl(tmp_path / "gap.jsonl", rows)
    for verb in ("estimate", "agreement", "check"):
        assert told(capsys, verb, str(path), code=1)["error"]["code"] == "E387"
        told(capsys, verb, str(path), "--dimension", "E/I")


def test_labels_not_to_be_trusted_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cast = ["a1 yes", "b1 no", "a2 yes", "b2 yes", "a3 unsure", "b3 no", "c3 no"]
    rows = [{"item": c[1], "annotator": c[0], "vote": c[3:]} for c in cast]
    path = write_jsonl(tmp_path / "v.jsonl", rows)
    args = ["--scale", "label=no|unsure|yes", "--mode", "converged"]
    assert run(["labels", "estimate", str(path), *args]) == 0
    shown = capsys.readouterr().out
    assert "do not trust these labels" in shown
    assert "1 items have a hard label nobody voted for" in shown


def test_clean_writes_privately(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    posts = [{"id": 1, "posts": ["word " * 100, "I am an ISTJ"]}, {"id": 2, "posts": ["hi"]}]
    path, out = write_jsonl(tmp_path / "p.jsonl", posts), tmp_path / "clean.jsonl"
    facts = told(capsys, "clean", str(path), "-o", str(out))
    assert facts["users"] == {"before": 2, "after": 1}
    assert facts["removed"]["type mentioned"] == {"four letters": 1}
    for file in (out, tmp_path / "clean.removed.jsonl"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run(["labels", "clean", str(path), "-o", str(out), "--mask", "--min-words", "0"]) == 0
    assert "ISTJ" not in out.read_text()
    assert run(["labels", "clean", str(path), "-o", str(out)]) == 0
    assert "1 of 2 users have fewer than 100 words left" in capsys.readouterr().out
    assert run(["labels", "clean", str(path), "-o", str(out), "--mask", "--min-words", "0"]) == 0
    assert "four letters" in capsys.readouterr().out
    assert told(capsys, "clean", str(path), "-o", str(path), code=1)["error"]["code"] == "E398"


def test_compare_with_truth(
    votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write_jsonl(
        tmp_path / "t.jsonl", [{"id": i, "hardlabels": {"E/I": "E"}} for i in range(5)]
    )
    args = ["compare", str(votes), "--truth", str(truth), "--dimension", "E/I"]
    args += ["--estimator", "converged", "--estimator", "majority"]
    facts = told(capsys, *args)
    assert facts["without_item"] == 0
    rows = facts["estimators"]["E/I"]
    assert [row["known"] for row in rows] == [5, 5]
    assert run(["labels", *args]) == 0
    assert "Brier" in capsys.readouterr().out


def test_plot(votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, out = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "p.svg"))
    told(capsys, "estimate", str(votes), "-o", str(one))
    told(capsys, "estimate", str(votes), "-o", str(two), "--mode", "converged")
    facts = told(capsys, "plot", str(one), "-o", str(out), "--against", str(two))
    assert facts["dimensions"] == ["E/I", "S/N"]
    drawn = out.read_text()
    assert drawn.startswith("<svg xmlns")
    assert "b.jsonl" in drawn
    told(capsys, "estimate", str(votes), "-o", str(two), "--dimension", "S/N")
    facts = told(capsys, "plot", str(one), "-o", str(out), "--against", str(two))
    assert facts["without_dots"] == ["E/I"]
    assert run(["labels", "plot", str(one), "-o", str(out), "--against", str(two)]) == 0
    assert "without dots, as b.jsonl has no labels of it: E/I" in capsys.readouterr().out
    write_jsonl(two, [{"id": 0, "softlabels": {"E/I": 0.5}}])
    error = told(capsys, "plot", str(one), "-o", str(out), "--against", str(two), code=1)["error"]
    assert error["code"] == "E639"
    assert told(capsys, "plot", str(votes), "-o", str(out), code=1)["error"]["code"] == "E397"
    png = str(tmp_path / "p.png")
    error = told(capsys, "plot", str(one), "-o", png, code=1)["error"]
    assert (error["code"], Path(png).exists()) == ("E702", False)
    assert "p.svg" in error["next"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"softlabels": {"E/I": 1.5}}],
        [{"softlabels": {"E/I": True}}],
        [{"softlabels": {}}],
        [{"softlabels": {"x": {}}}],
        [{"softlabels": {"x": {"a": None}}}],
        [{"softlabels": {"x": 0.5}, "hardlabels": {"x": ["a"]}}],
        [{"softlabels": {"x": 0.5}}, {"softlabels": {"y": 0.5}}],
        [{"softlabels": {"x": {"a": 1.0}}}, {"softlabels": {"x": {"b": 1.0}}}],
        [{"softlabels": {"x": {"a": 1.0}}}, {"softlabels": {"x": 0.2}}],
    ],
)
def test_labels_that_cannot_be_drawn(
    rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "w.jsonl", rows)
    error = told(capsys, "plot", str(path), "-o", str(tmp_path / "p.svg"), code=1)["error"]
    assert error["code"] == "E397"
    assert f"w.jsonl:{len(rows)}" in error["where"]


def test_three_poles_from_one_row_per_vote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poles = ["no", "unsure", "yes"]
    rows = [
        {"item": f"t{i}", "annotator": who, "vote": poles[(i + (who == "c" and i % 4 == 0)) % 3]}
        for i in range(30)
        for who in "abc"
    ]
    path, out = write_jsonl(tmp_path / "v.jsonl", rows), tmp_path / "l.jsonl"
    error = told(capsys, "estimate", str(path), code=1)["error"]
    assert error["code"] == "E380"
    assert "--scale 'label=no|unsure|yes'" in error["next"]
    scale = ["--scale", "label=no|unsure|yes"]
    assert told(capsys, "estimate", str(path), *scale, code=1)["error"]["code"] == "E390"
    told(capsys, "estimate", str(path), *scale, "--mode", "converged", "-o", str(out))
    first = json.loads(out.read_text().splitlines()[0])
    assert first["hardlabels"] == {"label": "no"}
    assert sum(first["softlabels"]["label"].values()) == pytest.approx(1)
    told(capsys, "plot", str(out), "-o", str(tmp_path / "p.svg"))
    assert "unsure" in (tmp_path / "p.svg").read_text()


def test_the_plot_has_poles_at_their_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first pole is the one that soft labels below .5 belong to, not the first by its name."""
    rows = [
        {"id": i, "softlabels": {"spam": i / 9}, "hardlabels": {"spam": "yes" if i < 5 else "no"}}
        for i in range(10)
    ]
    path, out = write_jsonl(tmp_path / "l.jsonl", rows), tmp_path / "p.svg"
    told(capsys, "plot", str(path), "-o", str(out))
    assert "0 yes" in out.read_text()
    assert "no 1" in out.read_text()
