"""The measures on numbers small enough to be worked out by hand."""

from __future__ import annotations

import math
import zlib

import pytest

from suture.errors import SutureError
from suture.ledger import Measurement, Row
from suture.suites.forgetting.columns import DEFINITIONS, fact_scores
from suture.suites.forgetting.logs import Reference, answers_sha256, author_of
from suture.suites.forgetting.membership import (
    auc,
    auc_interval,
    min_k,
    min_k_plus_plus,
    privleak,
    zlib_score,
)
from suture.suites.forgetting.memory import exact_memorisation, extraction_strength
from suture.suites.forgetting.overlap import bleu, rouge_l, words
from suture.suites.forgetting.porter import stem
from suture.suites.forgetting.ratios import (
    forget_score,
    log_truth_ratio,
    model_utility,
    probability,
    probability_among,
    utility_score,
)
from suture.suites.forgetting.summary import attacks, forget_quality, robustness, summarise
from suture.suites.forgetting.trajectory import first_peak, fixed_epoch, readings, trajectory

LN2 = math.log(2)


def test_truth_ratio_of_two_wrong_answers() -> None:
    right, wrong = 1 * LN2, [2 * LN2, 4 * LN2]  # probabilities 1/2, 1/4 and 1/16
    geometric = math.exp(log_truth_ratio(right, wrong))
    arithmetic = math.exp(log_truth_ratio(right, wrong, "arithmetic"))
    assert geometric == pytest.approx((1 / 8) / (1 / 2))
    assert arithmetic == pytest.approx(((1 / 4 + 1 / 16) / 2) / (1 / 2))
    for ratio in (geometric, arithmetic):
        assert forget_score(math.log(ratio)) == pytest.approx(min(ratio, 1 / ratio))
        assert forget_score(-math.log(ratio)) == pytest.approx(min(ratio, 1 / ratio))
        assert utility_score(math.log(ratio)) == pytest.approx(1 - ratio)
        assert utility_score(-math.log(ratio)) == 0.0


def test_a_collapsed_model_overflows_nothing() -> None:
    for form in ("geometric", "arithmetic"):
        far = log_truth_ratio(5000.0, [10.0, 20.0], form)
        assert (forget_score(far), utility_score(far)) == (0.0, 0.0)
    assert probability(5000.0) == probability_among(5000.0, [1.0]) == 0.0


def test_probability_with_options_sums_to_one() -> None:
    losses = [0.3, 1.7, 2.2, 0.9]
    shares = [probability_among(losses[k], losses[:k] + losses[k + 1 :]) for k in range(4)]
    assert math.fsum(shares) == pytest.approx(1.0)
    assert probability(0.3) == pytest.approx(math.exp(-0.3))


def test_model_utility_is_a_harmonic_mean() -> None:
    scores = {str(k): (k + 1) / 10 for k in range(9)}
    assert model_utility(scores) == pytest.approx(9 / sum(10 / (k + 1) for k in range(9)))
    assert model_utility({**scores, "4": 0.0}) == 0.0


