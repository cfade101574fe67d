"""Published numbers, to the printed digit: TOFU's logs, steps of the KS test, row counts."""

from __future__ import annotations

import gzip
import json
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ks_2samp

from suture.cli.main import run
from suture.errors import SutureError
from suture.ledger import Measurement
from suture.suites import load_suite, measure_log
from suture.suites.forgetting.facts import read_facts
from suture.suites.forgetting.ks import exact_two_sample_p, ks_gap
from suture.suites.forgetting.overlap import rouge_l

ROOT = Path(__file__).resolve().parents[3]
SHARED = next((p for p in (ROOT / "shared", ROOT.parent / "shared") if p.is_dir()), ROOT) / "data"
LOGS, TOFU, EXTRA = SHARED / "tofu_eval_logs", SHARED / "tofu", SHARED / "tofu_extra"
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason="TOFU's logs are not here")
needs_tofu = pytest.mark.skipif(not TOFU.is_dir(), reason="TOFU's rows are not here")
STEPS = {
    40: {8: 0.404587, 9: 0.265687, 10: 0.164973, 11: 0.097075, 12: 0.054141, 13: 0.0286},
    200: {
        13: 0.793362, 14: 0.712582, 15: 0.628431, 16: 0.545271, 17: 0.466286, 18: 0.393527,
        19: 0.328115, 20: 0.270474, 27: 0.052139, 28: 0.039562,
    },
    300: {20: 0.518269, 22: 0.395830, 30: 0.099563, 33: 0.052964, 34: 0.042340},
    400: {
        23: 0.523410, 24: 0.468044, 26: 0.367086, 34: 0.111149, 35: 0.093525, 38: 0.054053,
        39: 0.044572,
    },
}  # fmt: skip


def log(name: str) -> Path:
    return LOGS / f"llama2-7b_{name}.json.gz"


def scored(name: str, against: str) -> Measurement:
    return measure_log("tofu", log(name), options={"reference": str(log(against))})


@needs_logs
def test_the_published_logs() -> None:
    full, retrained = scored("full", "retain90"), scored("retain90", "retain90")
    assert f"{full.metrics['forget_ks']:.6f}" == "0.396667"
    assert f"{full.metrics['forget_quality']:.3e}" == "1.834e-21"
    assert f"{full.metrics['forget_quality_arithmetic']:.2e}" == "6.03e-23"
    assert full.derived["forget_quality"]["inputs"]["steps"] == "119/300"
    assert full.derived["forget_quality_arithmetic"]["inputs"]["steps"] == "123/300"
    for found, geometric, arithmetic in ((full, ".6227", ".5859"), (retrained, ".6137", ".5752")):
        assert f"{found.metrics['model_utility_geometric']:.4f}"[1:] == geometric
        assert f"{found.metrics['model_utility_arithmetic']:.4f}"[1:] == arithmetic
    assert retrained.metrics["forget_quality"] == 1.0
    assert retrained.metrics["forget_ks"] == 0.0


@needs_logs
def test_every_metric_says_what_it_is(tmp_path: Path) -> None:
    found = scored("full", "retain90")
    assert list(found.derived) == list(found.metrics) == list(found.better)
    for name, about in found.derived.items():
        assert about["definition"]
        assert about["direction"] == found.better[name]
        assert about["value"] == found.metrics[name]
    assert found.derived["forget_quality"]["reference"].startswith("sha256:")
    low, high = found.derived["forget_ks"]["interval"]
    assert low < found.metrics["forget_ks"] < high
    assert Measurement.load(found.save(tmp_path / "m.json")) == found
    again = measure_log("tofu", tmp_path / "m.json", options={"reference": str(log("retain90"))})
    assert again.metrics == found.metrics


@needs_logs
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["measure", "tofu", "--logs", str(log("full")), "--reference", str(log("retain90"))]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] is None
    assert f"{found['metrics']['forget_quality']:.3e}" == "1.834e-21"
    assert run([*command, "-o", str(tmp_path / "full.json")]) == 0
    assert "1.834e-21" in capsys.readouterr().out
    assert Measurement.load(tmp_path / "full.json").metrics == found["metrics"]


@needs_logs
@pytest.mark.parametrize("other", ["retain95", "retain99"])
def test_a_reference_of_other_rows(other: str) -> None:
    with pytest.raises(SutureError, match="E550"):
        scored("full", other)


