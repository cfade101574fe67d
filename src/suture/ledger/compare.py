"""Two models answered the same items: pair the rows, take intervals, give verdicts.

Intervals are in `intervals`, pairing in `pairing`, verdicts in `verdicts`, junk checks in `junk`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from suture.errors import SutureError, nearest
from suture.lazy import np
from suture.ledger.junk import JunkCheck, check_junk, degenerate_suites
from suture.ledger.measurement import Better, Measurement
from suture.ledger.pairing import (
    LEAST_CLUSTERS,
    LEAST_ITEMS,
    Estimate,
    best_of,
    check_pairable,
    drops,
    estimate_difference,
    estimate_statistic,
    has_statistic,
    left_out,
    paired,
    unread,
)
from suture.ledger.remarks import remarks
from suture.ledger.verdicts import (
    EXIT_CODES,
    Role,
    RunVerdict,
    Verdict,
    holm,
    judge,
    needed_n,
    roles_hash,
    run_verdict,
)

# columns that say something about another model too
_OF_BEFORE = ("kl", "logprob_before", "token_time_ratio", "reply_time_ratio")

_TOLD = 12  # metrics that an error lists


@dataclass
class LedgerRow:
    """One metric in its role: numbers, interval, verdict. `difference`: + is better.

    `best`: of a metric that is best at a value in between; a gain is a move towards it.
    """

    suite: str
    metric: str
    role: Literal["target", "kept"]
    better: Better
    n: int
    before: float
    after: float
    reference: float | None
    difference: float
    ci95: tuple[float, float]
    margin: float | None
    verdict: Verdict
    test: str
    p_value: float
    needed_n: int | None
    against: Literal["before", "reference"]
    min_gain: float = 0.0
    note: str = ""
    clusters: int | None = None  # independent groups among the n items, where there are any
    best: float | None = None

    @property
    def needed_clusters(self) -> int | None:
        """`needed_n` in clusters of as many items as these have."""
        if self.needed_n is None or self.clusters is None:
            return None
        return math.ceil(self.needed_n * self.clusters / self.n)

    def as_dict(self) -> dict[str, Any]:
        """The shape of an entry of `ledger` in report.json."""
        more = {"ci95": list(self.ci95), "needed_clusters": self.needed_clusters}
        return {**self.__dict__, **more}


@dataclass
class Ledger:
    """All rows, the junk checks beside them, and the verdict on the run."""

    rows: list[LedgerRow]
    verdict: RunVerdict
    junk: list[JunkCheck]
    before: dict[str, Any]
    after: dict[str, Any]
    reference: dict[str, Any] | None
    roles_sha256: str
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 proven, 2 broken, 3 not proven."""
        return EXIT_CODES[self.verdict]

    def as_dict(self) -> dict[str, Any]:
        """For report.json and `--json`."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "ledger": [row.as_dict() for row in self.rows],
            "junk": [check.as_dict() for check in self.junk],
            "before": self.before,
            "after": self.after,
            "reference": self.reference,
            "roles_sha256": self.roles_sha256,
            "notes": self.notes,
        }


def compare(
    before: Sequence[Measurement],
    after: Sequence[Measurement],
    reference: Sequence[Measurement] = (),
    roles: Sequence[Role] = (),
    *,
    seed: int = 0,
) -> Ledger:
    """The ledger of one edit: `before` and `after` hold one Measurement per suite.

    `reference`: the model that sets the level of kept rows `against` it (for a repair, the
    aligned one). Every role's suite must be in `before` and `after`, measured on the same items
    with the same template, decoding and scorer. Errors: E605 no roles, E606 a missing suite or
    metric, E607 measurements that cannot be paired, E608 two models on one side.
    """
    if not roles:
        raise SutureError(
            "E605",
            "nothing to judge: no target and no kept metric",
            fix="give --target safety.refusal_rate:higher and --kept task.accuracy:0.03",
        )
    sides = {
        "before": _by_suite("before", before),
        "after": _by_suite("after", after),
        "reference": _by_suite("reference", reference),
    }
    pending = [_estimate(role, sides, seed) for role in roles]
    allowed = holm([estimate.p_below for _, estimate, _ in pending])
    junk = check_junk(sides["before"], sides["after"], sides["reference"], seed=seed)
    bad = degenerate_suites(junk)
    rows = [
        _row(role, *found, holm_rejects, sides, bad)
        for role, found, holm_rejects in zip(roles, pending, allowed, strict=True)
    ]
    first = roles[0].suite
    told = sides["reference"]
    return Ledger(
        rows=rows,
        verdict=run_verdict([row.verdict for row in rows]),
        junk=junk,
        before=sides["before"][first].model,
        after=sides["after"][first].model,
        reference=next(iter(told.values())).model if told else None,
        roles_sha256=roles_hash(roles),
        notes=remarks(sides, roles),
    )


def _row(
    role: Role,
    values: Mapping[str, float],
    estimate: Estimate,
    better: Better,
    holm_rejects: bool,
    sides: Mapping[str, Mapping[str, Measurement]],
    degenerate: Mapping[str, str],
) -> LedgerRow:
    verdict, note = _verdict(role, estimate, holm_rejects)
    if role.suite in degenerate and verdict in ("improved", "held"):
        verdict, note = "not proven", f"replies degenerate: {degenerate[role.suite]}"
    elif any(model.get("identity") == "declared" for model in _models(role, sides)):
        note = "; ".join(filter(None, [note, "identity declared, not fingerprinted"]))
    best = best_of(sides["after"][role.suite], role.column)
    towards = "" if best is None else f"{best:g} is best: a gain is a move towards it"
    note = "; ".join(filter(None, [note, _left_out(role, sides)]))
    needed = None
    # below the least sample of a test no power calculation holds; the note names that sample
    if verdict == "not proven" and estimate.enough and role.suite not in degenerate:
        needed = needed_n(
            role,
            estimate.difference,
            estimate.spread,
            binary=estimate.binary,
            units_per_item=(estimate.clusters or estimate.n) / estimate.n,
        )
        if role.role == "kept" and needed is not None and needed <= estimate.n and not note:
            note = "the sample was large enough: the loss itself is near the margin"
    note = "; ".join(filter(None, [note, towards]))
    return LedgerRow(
        suite=role.suite,
        metric=role.column,
        role=role.role,
        better=better,
        n=estimate.n,
        before=values["before"],
        after=values["after"],
        reference=values.get("reference"),
        difference=estimate.difference,
        ci95=(estimate.low, estimate.high),
        margin=role.margin,
        verdict=verdict,
        test=estimate.test,
        p_value=estimate.p_value,
        needed_n=needed,
        against=role.against,
        min_gain=role.min_gain,
        note=note,
        clusters=estimate.clusters,
        best=best,
    )


def _estimate(
    role: Role, sides: Mapping[str, Mapping[str, Measurement]], seed: int
) -> tuple[dict[str, float], Estimate, Better]:
    found = {side: _find(role, side, sides[side]) for side in ("before", "after")}
    if role.against == "reference" or role.suite in sides["reference"]:
        found["reference"] = _find(role, "reference", sides["reference"])
    for side in found:
        if side != "after":
            check_pairable(found[side], found["after"])
    if role.column in _OF_BEFORE:  # both sides must refer to the same model
        referred = {str(found[side].before.get("fingerprint")) for side in (role.against, "after")}
        if len(referred) > 1:
            raise SutureError(
                "E607",
                f"{role.metric} refers to two different before models",
                where=" and ".join(sorted(referred)),
                fix="measure both with the same --before",
            )
    own = found["after"].better.get(role.column)
    best = best_of(found["after"], role.column)
    if best is not None and role.better:
        raise SutureError(
            "E604",
            f"{role.metric} is best at {best:g}, not when it is {role.better}",
            why="compare judges how near to that value it is",
            fix=f"write {role.metric} without a direction",
        )
    if own and role.better and own != role.better:
        raise SutureError(
            "E604",
            f"{role.metric} is better when {own}, not {role.better}",
            fix=f"write {role.metric}:{own}",
        )
    better = role.better or own
    if better is None:
        raise SutureError(
            "E604", f"{role.metric}: direction unknown", fix=f"write {role.metric}:higher"
        )
    floor = 0.0 if role.role == "target" else -(role.margin or 0.0)
    if _from_sums(role.column, found[role.against], found["after"]):
        estimate, level, after = estimate_statistic(
            found[role.against],
            found["after"],
            role.column,
            better=better,
            floor=floor,
            seed=seed,
            best=best,
        )
        whole = {side: one.metrics[role.column] for side, one in found.items()}
        return {**whole, role.against: level, "after": after}, estimate, better
    estimate = estimate_difference(
        *paired(found[role.against], found["after"], role.column),
        better=better,
        floor=floor,
        seed=seed,
        name=role.metric,
    )
    values = {}
    gone = unread(found[role.against], found["after"], role.column)
    for side, measurement in found.items():
        having = (row for row in measurement.rows if role.column in row.scores)
        values[side] = float(np.mean([r.scores[role.column] for r in having if r.item not in gone]))
    return values, estimate, better


def _left_out(role: Role, sides: Mapping[str, Mapping[str, Measurement]]) -> str:
    """What the row's note says of items that could not be paired."""
    base, after = sides[role.against][role.suite], sides["after"][role.suite]
    if _from_sums(role.column, base, after) or (drops(base) and drops(after)):
        gone = left_out(base, after, role.column)
        return f"{gone} items left out: one side gave no answer that could be read" if gone else ""
    gone = len(unread(base, after, role.column))
    return f"{gone} items left out: the judge's words could not be read" if gone else ""


