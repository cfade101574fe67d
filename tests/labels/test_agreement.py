"""Agreement: libraries' values, closed forms of the intervals, worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from crowd import TWO, graded, votes
from suture.errors import SutureError
from suture.labels import Scale, agreement, extras
from suture.labels.agreement import cohen, fleiss, krippendorff
from suture.labels.extras import need
from suture.ledger.intervals import wilson

# Krippendorff (2011), four observers and twelve units with gaps: nominal .743, ordinal .815
UNITS = """
1 2 3 3 2 1 4 1 2 - - -
1 2 3 3 2 2 4 1 2 5 - 3
- 3 3 3 2 3 4 2 2 5 1 -
1 2 3 3 2 4 4 1 2 5 1 -
"""
FIVE = Scale(name="unit", poles={str(k): [str(k)] for k in range(1, 6)})


def units() -> np.ndarray:
    rows = [[-1 if c == "-" else int(c) - 1 for c in line.split()] for line in UNITS.split("\n")]
    return np.array([row for row in rows if row]).T


def test_krippendorffs_own_example() -> None:
    found = agreement(votes(units(), FIVE), "unit")
    assert found["pole"]["krippendorff"]["value"] == pytest.approx(0.743, abs=5e-4)
    assert found["symbol"]["krippendorff_ordinal"]["value"] == pytest.approx(0.815, abs=5e-4)
    assert found["pole"]["krippendorff"]["n"] == 11  # one unit has a single observer
    assert found["pole"]["fleiss"]["n"] == 8


def test_closed_forms_are_the_libraries_values() -> None:
    cells = graded(80, 4, 1)
    pole = np.array(TWO.pole_of)[cells]
    tally = np.stack([(cells == c).sum(axis=1) for c in range(4)], axis=1).astype(float)
    weights = np.random.default_rng(2).integers(0, 4, (3, 80)).astype(float)
    for row in weights:
        drawn = np.repeat(np.arange(80), row.astype(int))
        theirs = need("sklearn.metrics").cohen_kappa_score(pole[drawn, 0], pole[drawn, 1])
        assert cohen(pole[:, 0], pole[:, 1], row[None], 2)[0] == pytest.approx(theirs)
        theirs = need("statsmodels.stats.inter_rater").fleiss_kappa(tally[drawn])
        assert fleiss(tally, row[None])[0] == pytest.approx(theirs)
        theirs = need("krippendorff").alpha(
            value_counts=tally[drawn].astype(int), level_of_measurement="nominal"
        )
        assert krippendorff(tally, row[None])[0] == pytest.approx(theirs)


def test_values_with_intervals_and_pairs() -> None:
    read = votes(graded(200, 3, 3, missing=0.2))
    found = agreement(read, "F/S")
    assert [pair["annotators"] for pair in found["pole"]["cohen"]] == [
        ["A1", "A2"],
        ["A1", "A3"],
        ["A2", "A3"],
    ]
    for level in found.values():
        for key in ("fleiss", "krippendorff", "unanimous"):
            low, high = level[key]["interval"]
            assert low < level[key]["value"] < high
    assert found["symbol"]["fleiss"]["value"] < found["pole"]["fleiss"]["value"]
    assert found == agreement(read, "F/S")  # seeded


def test_the_interval_covers() -> None:
    """Of crowds with one true kappa, about 95% of the intervals hold it."""
    truth, hits = [], 0
    rng = np.random.default_rng(4)
    for trial in range(120):
        pole = rng.random(150) < 0.5
        cells = np.where((rng.random((150, 2)) < 0.8) == pole[:, None], 3, 0)
        level = agreement(votes(cells), "F/S", seed=trial)["pole"]
        found = level["cohen"][0]
        truth.append(found["value"])
        hits += found["interval"][0] <= 0.36 <= found["interval"][1]  # (2·.8 - 1)²
    assert abs(np.mean(truth) - 0.36) < 0.03
    assert hits >= 108


def test_fleiss_takes_equally_many_votes_of_anybody() -> None:
    """Four annotators, two of them per item, never the same: every item counts."""
    rng = np.random.default_rng(5)
    cells = np.full((60, 4), -1)
    for row in cells:
        row[rng.choice(4, 2, replace=False)] = rng.integers(0, 4, 2)
    cells[0] = 0
    assert agreement(votes(cells), "F/S")["pole"]["fleiss"]["n"] == 59


def test_what_is_not_defined_is_none() -> None:
    same = agreement(votes(np.zeros((9, 3), dtype=int)), "F/S")["pole"]
    assert same["fleiss"]["value"] is None
    assert same["krippendorff"]["value"] is None
    assert same["unanimous"] == {"value": 1, "interval": list(wilson(1.0, 9)), "n": 9}
    alone = np.array([[0, -1], [-1, 3], [1, -1]])
    apart = agreement(votes(alone), "F/S")["pole"]
    assert apart["cohen"] == []
    assert apart["fleiss"] == {"value": None, "interval": None, "n": 0}
    assert apart["krippendorff"]["value"] is None
    assert apart["unanimous"] == {"value": None, "interval": None, "n": 0}


def test_no_interval_has_width_zero() -> None:
    """Perfect agreement, and too few items to resample."""
    whole = agreement(votes(np.array([[0, 0], [3, 3]] * 20)), "F/S")["pole"]
    few = agreement(votes(np.array([[0, 0], [3, 3], [0, 3], [3, 0]])), "F/S")["pole"]
    for level, value, n in ((whole, 1, 40), (few, 0, 4)):
        for key in ("fleiss", "krippendorff"):
            assert level[key]["interval"] is None
        assert level["cohen"][0] == {
            "annotators": ["A1", "A2"],
            "value": value,
            "interval": None,
            "n": n,
        }


def test_a_missing_library_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(SutureError, match="E391") as raised:
        need("sklearn.metrics")
    assert "scikit-learn" in raised.value.what
    assert raised.value.fix == "pip install 'suture[labels]'"


def test_pairs_with_few_items_in_common() -> None:
    """Draws without any of them are left out."""
    cells = np.full((40, 3), -1)
    cells[:, :2] = graded(40, 2, 6)
    cells[:2, 2] = [0, 3]
    pairs = agreement(votes(cells), "F/S")["pole"]["cohen"]
    assert [pair["n"] for pair in pairs] == [40, 2, 2]
