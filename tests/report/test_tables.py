"""Tables over seeds: who is grouped, which interval stands, what is called best, three formats."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suture.cli.main import run
from suture.errors import SutureError
from suture.ledger import Measurement, Row, derive, interval_of, mean_scores
from suture.ledger.student import mean_interval
from suture.report.grouping import grouped, named_files
from suture.report.seeds import CONSTANT, Table, tabulate
from suture.report.tables import as_csv, as_latex, as_markdown, latex

N = 120


def measured(
    name: str,
    right: float,
    seed: int = 0,
    *,
    suite: str = "task",
    constant: bool = False,
    **about: Any,
) -> Measurement:
    """A model that is right in a share `right` of the items, which are the same for every model."""
    rnd = random.Random(f"{name}{seed}")
    rows = []
    for n in range(N):
        truth = float(n % 2)
        said = truth if rnd.random() < right else 1 - truth
        rows.append(Row(str(n), {"truth": truth, "said": said, "zero": 0.0}))
    derived = {
        "f1": derive(rows, "macro_f1", ["truth", "said"], definition="", better="higher", labels=2)
    }
    if constant:
        columns = ["truth", "zero"]
        derived["f1_constant"] = derive(
            rows, "macro_f1", columns, definition="", better="higher", labels=2
        )
    return Measurement(
        suite=suite,
        model={"fingerprint": f"{name}{seed}", "path": f"runs/{name}-seed{seed}", "patches": []},
        n=N,
        metrics={key: one["value"] for key, one in derived.items()},
        better=dict.fromkeys(derived, "higher"),
        rows=rows,
        derived=derived,
        data={"name": "made", "sha256": "abc", "n": N, **about},
    )


def saved(folder: Path, *measurements: Measurement) -> list[str]:
    files = []
    for place, one in enumerate(measurements):
        files.append(str(one.save(folder / f"{place}.json")))
    return files


def cells(table: Table, column: str = "task.f1") -> dict[str, Any]:
    return {line.label: line.cells.get(column) for line in table.lines}


def test_of_seeds_the_mean_and_of_one_run_its_rows() -> None:
    group = [measured("a", 0.8, seed) for seed in range(4)]
    single = measured("b", 0.5)
    found = cells(tabulate({"a": group, "b": [single]}))
    values = [one.metrics["f1"] for one in group]
    assert found["a"].value == pytest.approx(sum(values) / 4)
    assert (found["a"].low, found["a"].high) == mean_interval(values)
    assert found["a"].over == "seeds"
    assert (found["b"].low, found["b"].high) == interval_of(single, "f1")
    assert (found["b"].over, found["b"].n) == ("rows", N)


def test_plain_averages_are_tabulated_too() -> None:
    def plain(name: str, right: float) -> Measurement:
        rnd = random.Random(name)
        rows = [Row(str(n), {"accuracy": float(rnd.random() < right)}) for n in range(N)]
        return Measurement(
            suite="task",
            model={"fingerprint": name, "path": name},
            n=N,
            metrics=mean_scores(rows),
            better={"accuracy": "higher"},
            rows=rows,
        )

    groups = {"good": [plain("good", 0.9)], "bad": [plain("bad", 0.5)]}
    found = cells(tabulate(groups), "task.accuracy")
    assert (found["good"].best, found["bad"].best) == (True, False)
    assert (found["bad"].low, found["bad"].high) == interval_of(groups["bad"][0], "accuracy")


@pytest.mark.parametrize("seeds", [1, 3])
def test_best_is_marked_only_where_intervals_show_it(seeds: int) -> None:
    def group(name: str, right: float) -> list[Measurement]:
        return [measured(name, right, seed) for seed in range(seeds)]

    clear = cells(tabulate({"good": group("good", 0.95), "bad": group("bad", 0.5)}))
    assert (clear["good"].best, clear["bad"].best) == (True, False)
    close = cells(tabulate({"one": group("one", 0.8), "two": group("two", 0.81)}))
    assert not any(cell.best for cell in close.values())
    alone = cells(tabulate({"good": group("good", 0.95)}))
    assert not alone["good"].best


def test_one_equal_rival_is_enough_to_mark_nobody() -> None:
    groups = {name: [measured(name, 0.95)] for name in ("a", "b")}
    groups["c"] = [measured("c", 0.3)]
    assert not any(cell.best for cell in cells(tabulate(groups)).values())


def test_several_seeds_against_a_single_run_is_a_matter_of_rows() -> None:
    groups = {"many": [measured("many", 0.95, s) for s in range(3)], "one": [measured("one", 0.5)]}
    assert cells(tabulate(groups))["many"].best


def test_the_constant_answer_is_a_row_of_its_own() -> None:
    good = [measured("a", 0.9, constant=True)]
    poor = [measured("b", 0.35, constant=True)]
    table = tabulate({"a": good, "b": poor})
    assert [line.label for line in table.lines] == ["a", "b", CONSTANT]
    assert [column.metric for column in table.columns] == ["f1"]
    assert cells(table)[CONSTANT].value == good[0].metrics["f1_constant"]
    assert cells(table)["a"].best
    assert not cells(tabulate({"b": poor}))["b"].best


def test_ranks_are_means_over_columns_and_ties_are_shared() -> None:
    def model(name: str, f1: float, other: float) -> list[Measurement]:
        return [measured(name, f1), measured(name, other, suite="other")]

    groups = {"a": model("a", 0.99, 0.3), "b": model("b", 0.7, 0.9), "c": [measured("c", 0.1)]}
    ranks = {line.label: line.rank for line in tabulate(groups).lines}
    assert ranks == {"a": 1.5, "b": 1.5, "c": None}
    twins = {name: [measured("same", 0.8)] for name in "xy"}
    assert {line.rank for line in tabulate(twins).lines} == {1.5}


def test_how_many_replies_could_be_read_is_told_whatever_is_shown() -> None:
    one = measured("a", 0.9)
    one.metrics["parsed_strict"] = 0.75
    one.better["parsed_strict"] = "higher"
    table = tabulate({"a": [one], "b": [measured("b", 0.5)]}, ["task.f1"])
    assert table.lines[0].read == {"task.parsed_strict": 0.75}
    assert r"replies that could be read, a: task.parsed\_strict 75.0%" in as_markdown(table)


def test_suites_stand_beside_each_other() -> None:
    both = [measured("a", 0.9), measured("a", 0.8, suite="other")]
    table = tabulate({"a": both, "b": [measured("b", 0.5)]})
    assert [column.name for column in table.columns] == ["task.f1", "other.f1"]
    assert cells(table, "other.f1")["b"] is None
    assert [line.seeds for line in table.lines] == [1, 1]
    assert [c.name for c in tabulate({"a": both}, ["oth*"]).columns] == ["other.f1"]
    with pytest.raises(SutureError, match="E632"):
        tabulate({"a": both}, ["task.f2"])


def test_other_data_is_not_put_into_one_column() -> None:
    with pytest.raises(SutureError, match="E631"):
        tabulate({"a": [measured("a", 0.9)], "b": [measured("b", 0.9, sha256="other")]})


def test_seeds_are_known_by_their_folders(tmp_path: Path) -> None:
    files = saved(tmp_path, *(measured(m, 0.8, s) for m in ("a", "b") for s in range(2)))
    assert {k: len(v) for k, v in grouped(named_files(files)).items()} == {"a": 2, "b": 2}
    labelled = [f"mine={file}" for file in files[:2]]
    assert list(grouped(named_files([*labelled, files[2]]))) == ["mine", "b"]
    assert named_files([f"mine={tmp_path}/[01].js*", "a=b"])[:2] == [
        ("mine", Path(file)) for file in files[:2]
    ]
    assert named_files(["=b", "a=none*"]) == [(None, Path("=b")), ("a", Path("none*"))]


def test_what_is_no_seed_is_not_taken_for_one(tmp_path: Path) -> None:
    one, two = measured("a", 0.8), measured("b", 0.8)
    two.model.update(path="elsewhere/a-seed0")
    first, second = saved(tmp_path, one, two)
    with pytest.raises(SutureError, match=r"E630.*nothing says"):
        grouped(named_files([first, second]))
    assert len(grouped(named_files([f"a={first}", f"a={second}"]))["a"]) == 2
    with pytest.raises(SutureError, match=r"E630.*twice"):
        grouped(named_files([f"a={first}", f"a={first}"]))


def test_two_baselines_are_no_seeds(tmp_path: Path) -> None:
    ways = [measured("a", 0.8, seed) for seed in range(3)]
    for one, path, seed in zip(ways, ("majority", "tf-idf", "tf-idf"), (0, 0, 1), strict=True):
        one.model.update(fingerprint=None, path=f"baseline:{path}", seed=seed)
    files = saved(tmp_path, *ways, measured("b", 0.8, 7))
    for other in (files[0], files[3]):
        with pytest.raises(SutureError, match=r"E631.*baseline:") as caught:
            grouped(named_files([f"a={other}", f"a={files[1]}"]))
        assert "two labels" in str(caught.value.fix)
    assert len(grouped(named_files([f"a={file}" for file in files[1:3]]))["a"]) == 2


def test_intervals_of_shares_over_seeds_stay_within_0_and_1() -> None:
    group = [measured("a", right, seed) for seed, right in enumerate((0.4, 0.95))]
    low, high = mean_interval([one.metrics["f1"] for one in group])
    assert low < 0 < 1 < high
    found = cells(tabulate({"a": group}))["a"]
    assert (found.low, found.high) == (0, 1)


def test_rows_of_one_model_are_told_apart_by_options(tmp_path: Path) -> None:
    ways = [
        measured("a", right, options={"method": m, "n": 1}) for m, right in (("x", 0.7), ("y", 0.9))
    ]
    files = saved(tmp_path, *ways)
    assert list(grouped(named_files(files))) == ["a (method=x)", "a (method=y)"]
    with pytest.raises(SutureError, match="E631"):
        grouped(named_files([f"a={file}" for file in files]))


def shown() -> Table:
    names = {"good_&%": 0.95, "=bad|": 0.5}
    return tabulate({name: [measured(name, right, constant=True)] for name, right in names.items()})


def test_markdown() -> None:
    lines = as_markdown(shown(), digits=2, percent=True).splitlines()
    assert lines[0] == "| model | f1 ↑ |"
    assert re.match(r"\| good\\_\\&% \| \*\*\d\d\.\d\d\*\* \[\d+\.\d\d, \d+\.\d\d\] \|", lines[2])
    assert lines[3].startswith(r"| =bad\| |")
    assert lines[4].startswith("| constant answer | 33.33 [")
    assert any("bold" in line for line in lines)
    assert any("made, 120 items, data abc" in line for line in lines)


def test_latex_is_escaped_and_balanced() -> None:
    text = as_latex(shown())
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert r"good\_\&\%" in text
    assert r"\textbf{0." in text
    assert sum(line.count("{") for line in body) == sum(line.count("}") for line in body)
    rows = [line for line in body if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {1}
    assert latex("a\\b{c}^~$#\n\u2212") == (
        r"a\textbackslash{}b\{c\}\textasciicircum{}\textasciitilde{}\$\# $-$"
    )


def test_csv_has_every_number_in_full_and_no_formula() -> None:
    table = shown()
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [row["model"] for row in rows] == ["good_&%", "'=bad|", CONSTANT]
    cell = table.lines[0].cells["task.f1"]
    assert (float(rows[0]["value"]), float(rows[0]["low"])) == (cell.value, cell.low)
    assert (rows[0]["better"], rows[0]["best_value"]) == ("higher", "")
    assert (rows[0]["bold"], rows[0]["over"], rows[0]["n"]) == ("1", "rows", str(N))


def test_csv_says_which_value_in_between_is_best() -> None:
    one = measured("a", 0.8)
    about = {"f1": {**one.derived["f1"], "best": 0.0}}
    table = tabulate({"a": [replace(one, derived=about, better={"f1": "lower"})]})
    row = next(csv.DictReader(io.StringIO(as_csv(table))))
    assert (row["better"], row["best_value"], row["bold"]) == ("nearer", "0.0", "0")


def test_wording_of_answers_of_one_word_is_shown_on_request_only() -> None:
    rows = [Row(str(n), {"parsed_strict": 1.0, "repetition": 0.0}) for n in range(N)]
    metrics = mean_scores(rows)
    one = replace(measured("a", 0.8), rows=rows, metrics=metrics, derived={})
    one = replace(one, better=dict.fromkeys(metrics, "higher"))
    assert [c.metric for c in tabulate({"a": [one]}).columns] == ["parsed_strict"]
    asked = tabulate({"a": [one]}, ["task.rep*"]).columns
    assert [c.metric for c in asked] == ["repetition"]


def test_the_task_and_split_are_told_below() -> None:
    one = measured("a", 0.8, options={"task": "sst2", "split": "dev", "shots": 2})
    assert ", task sst2, split dev" in as_markdown(tabulate({"a": [one]}))


def command(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> tuple[int, str]:
    code = run(words)
    out = capsys.readouterr()
    return code, out.out + out.err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = saved(tmp_path, *(measured("a", 0.9, s) for s in range(2)), measured("b", 0.5))
    code, said = command(capsys, ["table", *files, "--digits", "1"])
    assert code == 0
    assert "| a (2 seeds) | **0.9** [" in said
    for end in ("md", "tex", "csv"):
        out = tmp_path / "new" / f"t.{end}"
        assert command(capsys, ["table", *files, "-o", str(out)])[0] == 0
        assert out.read_text(encoding="utf-8").count("\n") > 2
    code, said = command(capsys, ["table", *files, "--json", "--metric", "task.f*"])
    assert json.loads(said)["rows"][0]["seeds"] == 2
    code, said = command(capsys, ["table", *files, "-o", str(tmp_path / "t.pdf")])
    assert (code, "E633" in said) == (1, True)


def test_what_leaves_much_out_is_not_marked_and_its_items_are_told() -> None:
    good, bad = measured("good", 0.95), measured("bad", 0.5)
    few = good.rows[: N // 2]
    part = replace(
        good,
        rows=[*few, *(Row(row.item, {}) for row in good.rows[N // 2 :])],
        derived={"f1": {**good.derived["f1"], "n": N // 2}},
    )
    table = tabulate({"part": [part], "bad": [bad]})
    assert not cells(table)["part"].best
    assert f"task.f1 is about {N} items, but of part {N // 2}" in as_markdown(table)
    assert cells(tabulate({"good": [good], "bad": [bad]}))["good"].best