def _verdict(role: Role, estimate: Estimate, broken_allowed: bool) -> tuple[Verdict, str]:
    if not estimate.enough:
        least = f"{LEAST_ITEMS} items"
        if estimate.clusters is not None:
            least += f" in {LEAST_CLUSTERS} clusters"
        return "not proven", f"this test needs at least {least}"
    verdict = judge(role, estimate.low, estimate.high, broken_allowed=broken_allowed)
    if verdict == "not proven" and judge(role, estimate.low, estimate.high) == "broken":
        return verdict, "worse on its own, but not after Holm's correction over all rows"
    return verdict, ""


def _find(role: Role, side: str, measured: Mapping[str, Measurement]) -> Measurement:
    if role.suite not in measured:
        close = nearest(role.suite, measured)
        raise SutureError(
            "E606",
            f"no '{role.suite}' measurement among the {side} files",
            where=f"for {role.metric}",
            fix=f"did you mean '{close}'?"
            if close
            else f"add --{side} FILE made by `suture measure {role.suite}`",
        )
    measurement = measured[role.suite]
    known = _columns(measurement)
    if role.column in known:
        return measurement
    if role.column in measurement.metrics:
        raise SutureError(
            "E606",
            f"{role.metric} is one number about all rows: there is nothing to pair",
            where=f"among the {side} files",
            fix=f"take one that rows stand behind: {', '.join(known[:4])}",
        )
    why = None
    if any(role.column in row.scores for row in measurement.rows):
        why = f"'{role.column}' is a column of the rows that metrics are made of, not a metric"
    elif measurement.decoding == {"declared": True}:
        why = (
            "it was scored from replies alone: options are then counted as exact_match, by "
            "being named, and nothing that needs the model is known"
        )
    close = nearest(role.column, known)
    raise SutureError(
        "E606",
        f"'{role.suite}' has no metric '{role.column}'",
        where=f"among the {side} files",
        why=why,
        fix=f"did you mean '{role.suite}.{close}'?"
        if close
        else f"it has: {', '.join(known[:_TOLD])}" + ", ..." * (len(known) > _TOLD),
    )


