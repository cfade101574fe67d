"""The estimator against a second writing of it, crowd-kit, and MBTIBench's released labels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crowd import TWO, graded, votes
from label_reference import released
from suture.errors import SutureError
from suture.labels import Scale, Votes, against_stored, estimate, label_rows, read_votes
from suture.labels import patterns as patterns_module
from suture.labels.em import EM, fit
from suture.labels.extras import need
from suture.labels.patterns import patterns
from suture.labels.reliability import reliability

ROOT = Path(__file__).resolve().parents[2]
SHARED = next((p for p in (ROOT / "shared", ROOT.parent / "shared") if p.is_dir()), ROOT) / "data"
MBTI = SHARED / "mbtibench" / "mbtibench.jsonl.gz"
needs_mbti = pytest.mark.skipif(not MBTI.is_file(), reason="MBTIBench is not here")
THREE = Scale(name="stance", poles={"no": ["no"], "unsure": ["unsure"], "yes": ["yes"]})


@pytest.mark.parametrize(("items", "annotators", "seed"), [(60, 3, 0), (200, 5, 1), (40, 7, 2)])
def test_released_is_the_written_procedure(items: int, annotators: int, seed: int) -> None:
    cells = graded(items, annotators, seed)
    found = estimate(votes(cells))["F/S"]
    r, soft, steps = released([tuple(row) for row in cells.tolist()])
    assert found.fit.m_steps == steps
    np.testing.assert_allclose(found.posterior[:, 0], r, atol=1e-12)
    np.testing.assert_allclose(found.soft, soft, atol=1e-12)


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=4, max_size=30))
@settings(max_examples=40)
def test_released_on_any_votes(rows: list[tuple[int, int, int]]) -> None:
    """The same labels, or the same refusal where the procedure divides by nothing."""
    try:
        r, soft, _ = released(rows)
    except ZeroDivisionError:
        return  # a pole without items: ours leaves its table at zero, or refuses
    found = estimate(votes(np.array(rows)))["F/S"]
    np.testing.assert_allclose(found.posterior[:, 0], r, atol=1e-9)
    assert found.soft.min() >= 0
    assert found.soft.max() <= 1
    near = np.min(np.abs(np.subtract.outer(r, r)) + 1e9 * np.equal.outer(r, r))
    if near > 1e-9:  # ranks of posteriors that differ in the last bit alone may swap
        np.testing.assert_allclose(found.soft, soft, atol=1e-12)


@needs_mbti
def test_mbtibench_to_the_digit() -> None:
    read = read_votes(MBTI)
    labels = estimate(read)
    stored = against_stored(read, labels)
    assert stored is not None
    assert stored["soft_equal"] == stored["soft"] == 1144
    assert stored["hard_equal"] == stored["hard"] == 1144
    assert stored["largest_difference"] <= 1e-12
    assert [found.fit.m_steps for found in labels.values()] == [3, 2, 3, 3]
    assert [len(found.fit.patterns) for found in labels.values()] == [38, 41, 42, 43]
    for found in labels.values():
        assert ((found.soft < 0.5) == (found.hard == 0)).all()
        assert found.soft.min() == 0
        assert found.soft.max() == 1
        assert found.overturned == found.tied == 0
    shares = [float((found.hard == 0).mean()) for found in labels.values()]
    assert [round(share, 3) for share in shares] == [0.559, 0.524, 0.493, 0.476]


@needs_mbti
def test_mbtibench_run_to_its_end_moves_as_documented() -> None:
    read = read_votes(MBTI)
    early = estimate(read)
    em = EM(start="median", prior="hard", smoothing=0.0, tolerance=1e-6)
    late = estimate(read, mode="converged", em=em)
    moved = [float(np.abs(early[d].posterior - late[d].posterior).max()) for d in early]
    assert [late[d].fit.m_steps for d in late] == [50, 163, 28, 48]
    assert [round(value, 2) for value in moved] == [0.25, 0.51, 0.10, 0.25]
    assert all(found.fit.converged and found.fit.moved < 1e-6 for found in late.values())
    mean = estimate(read, mode="converged", em=em.model_copy(update={"prior": "soft"}))
    assert round(max(float(np.abs(early[d].posterior - mean[d].posterior).max()) for d in early),
                 2) == 0.55  # fmt: skip


def test_converged_is_crowd_kits_dawid_skene_without_smoothing() -> None:
    pandas, kit = need("pandas"), need("crowdkit.aggregation")
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 120)
    cells = np.where(rng.random((120, 6)) < 0.7, truth[:, None], rng.integers(0, 3, (120, 6)))
    cells[rng.random((120, 6)) < 0.2] = -1
    cells[cells.max(axis=1) < 0, 0] = 0
    item, who = np.nonzero(cells >= 0)
    frame = pandas.DataFrame({"task": item, "worker": who, "label": cells[item, who]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = kit.DawidSkene(n_iter=15, tol=-np.inf).fit_predict_proba(frame)
    em = EM(smoothing=0.0, tolerance=0.0, max_rounds=15)
    mine = estimate(votes(cells, THREE), mode="converged", em=em)["stance"]
    np.testing.assert_allclose(mine.posterior, theirs.sort_index()[[0, 1, 2]], atol=1e-7)
    assert mine.soft.shape == (120, 3)


def test_converged_never_loses_likelihood() -> None:
    ballot = votes(graded(150, 4, 5, missing=0.3)).ballots["F/S"]
    found = patterns(ballot, 150, 4)
    ups = [
        fit(found, TWO, EM(smoothing=0.0, tolerance=0.0, max_rounds=rounds)).log_likelihood
        for rounds in (2, 4, 8, 16, 32)
    ]
    assert ups == sorted(ups)
    assert fit(found, TWO, EM()).moved < 1e-6


def test_the_likelihood_is_of_probabilities() -> None:
    """Also where the released procedure stops before its first M step, on raw counts."""
    rows = [[0, 0, 0]] * 500 + [[3, 3, 3]] * 500
    found = estimate(votes(np.array(rows)))["F/S"].fit
    assert found.m_steps == 0
    np.testing.assert_allclose(found.table.sum(axis=1), 1)
    assert found.log_likelihood < 0


def test_patterns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items one by one, distinct patterns by table and by sorting: the same labels."""
    read = votes(graded(300, 4, 6, missing=0.2))
    ballot = read.ballots["F/S"]
    by_table = patterns(ballot, 300, 4)
    monkeypatch.setattr(patterns_module, "_TABLE", 0)
    by_sorting = patterns(ballot, 300, 4)
    monkeypatch.setattr(patterns_module, "_DENSE", 0)
    apart = patterns(ballot, 300, 4)
    assert len(by_table) == len(by_sorting) < len(apart) == 300
    for other in (by_sorting, apart):
        one, two = (p.spread(fit(p, TWO, EM()).posterior) for p in (by_table, other))
        np.testing.assert_allclose(one, two, atol=1e-9)


