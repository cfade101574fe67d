"""The columns of a row and the metrics made of them (MBTIBench, evaluator; spec of the metrics).

A row is one trait, so its columns carry the dimension's key: `ei.said` is what was said about E/I.

    soft form   KEY.truth, KEY.said, KEY.constant    labels, answers and the mean label, 0 to 1
                KEY.truth_bin, ...                   the same in bins (`parsing.bin_of`)
                KEY.bias                             said - truth: + leans to the second pole
                KEY.polarisation                     how much farther from the middle than the truth
    hard form   KEY.truth, KEY.said, KEY.constant    0 first pole, 1 second, -1 unread
                KEY.bias                             chosen second - is second
    both        parsed_strict, parsed_lenient, ends_properly

The constant answer (mean soft label, or the more frequent side) is that of the very rows measured,
and so it stands beside every metric: of RMSE and accuracy the best that any constant can do. Of MAE
the median, and of the metrics in bins another bin, may do better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from suture.ledger import NONE, Better, Row, derive
from suture.suites.mbti.asking import Form
from suture.suites.mbti.dimensions import dimensions
from suture.suites.mbti.parsing import THIRD, bin_of
from suture.suites.mbti.records import Trait

# metric: (kind, column ends, better, what it is)
_SOFT: dict[str, tuple[str, tuple[str, str], Better, str]] = {
    "s_rmse": ("rmse", ("truth_bin", "said_bin"), "lower", "root mean square of bins apart"),
    "s_mae": ("mae", ("truth_bin", "said_bin"), "lower", "mean of bins apart"),
    "rmse": ("rmse", ("truth", "said"), "lower", "root mean square of scores apart, 0 to 1"),
    "mae": ("mae", ("truth", "said"), "lower", "mean of scores apart, 0 to 1"),
}
_HARD: dict[str, tuple[str, tuple[str, str], Better, str]] = {
    "accuracy": ("accuracy", ("truth", "said"), "higher", "share of sides that are right"),
    "macro_f1": (
        "macro_f1",
        ("truth", "said"),
        "higher",
        "F1 averaged over the sides",
    ),
}
LEANINGS = {
    "bias": "said less truth: + leans to the second pole",
    "polarisation": "distance from the middle, said less truth: + is more extreme",
}
ENDS_PROPERLY = "share of replies that ended by themselves and say something"
_READ = {
    "parsed_strict": "share of replies in the form asked for",
    "parsed_lenient": "share of replies that could be read at all",
    "ends_properly": ENDS_PROPERLY,
}


def measures(form: Form) -> dict[str, tuple[str, tuple[str, str], Better, str]]:
    """The errors of a form: kind of statistic, columns, direction, meaning."""
    return _SOFT if form == "soft" else _HARD


def directions() -> dict[str, Better]:
    """Every metric there can be, in the order of a table."""
    found: dict[str, Better] = {}
    for key in ("mean", *(one.key for one in dimensions().values())):
        for name, (_, _, better, _) in {**_SOFT, **_HARD}.items():
            found[f"{key}.{name}"] = better
            found[f"{key}.{name}_constant"] = better
        for name in LEANINGS if key != "mean" else ():
            found[f"{key}.{name}"] = "lower"
    return {**found, **dict.fromkeys(_READ, "higher")}


def constants(items: Sequence[Trait], form: Form) -> dict[str, float]:
    """By dimension the mean soft label, or the more frequent side (the first of two alike)."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(item.dimension for item in items):
        truths = [
            t for item in items if item.dimension == name and (t := truth(item, form)) is not None
        ]
        if truths and form == "soft":
            found[name] = sum(truths) / len(truths)
        elif truths:
            counts = Counter(truths)
            found[name] = max(sorted(counts), key=lambda side: counts[side])
    return found


def truth(item: Trait, form: Form) -> float | None:
    """The label: 0 to 1, or the number of the side; None where there is none."""
    if form == "soft":
        return item.soft
    if item.hard is None:
        return None
    return float(item.hard == dimensions()[item.dimension].second.letter)


def parse_column(parser: str) -> str:
    """The column that says whether an answer was read, by the suite's option `parser`."""
    return "parsed_lenient" if parser == "lenient" else "parsed_strict"


def was_read(row: Row, options: Mapping[str, Any]) -> bool:
    """Whether a row's `said` is the model's own answer, not what stands in for an unread one;
    `options`: of the measurement."""
    return row.scores[parse_column(options.get("parser", "strict"))] == 1


def columns(item: Trait, said: float, constant: float | None, form: Form) -> dict[str, float]:
    """What a row says about an answer that counts as `said`."""
    key, gold = dimensions()[item.dimension].key, truth(item, form)
    found = {"said": said}
    if gold is not None and constant is not None:
        found |= {"truth": gold, "constant": constant}
        if form == "soft":
            found["bias"] = said - gold
            found["polarisation"] = abs(2 * said - 1) - abs(2 * gold - 1)
        elif said not in (NONE, THIRD):
            found["bias"] = said - gold
    if form == "soft":
        names = [name for name in ("truth", "said", "constant") if name in found]
        found |= {f"{name}_bin": float(bin_of(found[name])) for name in names}
    return {f"{key}.{name}": value for name, value in found.items()}


def derived(rows: Sequence[Row], form: Form, *, sides: int = 2) -> dict[str, dict[str, Any]]:
    """All metrics of the rows, the constant's beside each, and means over the dimensions.

    `sides`: classes of macro-F1; 3 counts the released code's third, which nobody is in.
    """
    present = {name for row in rows for name in row.scores}
    keys = [one.key for one in dimensions().values() if f"{one.key}.truth" in present]
    keys = [key for key in keys if f"{key}.said" in present]
    found: dict[str, dict[str, Any]] = {}
    for key in keys:
        for name, (kind, ends, better, told) in measures(form).items():
            options: dict[str, Any] = {"labels": sides} if kind == "macro_f1" else {}
            for tail, pair in (("", ends), ("_constant", (ends[0], _constant(ends[1])))):
                found[f"{key}.{name}{tail}"] = derive(
                    rows,
                    kind,
                    [f"{key}.{end}" for end in pair],
                    definition=told if not tail else f"{told}, of the constant answer",
                    better=better,
                    **options,
                )
        for name, told in LEANINGS.items():
            if f"{key}.{name}" in present:
                about = derive(rows, "mean", [f"{key}.{name}"], definition=told, better="lower")
                found[f"{key}.{name}"] = {**about, "best": 0.0}
    means: dict[str, dict[str, Any]] = {}
    for name, (_, _, better, told) in measures(form).items() if len(keys) > 1 else ():
        for tail in ("", "_constant"):
            parts = [found[f"{key}.{name}{tail}"]["statistic"] for key in keys]
            means[f"mean.{name}{tail}"] = derive(
                rows,
                "mean_of",
                [],
                definition=f"{told}; mean over {len(keys)} dimensions"
                + (", of the constant answer" if tail else ""),
                better=better,
                parts=parts,
            )
    read = {
        name: derive(rows, "mean", [name], definition=told, better="higher")
        for name, told in _READ.items()
        if name in present
    }
    return {**means, **found, **read}


def _constant(column: str) -> str:
    return column.replace("said", "constant")