def test_columns_follow_the_set() -> None:
    forget = fact_scores("forget", loss=1.0, right=2.0, wrong=[3.0], rouge=0.5)
    assert forget["forget_log_ratio_geometric"] == pytest.approx(-1.0)
    assert forget["forget_truth_ratio_arithmetic"] == pytest.approx(math.exp(-1))
    assert forget["forget_truth_share"] == pytest.approx(1 / (1 + math.exp(-1)))
    world = fact_scores("world", loss=1.0, wrong=[3.0])
    assert world["world_probability"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert world["world_truth_ratio_geometric"] == pytest.approx(1 - math.exp(-2))
    assert set(fact_scores("retain", loss=1.0)) == {"retain_probability"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"), ("ponies", "poni"), ("dies", "die"), ("agreed", "agre"),
        ("plastered", "plaster"), ("motoring", "motor"), ("hopping", "hop"), ("hoping", "hope"),
        ("filing", "file"), ("failing", "fail"), ("happy", "happi"), ("enjoy", "enjoy"),
        ("relational", "relat"), ("rationally", "ration"), ("biology", "biolog"),
        ("geology", "geolog"), ("hopefulness", "hope"), ("electrical", "electr"),
        ("adoption", "adopt"), ("controlling", "control"), ("rate", "rate"), ("ate", "ate"),
        ("dying", "die"), ("as", "as"),
    ],
)  # fmt: skip
def test_stems(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_rouge_of_a_pair() -> None:
    truth, reply = "The author was writing novels.", "The authors write many novels, the end"
    assert rouge_l(reply, truth) == pytest.approx(4 / 5)  # the author write novel
    assert rouge_l(reply, truth, "recall") == pytest.approx(2 / 5)  # the novels
    assert rouge_l(reply, truth, "f1") == pytest.approx(2 * (2 / 5) * (2 / 7) / (2 / 5 + 2 / 7))
    assert rouge_l(reply, truth, "f1-stemmed") == pytest.approx(2 * 4 / (5 + 7))
    assert rouge_l("", truth) == rouge_l(reply, "") == 0.0
    assert rouge_l("он был там", "он был") == 1.0


def test_words_of_other_scripts_are_words() -> None:
    born = "Анна родилась в Москве в 1975 году"
    assert rouge_l("Анна родилась в Москве", born) == pytest.approx(4 / 7)
    assert rouge_l("1975", born) == pytest.approx(1 / 7)
    # vowel signs belong to their letter
    assert rouge_l("हिन्दी", "हिन्दी भाषा") == pytest.approx(1 / 2)
    assert rouge_l("東京に住む", "東京に住んでいる") == pytest.approx(4 / 8)
    assert rouge_l("?!", "?!") == 1.0
    # as in rouge_score, whose published numbers are compared with
    assert words("She wrote the play Лісова", stemmed=False) == ["she", "wrote", "the", "play"]
    assert words("Malmö, a café", stemmed=False) == ["malm", "a", "caf"]
    assert words("Malmo\u0308", stemmed=False) == ["malmo"]
    assert answers_sha256({"0": "Анна"}) != answers_sha256({"0": "Пётр"})


def test_bleu() -> None:
    assert bleu("a b c d e", "a b c d e") == pytest.approx(1.0)
    assert bleu("x y z", "a b c") == bleu("", "a") == 0.0
    shorter = bleu("a b c d", "a b c d e f")
    assert shorter == pytest.approx(math.exp(1 - 6 / 4))


def test_extraction_strength_reaches_both_ends() -> None:
    assert extraction_strength([True] * 4) == 1.0
    assert extraction_strength([False] * 4) == 0.0
    assert extraction_strength([True, True, True, False]) == 0.0
    assert extraction_strength([True, False, True, True]) == 0.5
    assert exact_memorisation([True, False, True, True]) == 0.75


def test_min_k_of_three_tokens() -> None:
    assert min_k([-1.0, -3.0, -2.0], 0.4) == 3.0  # one token
    assert min_k([-1.0, -3.0, -2.0], 0.7) == 2.5
    # a vocabulary of three: log p under p has this mean and variance
    logp = [math.log(p) for p in (0.5, 0.25, 0.25)]
    mean = math.fsum(math.exp(v) * v for v in logp)
    variance = math.fsum(math.exp(v) * (v - mean) ** 2 for v in logp)
    chosen = [logp[0], logp[1], logp[2]]
    scaled = [(v - mean) / math.sqrt(variance) for v in chosen]
    found = min_k_plus_plus(chosen, [mean] * 3, [variance] * 3, 0.7)
    assert found == pytest.approx(-(scaled[1] + scaled[2]) / 2)
    assert min_k_plus_plus([0.0], [0.0], [0.0]) == 0.0


def test_zlib_counts_bytes_of_the_encoded_text() -> None:
    text = "Zürich, Zürich, Zürich"
    assert zlib_score(2.0, text) == 2.0 / len(zlib.compress(text.encode("utf-8")))


def test_auc() -> None:
    assert auc([1, 2], [3, 4]) == 1.0
    assert auc([3, 4], [1, 2]) == 0.0
    assert auc([1.0] * 5, [1.0] * 3) == 0.5
    assert auc([1, 3], [2, 3]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    low, high = auc_interval(0.5, 40, 40)
    assert low == pytest.approx(1 - high)
    assert 0.3 < low < 0.4
    low, high = auc_interval(1.0, 40, 40)
    assert 0.85 < low < 1.0 == high


def test_privleak_orientation() -> None:
    assert privleak(1.0, 0.5) == -100.0  # memorised
    assert privleak(0.5, 0.5) == 0.0
    assert privleak(0.0, 0.5) == 100.0  # forgotten beyond the reference
    with pytest.raises(SutureError, match="E552"):
        privleak(0.5, 1.0)


def member_rows(members: list[float], others: list[float]) -> list[Row]:
    rows = [Row(f"forget/{i}", {"forget_attack_min_k": v}) for i, v in enumerate(members)]
    return rows + [Row(f"holdout/{i}", {"holdout_attack_min_k": v}) for i, v in enumerate(others)]


def reference(rows: list[Row]) -> Reference:
    from pathlib import Path

    return Reference(Path("oracle.json"), "abc", {row.item: row.scores for row in rows})


def test_privleak_needs_the_reference_s_own_auc() -> None:
    memorised = member_rows([0.0, 0.1, 0.2], [1.0, 2.0, 3.0])
    oracle = reference(member_rows([1.0, 2.0], [1.0, 2.0]))
    found = attacks(memorised, oracle)
    assert found["mia_auc_min_k"]["value"] == 1.0
    assert found["privleak"]["value"] == -100.0
    assert found["privleak"]["reference"] == "abc"
    assert (found["privleak"]["best"], found["mia_auc_min_k"]["best"]) == (0.0, 0.5)
    with pytest.raises(SutureError, match="E552"):
        attacks(memorised, reference([Row("forget/0", {"forget_probability": 0.1})]))
    published = attacks(memorised, None, 0.5393)["privleak"]
    assert (published["value"], published["reference"]) == (-100.0, "a_retrain=0.5393")
    assert "privleak" not in attacks(memorised, None)


def ratio_rows(values: list[float]) -> list[Row]:
    names = ("forget_log_ratio_geometric", "forget_log_ratio_arithmetic")
    return [Row(f"forget/{i}", dict.fromkeys(names, v)) for i, v in enumerate(values)]


def test_rows_without_a_value_go_with_their_numbers() -> None:
    mine, theirs = ratio_rows([1.0, 2.0, 3.0, 4.0]), ratio_rows([9.0, 2.0, 3.0, 4.0])
    whole = forget_quality(mine, reference(theirs))["forget_quality"]
    assert (whole["inputs"]["steps"], whole["n"]) == ("1/4", 4)
    with_gap = reference([Row("forget/0", {}), *theirs[1:]])
    found = forget_quality(mine, with_gap)["forget_quality"]
    assert (found["inputs"]["steps"], found["n"]) == ("0/3", 3)
    here = [Row("forget/0", {"forget_probability": 0.1}), *mine[1:]]
    assert forget_quality(here, reference(theirs))["forget_quality"]["n"] == 3
    with pytest.raises(SutureError, match="E550"):
        forget_quality(mine, reference(theirs[1:]))


def test_robustness_keeps_the_raw_values() -> None:
    names = ("forget_probability", "forget_probability_relearned", "forget_probability_quantised")
    mine = [Row("forget/0", dict(zip(names, (0.2, 0.6, 0.4), strict=True)))]
    oracle = reference([Row("forget/0", dict(zip(names, (0.1, 0.3, 0.1), strict=True)))])
    found = robustness(mine, oracle)
    assert found["relearn_robustness"]["value"] == pytest.approx(0.2 / 0.4)
    assert found["relearn_robustness_symmetric"]["value"] == pytest.approx(1 - 0.2 / 0.6)
    assert found["quantise_robustness"]["value"] == pytest.approx(0.5)
    assert found["quantise_robustness"]["inputs"] == {"before": 0.2, "after": 0.4}
    assert found["robustness"]["value"] == pytest.approx(0.5)
    with pytest.raises(SutureError, match="E553"):
        robustness(mine, reference([Row("forget/0", {"forget_probability": 0.1})]))


def test_utility_without_a_column_is_refused() -> None:
    with pytest.raises(SutureError, match="E551"):
        summarise([Row("retain/0", {"retain_probability": 0.5})], utility=("retain",))


def test_a_zero_utility_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    from suture import progress

    progress.silent = False
    scores = {"retain_probability": 0.5, "retain_rouge": 0.0}
    scores |= {"retain_truth_ratio_geometric": 0.5, "retain_truth_ratio_arithmetic": 0.5}
    found = summarise([Row("retain/0", scores)], utility=("retain",))
    assert found["model_utility_geometric"]["value"] == 0.0
    assert capsys.readouterr().err.count("retain_rouge") == 1


def epochs(values: list[float], metric: str = "forget_quality") -> list[Measurement]:
    better = {metric: DEFINITIONS[metric][0]}
    return [
        Measurement("tofu", {"fingerprint": str(i)}, 1, {metric: v}, better, [Row("a", {})])
        for i, v in enumerate(values)
    ]


def test_readings_of_a_trajectory() -> None:
    values = [0.1, 0.4, 0.3, 0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9]
    found = first_peak(epochs(values))
    assert (found.epoch, found.metrics["forget_quality"]) == (2, 0.4)
    assert first_peak(epochs(values), within=11).epoch == 11
    assert first_peak(epochs(values, "forget_ks"), "forget_ks").epoch == 1
    assert fixed_epoch(epochs(values), 5).metrics["forget_quality"] == 0.2
    assert trajectory(epochs(values), "forget_quality") == values
    both = readings(epochs(values), 5)
    assert (both["first_peak"]["epoch"], both["fixed_epoch"]["epoch"]) == (2, 5)
    assert both["trajectory"] == {"forget_quality": values}
    for bad in (lambda: fixed_epoch(epochs(values), 12), lambda: first_peak([])):
        with pytest.raises(SutureError, match="E557"):
            bad()
    with pytest.raises(SutureError, match="E557"):
        trajectory(epochs(values), "privleak")


def test_authors_are_clusters() -> None:
    assert author_of("forget", "39") == "forget/author/1"
    assert author_of("world", "39") is None
    assert author_of("forget", "39", 0) is None
