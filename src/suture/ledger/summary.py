"""One number of a measurement with its interval and what it stands on."""

from __future__ import annotations

from suture.ledger.intervals import bca_mean, wilson
from suture.ledger.kinds import counted
from suture.ledger.measurement import Measurement
from suture.ledger.statistics import FEWEST

_OF_ONE_WORD = {"distinct_2": 1.0, "repetition": 0.0}


def interval_of(measurement: Measurement, name: str) -> tuple[float, float] | None:
    """The 95% interval of a metric: Wilson's of counts, else BCa's of the mean, by cluster.

    What is derived from all rows at once brings its own. None: fewer than `FEWEST` rows or clusters
    of what is no count, or nothing derived with the number."""
    about = measurement.derived.get(name, {})
    own = about.get("interval")
    if own is not None:
        return float(own[0]), float(own[1])
    if "statistic" in about:  # it would have one if the rows gave any
        return None
    rows = [row for row in measurement.rows if name in row.scores]
    if not rows:
        return None
    scores = [row.scores[name] for row in rows]
    units = [row.cluster or row.item for row in rows]
    if counted(name, scores):
        return wilson(sum(scores) / len(scores), len(set(units)))
    if len(set(units)) < FEWEST:
        return None
    found = bca_mean(scores, units, seed=0, name=f"{measurement.suite}.{name}")
    return found.low, found.high


def is_trivial(measurement: Measurement, name: str) -> bool:
    """Whether a number about the wording of replies holds for any answer of a word or two, where
    answers in a given form were asked for: nothing repeats, as there is nothing that could."""
    asked = any(one.rpartition(".")[2] == "parsed_strict" for one in measurement.metrics)
    return asked and measurement.metrics[name] == _OF_ONE_WORD.get(name)


def stands_on(measurement: Measurement, name: str) -> str:
    """How many items a number stands on, and in how many clusters where they are fewer."""
    own = measurement.derived.get(name, {}).get("n")
    if own is not None:
        return f"n={own}"
    units = [row.cluster or row.item for row in measurement.rows if name in row.scores]
    groups = len(set(units))
    return f"n={len(units)}" if groups == len(units) else f"n={len(units)} in {groups} clusters"
