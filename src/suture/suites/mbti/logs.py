"""MBTIBench's released replies to the stress task, scored again: several rounds of every post.

    {"round": 1, "id": 1, "label": "no", "response": "..."}

`accuracy` and `macro_f1` are means over the rounds, as the paper has them, and their intervals draw
posts; `accuracy_sd`, `macro_f1_sd` are population standard deviations over the rounds, and
`accuracy_p` is Welch's p of the rounds against a `reference` log. It has no direction: smaller is
surer, not better. Its n counts rounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from suture.errors import SutureError
from suture.ledger import Measurement, ReplyRow, Row, derive
from suture.ledger.statistics import Statistic
from suture.ledger.student import welch
from suture.progress import note
from suture.suites.mbti.declared import of_log
from suture.suites.questions import file_rows
from suture.suites.stress import ANSWERS, answer_columns, derived, majority


def score_log(file: Path, parser: str, reference: Path | None) -> Measurement:
    """The measurement that a log holds; `parser` as in the suite stress.

    Error E599: not such a log, a round that lacks posts, or a reference without rounds.
    """
    rows, replies = _read(file, parser)
    rounds = sorted({row.scores["round"] for row in rows})
    about = {**_over_rounds(rows, rounds), **_spread(rows, rounds)}
    if reference is not None:
        about["accuracy_p"] = against = _against(reference, parser, rows, rounds)
        note(f"accuracy_p {against['value']:.4f}: {against['definition']}")
    posts = sorted({(row.cluster, row.scores["truth"]) for row in rows}, key=str)
    sha256 = hashlib.sha256(repr([rounds, posts]).encode()).hexdigest()
    return of_log(
        "stress",
        file,
        rows,
        replies,
        about,
        data={"sha256": sha256, "rounds": len(rounds)},
        scorer={"parser": parser},
    )


def _read(file: Path, parser: str) -> tuple[list[Row], list[ReplyRow]]:
    found = list(file_rows(file, _no_log))
    for number, raw in found:
        if not isinstance(raw.get("response"), str) or raw.get("label") not in ANSWERS:
            raise _no_log(file, number, "no 'response', or a 'label' other than yes and no")
        if not isinstance(raw.get("round"), int) or "id" not in raw:
            raise _no_log(file, number, "no 'round' or no 'id'")
    labels = {str(raw["id"]): raw["label"] for _, raw in found}
    counts: dict[int, set[str]] = {}
    for number, raw in found:
        own = counts.setdefault(raw["round"], set())
        if str(raw["id"]) in own:
            raise _no_log(file, number, f"post {raw['id']} twice in round {raw['round']}")
        own.add(str(raw["id"]))
    for number, posts in counts.items():
        if posts != labels.keys():
            raise _no_log(file, 0, f"round {number} has {len(posts)} of {len(labels)} posts")
    constant = majority(list(labels.values()))
    rows, replies = [], []
    for _, raw in found:
        text = raw["response"]
        item = f"{raw['round']}/{raw['id']}"
        replies.append(ReplyRow(item, "", text, True, len(text.split())))
        scores = answer_columns(replies[-1], raw["label"], constant, parser)
        rows.append(Row(item, {**scores, "round": float(raw["round"])}, str(raw["id"])))
    return rows, replies


def _over_rounds(rows: Sequence[Row], rounds: Sequence[float]) -> dict[str, dict[str, Any]]:
    """The suite's metrics, those about answers as means over the rounds."""
    found = derived(rows)
    for name, one in found.items():
        if len(rounds) > 1 and one["statistic"]["kind"] != "mean":
            parts = [{**one["statistic"], "where": {"round": r}} for r in rounds]
            definition = f"{one['definition']}; mean over {len(rounds)} rounds"
            found[name] = derive(
                rows, "mean_of", [], definition=definition, better=one["direction"], parts=parts
            )
    return found


def _spread(rows: Sequence[Row], rounds: Sequence[float]) -> dict[str, dict[str, Any]]:
    if len(rounds) < 2:
        return {}
    return {
        f"{name}_sd": {
            "value": pstdev(_by_round(rows, rounds, name)),
            "definition": f"population standard deviation of {name} over {len(rounds)} rounds",
            "direction": "lower",
            "n": len(rounds),
        }
        for name in ("accuracy", "macro_f1")
    }


def _by_round(rows: Sequence[Row], rounds: Sequence[float], name: str) -> list[float]:
    about = {"kind": name, "columns": ["truth", "said"], "labels": 2}
    return [
        Statistic.load(about).of([row for row in rows if row.scores["round"] == r]) for r in rounds
    ]


def _against(
    reference: Path, parser: str, rows: Sequence[Row], rounds: Sequence[float]
) -> dict[str, Any]:
    others, _ = _read(reference, parser)
    other_rounds = sorted({row.scores["round"] for row in others})
    if min(len(rounds), len(other_rounds)) < 2:
        raise SutureError(
            "E599",
            "Welch's test needs at least two rounds on either side",
            where=str(reference),
            fix="leave --reference out, or compare the measurements: suture compare",
        )
    mine = _by_round(rows, rounds, "accuracy")
    theirs = _by_round(others, other_rounds, "accuracy")
    return {
        "value": welch(theirs, mine).p_value,
        "definition": f"Welch's two-sided p of {len(mine)} rounds' accuracy (mean "
        f"{fmean(mine):.4f}) against {len(theirs)} of {reference.name} ({fmean(theirs):.4f})",
        "n": len(mine) + len(theirs),
    }


def _no_log(path: Path, number: int, what: str) -> SutureError:
    return SutureError(
        "E599",
        f"not a log of the stress task: {what}",
        where=f"{path}:{number}" if number else str(path),
        fix='write {"round": 1, "id": 1, "label": "yes", "response": "..."} per line, every post '
        "in every round",
    )