def test_missing_votes_and_items_without_any() -> None:
    cells = graded(50, 3, 7, missing=0.3)
    cells[4] = -1
    read = votes(cells)
    for mode in ("released", "converged"):
        found = estimate(read, mode=mode)["F/S"]  # type: ignore[arg-type]
        assert found.missing == 1
        row = list(label_rows(read, {"F/S": found}))[4]
        assert row == {
            "id": "5",
            "softlabels": {"F/S": None},
            "hardlabels": {"F/S": None},
            "posterior": {"F/S": None},
        }
        assert np.isfinite(np.delete(found.soft, 4)).all()


def test_two_votes_that_cancel_have_half_a_median_each() -> None:
    """By symmetry nothing decides between the poles, and no hard label is made up."""
    cells = np.array([[0, 3], [3, 0], [1, 2], [2, 1]])
    found = estimate(votes(cells), mode="converged")["F/S"]
    np.testing.assert_allclose(found.posterior, 0.5)
    assert (found.hard == -1).all()
    assert found.tied == 4
    assert found.facts()["without_hard_label"] == 4
    assert estimate(votes(cells), mode="released")["F/S"].tied == 4


def test_the_posterior_decides_where_votes_do_not() -> None:
    """Of two who disagree, the one whom the third, and most others, confirm."""
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 2, 200)
    sure = np.where(truth == 0, 0, 3)
    noise = rng.choice([0, 3], 200)
    cells = np.stack([sure, sure, noise], axis=1)
    cells[:20, 1] = -1
    found = estimate(votes(cells), mode="converged")["F/S"]
    assert found.tied == int((sure[:20] != noise[:20]).sum()) > 0
    assert (found.hard == truth).all()
    rows = {row["annotator"]: row for row in reliability(found.fit, TWO, ["A1", "A2", "A3"])}
    assert rows["A1"]["accuracy"] > 0.97
    assert rows["A1"]["informedness"] > 0.95
    assert abs(rows["A3"]["informedness"]) < 0.2
    assert rows["A2"]["votes"] == 180
    assert rows["A1"]["symbols"] == pytest.approx(
        {"F+": np.mean(sure == 0), "F-": 0, "S-": 0, "S+": np.mean(sure == 3)}
    )


