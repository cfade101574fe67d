"""Resampled labels: what is sure stays, what is not moves, gaps stay gaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crowd import graded, votes
from suture.errors import SutureError
from suture.labels import EM, Scale, estimate, stability
from suture.labels.em import fit


def test_unanimous_items_stay_and_split_ones_move() -> None:
    cells = graded(120, 5, 1)
    cells[0], cells[1] = 0, [0, 2, 1, 2, 1]
    cells[2] = -1
    em = EM()
    labels = estimate(votes(cells), mode="converged")["F/S"]
    found = stability(labels, em, draws=60)
    assert found.kept[0] == 1
    assert found.high[0] < 0.2
    assert np.isnan(found.low[2])
    assert np.isnan(found.kept[2])
    assert (found.low <= found.high)[np.isfinite(found.low)].all()
    inside = (found.low <= labels.soft) & (labels.soft <= found.high)
    assert inside[np.isfinite(labels.soft)].mean() > 0.9
    assert found.high[1] - found.low[1] > found.high[0] - found.low[0]
    facts = found.facts()
    assert facts["failed"] == 0
    assert 0.5 < facts["settled"] <= 1
    again = stability(labels, em, draws=60)
    np.testing.assert_array_equal(found.low, again.low)  # seeded


def test_intervals_narrow_with_items() -> None:
    widths = []
    for items in (60, 600):
        labels = estimate(votes(graded(items, 3, 2)))["F/S"]
        widths.append(stability(labels, EM.of("released"), draws=60).facts()["mean_width"])
    assert widths[1] < 0.6 * widths[0]


def test_posteriors_as_they_are() -> None:
    read = votes(graded(120, 5, 3))
    labels = estimate(read, mode="converged", soft="posterior")["F/S"]
    found = stability(labels, EM(), soft="posterior", draws=40)
    sure = labels.posterior[:, 1] > 0.999
    assert (found.low[sure] > 0.9).all()


def test_more_than_two_poles_have_no_interval() -> None:
    three = Scale(name="x", poles={"a": ["a"], "b": ["b"], "c": ["c"]})
    labels = estimate(votes(np.array([[0, 0], [1, 1], [2, 2]]), three), mode="converged")["x"]
    with pytest.raises(SutureError, match="E390"):
        stability(labels, EM())


def test_what_is_not_drawn_fails_no_draw() -> None:
    """Rare patterns may have no pole where nobody votes so: they alone are without a label."""
    cells = graded(30, 4, 5)
    labels = estimate(votes(cells))["F/S"]
    em = EM.of("released")
    found = stability(labels, em, draws=100)
    assert found.failed == 0
    assert found.partly.any()
    assert not found.partly.all()
    voted = np.isfinite(labels.soft)
    assert np.isfinite(found.low[voted & ~found.partly]).all()
    assert (found.kept[np.isfinite(found.kept)] <= 1).all()
    assert found.facts()["partly"] == found.partly.sum()


def test_patterns_that_no_item_has_decide_nothing() -> None:
    """The estimate with them at count 0 is the estimate without them."""
    labels = estimate(votes(graded(30, 4, 5)))["F/S"]
    whole = labels.fit.patterns
    for em in (EM.of("released"), EM()):
        tail = replace(whole, count=np.where(np.arange(len(whole)) < 20, whole.count, 0.0))
        alone = replace(
            whole,
            code=whole.code[: whole.starts[20]],
            starts=whole.starts[:21],
            count=whole.count[:20],
        )
        one, other = (fit(p, labels.ballot.scale, em) for p in (tail, alone))
        np.testing.assert_allclose(one.posterior[:20], other.posterior, rtol=1e-12)
        np.testing.assert_allclose(one.prior, other.prior, rtol=1e-12)
        assert (one.rounds, one.log_likelihood) == (
            other.rounds,
            pytest.approx(other.log_likelihood),
        )
