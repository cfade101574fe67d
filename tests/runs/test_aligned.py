"""Comparisons at equal dev loss and at equal steps, against numbers worked out by hand."""

from __future__ import annotations

import pytest
from scipy import stats

from suture.errors import SutureError
from suture.runs.aligned import (
    Arm,
    Point,
    at_loss,
    at_step,
    bracketing,
    common_loss,
    common_step,
    compare,
)


def arm(name: str, seed: int, *points: tuple[int, float, float]) -> Arm:
    return Arm(name, seed, tuple(Point(step, dev, {"ood": value}) for step, dev, value in points))


FAST = arm("fast", 0, (0, 8.0, 9.0), (100, 5.0, 6.0), (200, 4.0, 5.6))
SLOW = arm("slow", 0, (0, 8.0, 9.0), (100, 6.0, 6.8), (200, 4.5, 5.7))


def test_values_are_interpolated_in_the_dev_loss() -> None:
    assert common_loss([FAST, SLOW]) == 4.5
    assert at_loss(FAST, 4.5) == {"ood": pytest.approx(5.8)}
    assert at_loss(SLOW, 4.5) == {"ood": pytest.approx(5.7)}
    assert at_loss(SLOW, 6.75)["ood"] == pytest.approx(9.0 - 2.2 * 1.25 / 2)
    assert at_loss(FAST, 4.0) == {"ood": 5.6}


def test_the_last_way_down_counts() -> None:
    rough = arm("x", 0, (0, 8.0, 9.0), (1, 5.0, 1.0), (2, 6.0, 2.0), (3, 4.0, 3.0))
    assert at_loss(rough, 5.5)["ood"] == pytest.approx(2.25)
    assert bracketing([(0, 8.0), (1, 5.0), (2, 6.0), (3, 4.0)], 5.5) == (2, 3)
    assert bracketing([(0, 8.0), (1, 5.0)], 4.0) == ()
    assert bracketing([(0, 8.0), (1, 5.0), (2, 6.0)], 5.0) == (1,)


def test_a_metric_that_one_checkpoint_lacks_is_left_out() -> None:
    run = Arm("x", 0, (Point(0, 8.0, {"a": 1.0}), Point(1, 4.0, {"a": 3.0, "b": 1.0})))
    assert at_loss(run, 6.0) == {"a": 2.0}
    assert at_loss(run, 4.0) == {"a": 3.0, "b": 1.0}


def test_equal_steps_are_the_last_that_all_have() -> None:
    other = arm("other", 0, (0, 8.0, 9.0), (100, 6.0, 7.0))
    assert common_step([FAST, other]) == 100
    assert at_step(FAST, 100) == {"ood": 6.0}
    with pytest.raises(SutureError, match="E954"):
        common_step([FAST, arm("x", 0, (7, 1.0, 1.0))])


def test_differences_are_paired_by_seed() -> None:
    runs = []
    for seed, shift in enumerate((0.0, 0.5, 1.0)):  # seeds differ much, the gap little
        runs.append(arm("base", seed, (0, 8.0, 9.0), (1, 4.0, 5.0 + shift)))
        runs.append(arm("new", seed, (0, 8.0, 9.0), (1, 4.0, 4.8 + shift + 0.01 * seed)))
    found = compare(runs, how="loss", baseline="base")
    assert found.places == {0: 4.0, 1: 4.0, 2: 4.0}
    (gap,) = found.gaps
    assert gap.by_seed == {0: pytest.approx(-0.2), 1: pytest.approx(-0.19), 2: pytest.approx(-0.18)}
    want = stats.ttest_1samp([-0.2, -0.19, -0.18], 0).confidence_interval()
    assert gap.ends == (pytest.approx(want.low), pytest.approx(want.high))
    assert gap.settled
    level = next(one for one in found.levels if one.arm == "base")
    assert level.mean == pytest.approx(5.5)
    assert level.ends is not None
    assert level.ends[0] < 4.5  # the level itself is far less certain than the gap


def test_a_single_seed_settles_nothing() -> None:
    (gap,) = compare([FAST, SLOW], how="steps", baseline="fast").gaps
    assert (gap.mean, gap.ends, gap.settled) == (pytest.approx(0.1), None, False)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(SutureError, match="E953") as caught:
        compare([FAST, SLOW], how="loss", baseline="vanilla")
    assert "fast, slow" in str(caught.value.fix)
    never = arm("late", 0, (100, 3.0, 1.0), (200, 2.0, 1.0))
    with pytest.raises(SutureError, match="E954"):
        compare([FAST, never], how="loss", baseline="fast")