@needs_logs
@pytest.mark.parametrize("name", ["full", "retain90"])
def test_rouge_of_every_published_reply(name: str) -> None:
    content = json.loads(gzip.decompress(log(name).read_bytes()))
    for columns in content.values():
        for number, (_, reply, truth) in columns["generated_text"].items():
            assert rouge_l(reply, truth) == pytest.approx(columns["rougeL_recall"][number])


@needs_logs
@needs_tofu
def test_the_logs_are_of_the_files_first_rows(tmp_path: Path) -> None:
    options = {"rows": 300, "reference": str(log("retain90"))}
    items = load_suite("tofu", options).read([TOFU], None)
    assert [item.kind for item in items].count("forget") == 300
    with pytest.raises(SutureError, match="E550"):
        load_suite("tofu", {**options, "rows": 299}).read([TOFU], None)


@pytest.mark.parametrize("n", STEPS)
def test_steps(n: int) -> None:
    for k, p in STEPS[n].items():
        digits = 4 if p == 0.0286 else 6
        assert round(exact_two_sample_p(k / n, n, n), digits) == p
        assert exact_two_sample_p(Fraction(k, n), n, n) == exact_two_sample_p(k / n, n, n)
    assert exact_two_sample_p(1, n, n) == pytest.approx(2 / comb(2 * n, n), rel=1e-12)


@pytest.mark.parametrize(("n", "k"), [(40, 12), (200, 27), (300, 33), (400, 38)])
def test_the_last_step_that_counts_as_forgetting(n: int, k: int) -> None:
    assert exact_two_sample_p(k / n, n, n) >= 0.05 > exact_two_sample_p((k + 1) / n, n, n)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (7, 4), (12, 30), (25, 24)])
def test_against_scipy(n: int, m: int) -> None:
    one = [((i * 37) % 101) / 10 for i in range(n)]
    other = [((i * 53 + 7) % 103) / 10 + 2 for i in range(m)]
    expected = ks_2samp(one, other, method="exact")
    gap = ks_gap(one, other)
    assert float(gap) == pytest.approx(expected.statistic)
    assert exact_two_sample_p(gap, n, m) == pytest.approx(expected.pvalue, rel=1e-9)


def test_the_two_ways_of_counting_agree() -> None:
    from suture.suites.forgetting import ks

    for n in (1, 2, 6, 11):
        for k in range(1, n + 1):
            assert ks._outside_equal(n, k) == ks._outside(n, n, k * n)


def test_equal_values_are_stepped_over_together() -> None:
    assert ks_gap([1, 1, 2], [1, 2, 2]) == Fraction(1, 3)
    assert ks_gap([0.0], [0.0]) == 0


COUNTS = {"full": 4000, "retain99": 3960, "retain95": 3800, "retain90": 3600}
COUNTS |= {"forget01": 40, "forget05": 200, "forget10": 400, "retain_perturbed": 400}
COUNTS |= {"forget01_perturbed": 40, "forget05_perturbed": 200, "forget10_perturbed": 400}
COUNTS |= {"real_authors": 100, "world_facts": 117}
COUNTS |= {"real_authors_perturbed": 100, "world_facts_perturbed": 117}


def rows(folder: Path, name: str) -> list[Any]:
    file = next(p for e in (".json", ".json.gz") if (p := folder / f"{name}{e}").is_file())
    return [(fact.prompt, fact.answer) for fact in read_facts("forget", file)]


@needs_tofu
def test_row_counts() -> None:
    assert {name: len(rows(TOFU, name)) for name in COUNTS} == COUNTS
    full = rows(TOFU, "full")
    assert len({question for question, _ in full}) == 3999
    for percent, count in ((1, 40), (5, 200), (10, 400)):
        assert rows(TOFU, f"forget{percent:02}") == full[-count:]
        assert rows(TOFU, f"retain{100 - percent}") == full[:-count]
        assert rows(TOFU, f"forget{percent:02}_perturbed") == full[-count:]
        holdout = rows(EXTRA, f"holdout{percent:02}")
        assert len(holdout) == count
        assert not {question for question, _ in holdout} & {question for question, _ in full}
    wrong = {len(f.wrong) for f in read_facts("forget", TOFU / "forget10_perturbed.json")}
    assert wrong == {5}
    assert {len(f.wrong) for f in read_facts("world", TOFU / "world_facts_perturbed.json")} == {3}