def _from_sums(column: str, *sides: Measurement) -> bool:
    """Whether a metric is paired by sums over rows: no row has it as a score of its own, or a value
    in between is best, which differences of single rows know nothing of."""
    if all(best_of(one, column) is not None for one in sides):
        return True
    return all(has_statistic(one, column) for one in sides) and not any(
        column in row.scores for one in sides for row in one.rows
    )


def _columns(measurement: Measurement) -> list[str]:
    """The metrics that rows stand behind; columns that only feed a metric are none."""
    names = {name for row in measurement.rows for name in row.scores}
    names |= {name for name in measurement.derived if has_statistic(measurement, name)}
    return [name for name in measurement.metrics if name in names]


def _by_suite(side: str, measurements: Sequence[Measurement]) -> dict[str, Measurement]:
    found: dict[str, Measurement] = {}
    for measurement in measurements:
        if measurement.suite in found:
            raise SutureError(
                "E608", f"two '{measurement.suite}' measurements on the {side} side", fix="give one"
            )
        found[measurement.suite] = measurement
    prints = {str(m.model.get("fingerprint")) for m in measurements}
    if len(prints) > 1:
        raise SutureError(
            "E608",
            f"the {side} files come from {len(prints)} different models",
            where=", ".join(sorted(prints)),
            why="a verdict is about one model: target and kept metrics must be its own",
            fix=f"measure every suite on the same {side} model",
        )
    return found


def _models(role: Role, sides: Mapping[str, Mapping[str, Measurement]]) -> list[dict[str, Any]]:
    return [sides[side][role.suite].model for side in {"after", role.against}]
