"""What a sweep found, as the one JSON object of sweep.json; choosing from it, now or later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.ledger import estimate_difference
from suture.ledger.pairing import paired
from suture.report import figures
from suture.runs.sweep.choose import Candidate, best_of, choose, full_name, parse_where
from suture.runs.sweep.facts import Difference, Facts, Named, Reported, Scores, SettingFacts

if TYPE_CHECKING:
    from suture.ledger import Better, Ledger, Measurement
    from suture.runs.sweep.recipe import Setting, SweepRecipe

FORMAT = "suture-sweep/1"
FILE = "sweep.json"


def measured_setting(
    setting: Setting,
    sweep: SweepRecipe,
    before: Sequence[Measurement],
    after: Sequence[Measurement],
    *,
    verdict: str,
    junk: Mapping[str, str],
    patch: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> SettingFacts:
    """One setting with its scores on the selection split. `junk`: suite -> what is wrong."""
    return {
        **_named(setting),
        "patch": {key: patch.get(key) for key in ("tensors", "elements", "bytes", "fingerprint")},
        "seconds": dict(seconds),
        "selection": {
            "scores": scores_of(after),
            "ci95": {
                metric: interval(before, after, metric, sweep.report.seed)
                for metric in interesting(sweep)
            },
            "verdict": verdict,
        },
        "junk": "; ".join(f"{suite}: {reason}" for suite, reason in junk.items()) or None,
        "failed": None,
        "front": False,
        "report": None,
        "against": {},
    }


def failed_setting(setting: Setting, error: SutureError) -> SettingFacts:
    """One that could not be derived."""
    return {
        **_named(setting),
        "patch": None,
        "seconds": {},
        "selection": None,
        "junk": None,
        "failed": f"{error.code}: {error.what}",
        "front": False,
        "report": None,
        "against": {},
    }


def _named(setting: Setting) -> Named:
    return {
        "number": setting.number,
        "key": setting.key,
        "method": setting.method,
        "label": setting.label,
        "knobs": setting.recipe.method.config,
    }


def interesting(sweep: SweepRecipe) -> tuple[str, ...]:
    """The metrics of roles and constraints."""
    more = [bound.metric for bound in sweep.bounds] + ([sweep.best] if sweep.best else [])
    return tuple(dict.fromkeys([*sweep.axes, *more]))


def scores_of(measured: Sequence[Measurement]) -> Scores:
    """SUITE.METRIC -> mean."""
    return {
        f"{found.suite}.{metric}": value
        for found in measured
        for metric, value in found.metrics.items()
        if metric in found.better
    }


def counts_of(measured: Sequence[Measurement]) -> dict[str, int]:
    """SUITE.METRIC -> rows that have the score."""
    return {
        f"{found.suite}.{metric}": found.derived.get(metric, {}).get("n")
        or sum(metric in row.scores for row in found.rows)
        for found in measured
        for metric in found.metrics
    }


def better_of(measured: Sequence[Measurement]) -> dict[str, Better]:
    """SUITE.METRIC -> its direction."""
    return {f"{found.suite}.{m}": found.better[m] for found in measured for m in found.better}


def interval(
    before: Sequence[Measurement], after: Sequence[Measurement], metric: str, seed: int
) -> list[float] | None:
    """95% of a setting's level: the paired interval of its difference from `before`, which
    answered the same rows, laid at the level of `before`. None where it cannot be told."""
    row = difference(before, after, metric, seed)
    if row is None:
        return None
    sign = 1.0 if better_of(after)[metric] == "higher" else -1.0
    ends = sorted(row["before"] + sign * end for end in row["ci95"])
    return [min(max(end, 0.0), 1.0) for end in ends] if figures.is_share(row) else ends


def difference(
    base: Sequence[Measurement], other: Sequence[Measurement], metric: str, seed: int
) -> Difference | None:
    """The paired difference of `other` from `base`, + being better, as a ledger has it: metric,
    before, after, difference, ci95. None where there is none."""
    suite, column = metric.split(".", 1)
    sides = [next((m for m in side if m.suite == suite), None) for side in (base, other)]
    old, new = sides
    if old is None or new is None or column not in old.metrics or column not in new.metrics:
        return None
    if not any(column in row.scores for row in old.rows):  # one number about all rows
        return None
    better = new.better.get(column, "higher")
    try:
        found = estimate_difference(
            *paired(old, new, column), better=better, floor=0.0, seed=seed, name=metric
        )
    except SutureError:  # all rows in one cluster
        return None
    return {
        "metric": column,
        "before": old.metrics[column],
        "after": new.metrics[column],
        "difference": found.difference,
        "ci95": [found.low, found.high],
    }


def against_picked(folder: Path, facts: Facts) -> None:
    """Put into every setting its paired differences from the chosen one, on the selection split."""
    picked = facts["picked"]
    base = None if picked is None else _selected(folder, picked)
    for row in facts["settings"]:
        told = {}
        if base is not None and row["key"] != picked and row["selection"] is not None:
            own = _selected(folder, row["key"])
            told = {m: difference(base, own, m, facts["seed"]) for m in facts["axes"]}
        row["against"] = {metric: found for metric, found in told.items() if found}


def _selected(folder: Path, key: str) -> list[Measurement]:
    from suture.ledger import Measurement

    files = sorted((folder / "settings" / key / "selection" / "after").glob("*.json"))
    return [Measurement.load(file) for file in files]


def facts_of(
    sweep: SweepRecipe,
    rows: list[SettingFacts],
    before: Sequence[Measurement],
    reference: Sequence[Measurement],
    command: str | None,
) -> Facts:
    """The content of sweep.json, nothing chosen yet."""
    recipe = sweep.report
    return {
        "format": FORMAT,
        "name": recipe.name,
        "title": recipe.description or recipe.name,
        "command": command,
        "seed": recipe.seed,
        "models": {"before": recipe.before, "reference": recipe.reference},
        "axes": list(sweep.axes),
        "better": better_of(before),
        "n": counts_of(before),
        "sides": {
            "before": scores_of(before),
            **({"reference": scores_of(reference)} if reference else {}),
        },
        "where": sweep.sweep.where,
        "best": sweep.best,
        "limits": sweep.sweep.where,
        "picked": None,
        "why": None,
        "settings": rows,
    }


def settle(facts: Facts) -> SutureError | None:
    """Mark the front, and what the constraints choose; why they choose nothing, if they do not.

    Without constraints something is chosen only if one setting is best at everything.
    """
    rows = {row["number"]: row for row in facts["settings"]}
    able = candidates(facts)
    axes, better = facts["axes"], facts["better"]
    unbeaten = best_of(able, axes, better)
    for candidate in unbeaten:
        rows[candidate.number]["front"] = True
    asked = facts["where"] is not None or facts["best"] is not None
    if not asked and len(unbeaten) != 1:
        return None
    try:
        choice = chosen(facts, facts["where"], facts["best"])
    except SutureError as error:
        facts["why"] = f"{error.what}. {error.where}"
        return error
    facts["picked"], facts["why"] = choice["key"], asked_for(facts["where"], facts["best"])
    return None


def chosen(facts: Facts, where: str | None, best: str | None) -> SettingFacts:
    """The setting of `facts` that the constraints choose. Raises SutureError E737 to E739."""
    able, better = candidates(facts), facts["better"]
    if not able:
        raise SutureError(
            "E737",
            "no setting can be chosen: each failed or makes the replies degenerate",
            where=str(next(row["failed"] or row["junk"] for row in facts["settings"])),
            fix="try gentler knobs",
        )
    bounds = parse_where(where or "", list(better), facts["axes"], list(facts["sides"]))
    deciding = None if best is None else full_name(best, list(better), facts["axes"])
    for metric in [*(bound.metric for bound in bounds), *([deciding] if deciding else [])]:
        if any(metric not in candidate.scores for candidate in able):
            raise SutureError(
                "E739",
                f"'{metric}' was not measured",
                fix=f"one of: {', '.join(sorted(able[0].scores))}",
            )
    choice = choose(able, bounds, facts["axes"], better, facts["sides"], deciding)
    return next(row for row in facts["settings"] if row["number"] == choice.number)


def candidates(facts: Facts) -> list[Candidate]:
    """Settings that were derived and that still speak: degenerate replies count for nothing."""
    return [
        Candidate(row["number"], row["label"], row["selection"]["scores"])
        for row in facts["settings"]
        if row["selection"] is not None and row["junk"] is None
    ]


def asked_for(where: str | None, best: str | None) -> str:
    """What a setting was chosen by, in words."""
    parts = [where] if where else []
    if best:
        parts.append(f"best {best}")
    return ", then ".join(parts) or "best at everything"


def reported(folder: Path, axes: Sequence[str], ledger: Ledger, seed: int) -> Reported:
    """The numbers of a setting's own run, on the report split."""
    from suture.report.folder import with_replies

    sides = {
        side: [with_replies(file) for file in sorted((folder / side).glob("*.json"))]
        for side in ("before", "after", "reference")
    }
    found: Reported = {
        "scores": scores_of(sides["after"]),
        "before": scores_of(sides["before"]),
        "n": counts_of(sides["after"]),
        "ci95": {m: interval(sides["before"], sides["after"], m, seed) for m in axes},
        "verdict": ledger.verdict,
        "exit_code": ledger.exit_code,
    }
    if sides["reference"]:
        found["reference"] = scores_of(sides["reference"])
    return found


def read_facts(folder: str | Path) -> Facts:
    """The content of a sweep's sweep.json. Raises SutureError E740 for another folder."""
    file = Path(folder) / FILE
    try:
        found: Facts = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise SutureError(
            "E740",
            "not the folder of a finished sweep",
            where=str(file),
            fix="give the folder that `suture sweep` named; if it was stopped, run it again",
        ) from None
    return found