@needs_logs
def test_open_unlearning_s_log_of_the_same_rows(tmp_path: Path) -> None:
    content = json.loads(gzip.decompress(log("full").read_bytes()))
    files = {
        "forget": "eval_log_forget.json", "retain": "eval_log.json",
        "ra": "eval_real_author_wo_options.json", "wf": "eval_real_world_wo_options.json",
    }  # fmt: skip
    converted: dict[str, Any] = {"forget_quality": {"agg_value": 0.0}}
    for short, file in files.items():
        old = content[file]
        for ending, column in (
            ("Prob", "avg_gt_loss"),
            ("PARA_Prob", "avg_paraphrased_loss"),
            ("PERT_Prob", "average_perturb_loss"),
        ):
            values = {i: {"prob": 0, "avg_loss": v} for i, v in old[column].items()}
            converted[f"{short}_Q_A_{ending}"] = {"agg_value": None, "value_by_index": values}
        texts = {
            i: {"rougeL_recall": old["rougeL_recall"][i], "input": q, "generation": a,
                "ground_truth": t}
            for i, (q, a, t) in old["generated_text"].items()
        }  # fmt: skip
        converted[f"{short}_Q_A_ROUGE"] = {"value_by_index": texts}
    file = tmp_path / "TOFU_EVAL.json"
    file.write_text(json.dumps(converted))
    options = {"reference": str(log("retain90"))}
    assert measure_log("tofu", file, options=options).metrics == scored("full", "retain90").metrics


def small_log(path: Path, losses: list[float | None], **more: Any) -> Path:
    column = {str(i): v for i, v in enumerate(losses)}
    wrong = {i: None if v is None else [1.0, 2.0] for i, v in column.items()}
    forget = {"avg_gt_loss": column, "avg_paraphrased_loss": column, "average_perturb_loss": wrong}
    path.write_text(json.dumps({"eval_log_forget.json": {**forget, **more}}))
    return path


def test_null_rows_go_on_both_sides(tmp_path: Path) -> None:
    mine = small_log(tmp_path / "a.json", [1.0, None, 3.0, 4.0])
    theirs = small_log(tmp_path / "b.json", [1.0, 2.0, None, 5.0])
    options = {"reference": str(theirs), "utility": []}
    found = measure_log("tofu", mine, options=options)
    assert found.data["dropped"] == ["forget/1"]
    assert found.derived["forget_quality"]["n"] == 2
    assert found.derived["forget_quality"]["inputs"]["steps"] == "1/2"


def test_bad_logs_are_named(tmp_path: Path) -> None:
    good = small_log(tmp_path / "good.json", [1.0, 2.0])
    cases = {
        "rows.json": "[]",
        "cut.json": good.read_text()[:-9],
        "other.json": '{"metrics": 1}',
        "nan.json": good.read_text().replace("1.0", "NaN"),
    }
    for name, text in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(SutureError, match="E549"):
            measure_log("tofu", tmp_path / name, options={"reference": str(good), "utility": []})
    short = small_log(tmp_path / "short.json", [1.0, 2.0], rougeL_recall={"0": 1.0})
    with pytest.raises(SutureError, match="'rougeL_recall' of the set 'forget' has other rows"):
        measure_log("tofu", short, options={"reference": str(good), "utility": []})
    with pytest.raises(SutureError, match="E551"):
        measure_log("tofu", good, options={"reference": str(good)})
    longer = small_log(tmp_path / "longer.json", [1.0, 2.0, 3.0])
    with pytest.raises(SutureError, match="E550"):
        measure_log("tofu", longer, options={"reference": str(good), "utility": []})
    with pytest.raises(SutureError, match="E548"):
        measure_log("tofu", good)
    with pytest.raises(SutureError, match="E558"):
        measure_log("safety", good)


def test_a_log_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(small_log(tmp_path / "good.json", [1.0, 2.0]))
    assert run(["measure", "tofu", "--logs", good, "--model", "m"]) == 1
    assert "E559" in capsys.readouterr().err
    assert run(["measure", "tofu", "--logs", good]) == 1
    assert "--reference none" in capsys.readouterr().err


@needs_logs
def test_authors_of_a_log_are_clusters_unless_told() -> None:
    options = {"reference": "none", "utility": []}
    by_author = measure_log("tofu", log("full"), options=options)
    assert len({row.cluster for row in by_author.rows if row.item.startswith("forget")}) == 15
    alone = measure_log("tofu", log("full"), options={**options, "authors": 0})
    assert {row.cluster for row in alone.rows} == {None}
    assert alone.metrics == by_author.metrics