def test_unbalanced_grades_and_a_second_pole_of_one_grade() -> None:
    scale = Scale(name="hate", poles={"fine": ["fine"], "hate": ["mild", "severe"]})
    cells = np.array([[0, 0, 0]] * 10 + [[1, 2, 1]] * 5 + [[0, 1, 0]])
    found = estimate(votes(cells, scale))["hate"]
    assert found.hard.tolist() == [0] * 10 + [1] * 5 + [0]
    assert found.soft[0] == 0
    assert found.soft[12] == 1


def test_what_needs_two_poles_says_so() -> None:
    read = votes(np.array([[0, 1], [2, 2]]), THREE)
    for options in ({"mode": "released"}, {"mode": "converged", "soft": "spread"}):
        with pytest.raises(SutureError, match="E390"):
            estimate(read, **options)  # type: ignore[arg-type]
    with pytest.raises(SutureError, match="E388") as raised:
        estimate(read, mode="converged", dimensions=["stanse"])
    assert "did you mean 'stance'" in str(raised.value)


def test_votes_that_rule_out_every_pole_are_an_error() -> None:
    """Without smoothing, symbols never seen with a pole; with it, no trouble."""
    cells = np.array([[0, 0, 0]] * 6 + [[3, 3, 3]] * 6 + [[0, 3, 1]])
    em = EM(start="share", prior="hard", smoothing=0.0, tolerance=1e-9)
    table = np.zeros((3, 4, 2))
    with pytest.raises(SutureError, match="E389"):
        _fit_from(cells, table, em)
    assert np.isfinite(estimate(votes(cells), mode="converged")["F/S"].posterior).all()


def _fit_from(cells: np.ndarray, table: np.ndarray, em: EM) -> None:
    """One round from a table that allows nothing."""
    from suture.labels import em as module

    found = patterns(votes(cells).ballots["F/S"], len(cells), 3)
    posterior, _, _ = module._round(found, table, np.array([0.5, 0.5]))
    module._check(posterior, TWO)


def test_an_estimate_that_collapses_says_so() -> None:
    """Three items: the iteration gives all of them one pole, also one that nobody voted it on."""
    three = Scale(name="x", poles={"no": ["no"], "unsure": ["unsure"], "yes": ["yes"]})
    cells = np.array([[2, 0, -1], [2, 2, -1], [1, 0, 0]])
    facts = estimate(votes(cells, three), mode="converged")["x"].facts()
    assert facts["collapsed_to"] == "yes"
    assert facts["hard_without_vote"] == 1
    facts = estimate(votes(graded(80, 3, 1)))["F/S"].facts()
    assert (facts["collapsed_to"], facts["hard_without_vote"]) == (None, 0)
    alike = estimate(votes(np.array([[3, 3, 3]] * 30 + [[3, 3, 0]])), mode="converged")["F/S"]
    assert alike.facts()["collapsed_to"] is None  # nearly unanimous votes are no failure


def test_arrays_that_cannot_be_votes() -> None:
    with pytest.raises(SutureError, match="E385"):
        Votes.of_table([[0, 4]], TWO)
    with pytest.raises(SutureError, match="E386"):
        Votes.of_table([[0], [1]], TWO)


@given(
    st.lists(st.tuples(*[st.integers(-1, 3)] * 3), min_size=1, max_size=12),
    st.sampled_from(["released", "converged"]),
)
@settings(max_examples=150)
def test_any_gaps_give_labels_or_a_refusal(rows: list[tuple[int, int, int]], mode: str) -> None:
    """Never a NaN for an item with votes, never a label for one without, never a traceback."""
    cells = np.array(rows)
    refusals = []
    try:
        found = estimate(votes(cells), mode=mode)["F/S"]  # type: ignore[arg-type]
    except SutureError as error:
        refusals.append(error.code)
    if refusals:
        assert set(refusals) <= {"E386", "E387", "E389"}
        return
    voted = (cells >= 0).any(axis=1)
    assert (np.isfinite(found.soft) == voted).all()
    assert found.posterior[voted].sum(axis=1) == pytest.approx(1)
    assert (found.hard[~voted] == -1).all()
    assert found.fit.converged
