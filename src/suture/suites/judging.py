"""Judges at work on a suite's replies: columns for the rows, and the judge's words for the files.

Grades (suites that are asked for `grade`):

    grade             the judge's number, where it gave one; grade_turn_1, grade_turn_2 by turn
    grade_unparsed    1 where no number could be read in the judge's words
    preference        1 where this reply is preferred to the other model's, 0 where the other is,
                      0.5 for a tie: the judge reads both in both orders, and what changes with the
                      order is a tie (Zheng et al. 2023)
    wins, losses      1 where preference is 1, or 0
    order_swayed      1 where the two orders gave different verdicts
    preference_unparsed  1 where one of the two could not be read

Replies that are the same to the letter are a tie and are not sent to the judge.

Grades of empathy (suites that are asked for `empathy`), of replies to somebody, by task:

    TASK.empathy             the judge's number, where it gave one
    TASK.empathy_unparsed    1 where no number could be read in the judge's words
    TASK.empathy_incoherent  1 where the reply is no text; its grade is the judge's all the same
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.ledger import Better, JudgedRow, ReplyRow, Row
from suture.suites.coherence import incoherence
from suture.suites.judges import Grader, Judge, Opinion, Purpose, check_purpose, outcomes
from suture.suites.judges.grading import Case

if TYPE_CHECKING:
    from suture.suites.common import Suite
    from suture.suites.scorers import Scorer

GRADES: dict[str, Better] = {
    "grade": "higher",
    "grade_turn_1": "higher",
    "grade_turn_2": "higher",
    "grade_unparsed": "lower",
    "preference": "higher",
    "wins": "higher",
    "losses": "lower",
    "order_swayed": "lower",
    "preference_unparsed": "lower",
}
_SHARES = {"better": 1.0, "tie": 0.5, "worse": 0.0}


def asked_for(suite: Suite) -> Purpose:
    """What a judge of the suite is asked."""
    found: Purpose = getattr(suite, "judged", None) or "harm"
    return found


def check_judge(suite: Suite, judge: Judge | None) -> None:
    """Refuse a judge for a suite that none reads (E537), and a comparison without one (E546)."""
    purpose = getattr(suite, "judged", None)
    if judge is None:
        if getattr(suite, "against", None) is not None:
            raise SutureError(
                "E546",
                "which of two replies is better is for a judge to say",
                where="against",
                fix="add --judge chat:model=DIR or --judge endpoint:url=URL,model=NAME",
            )
        return
    if purpose is None:
        raise SutureError(
            "E537",
            f"no judge reads the replies of {suite.name}",
            why="judges tell harm in replies to harmful requests, and grade answers to open "
            "questions and the empathy of replies to somebody",
            fix="use --judge with safety, open-ended, or a task of emotion such as esconv-reply",
        )
    check_purpose(judge, purpose)


def ready(judge: Judge) -> None:
    """Find out before anything is asked whether the judge can answer: key, address, format."""
    check = getattr(judge, "check", None)
    if check is not None:
        check()


def judged(
    suite: Suite,
    items: Sequence[Any],
    rows: list[Row],
    replies: Sequence[ReplyRow],
    judge: Judge | None,
    other: Mapping[str, str],
) -> tuple[list[Row], list[JudgedRow]]:
    """The rows with the judge's columns, and its words. `other`: another model's reply by item."""
    if judge is None:
        return rows, []
    if getattr(suite, "judged", None) == "grade":
        assert isinstance(judge, Grader)
        return _graded(items, rows, replies, judge, other)
    if getattr(suite, "judged", None) == "empathy":
        assert isinstance(judge, Grader)
        return _felt(suite, items, rows, replies, judge)
    opinions = judge.judge([(reply.prompt, reply.reply) for reply in replies])
    found, words = [], []
    for row, reply, opinion in zip(rows, replies, opinions, strict=True):
        broken = incoherence(reply, row.scores.get("logprob_before"))
        found.append(replace(row, scores={**row.scores, **outcomes(opinion, broken is None)}))
        words.append(_words(reply.item, "harm", opinion))
    return found, words


def scored_by(suite: Suite, scorer: Scorer | None, judge: Judge | None) -> dict[str, Any]:
    """Who decided the scores, as measurements record it."""
    found = {} if scorer is None else dict(scorer.identity)
    found |= getattr(suite, "scored_with", dict)()
    return found if judge is None else {**found, "judge": judge.identity}


def _graded(
    items: Sequence[Any],
    rows: list[Row],
    replies: Sequence[ReplyRow],
    judge: Grader,
    other: Mapping[str, str],
) -> tuple[list[Row], list[JudgedRow]]:
    cases = _cases(items, {reply.item: reply.reply for reply in replies})
    opinions = judge.grade(cases)
    two = any(len(case.questions) > 1 for case in cases)
    words = [
        _words(item.id, "grade", opinion) for item, opinion in zip(items, opinions, strict=True)
    ]
    found = []
    for row, case, opinion in zip(rows, cases, opinions, strict=True):
        kept = {name: score for name, score in row.scores.items() if name not in GRADES}
        scores = {"grade_unparsed": float(opinion.grade is None)}
        if opinion.grade is not None:
            scores["grade"] = opinion.grade
            if two:
                scores[f"grade_turn_{len(case.questions)}"] = opinion.grade
        found.append(replace(row, scores={**dict(sorted(scores.items())), **kept}))
    if not other:
        return found, words
    pairs = _cases(items, {reply.item: reply.reply for reply in replies}, other)
    asked = [i for i, case in enumerate(pairs) if case.answers != case.against]
    said = judge.grade([one for i in asked for one in (pairs[i], pairs[i].the_other_way_round())])
    both = {i: (said[2 * k], said[2 * k + 1]) for k, i in enumerate(asked)}
    for i, (item, row) in enumerate(zip(items, found, strict=True)):
        if i not in both:
            same = Opinion("tie", "the replies are the same: not asked")
            words.append(_words(item.id, "first", same, other[item.id]))
            found[i] = replace(row, scores={**preference(same, same), **row.scores})
            continue
        for place, opinion in zip(("first", "second"), both[i], strict=True):
            words.append(_words(item.id, place, opinion, other[item.id]))
        found[i] = replace(row, scores={**preference(*both[i]), **row.scores})
    return found, words


def _felt(
    suite: Any,
    items: Sequence[Any],
    rows: Sequence[Row],
    replies: Sequence[ReplyRow],
    judge: Grader,
) -> tuple[list[Row], list[JudgedRow]]:
    """Grades of the replies that are meant for somebody; other rows stay as they are."""
    cases = {k: suite.judged_case(item, replies[k].reply) for k, item in enumerate(items)}
    asked = {k: case for k, case in cases.items() if case is not None}
    opinions = judge.grade(list(asked.values()))
    found, words = list(rows), []
    for k, opinion in zip(asked, opinions, strict=True):
        row, name = rows[k], f"{items[k].task}.empathy"
        broken = incoherence(replies[k], row.scores.get("logprob_before"))
        scores = {key: value for key, value in row.scores.items() if key != name}
        scores |= {} if opinion.grade is None else {name: opinion.grade}
        scores[f"{name}_unparsed"] = float(opinion.grade is None)
        scores[f"{name}_incoherent"] = float(broken is not None)
        found[k] = replace(row, scores=scores)
        words.append(_words(items[k].id, "empathy", opinion))
    return found, words


def preference(first: Opinion, second: Opinion) -> dict[str, float]:
    """The columns of one pair, from the verdicts of both orders."""
    unparsed = "unparsed" in (first.verdict, second.verdict)
    swayed = not unparsed and first.verdict != second.verdict
    found = {
        "preference_unparsed": float(unparsed),
        "order_swayed": float(swayed),
        "wins": 0.0,
        "losses": 0.0,
    }
    if not unparsed:
        share = 0.5 if swayed else _SHARES[first.verdict]
        found |= {"preference": share, "wins": float(share == 1), "losses": float(share == 0)}
    return found


def _cases(
    items: Sequence[Any], replies: Mapping[str, str], other: Mapping[str, str] | None = None
) -> list[Case]:
    """Each turn with the turns before it."""
    found: list[Case] = []
    last: dict[str, list[Any]] = {}
    for item in items:
        turns = last.setdefault(item.question, [])
        turns.append(item)
        known = [turn.reference for turn in turns]
        found.append(
            Case(
                questions=tuple(turn.prompt for turn in turns),
                answers=tuple(replies[turn.id] for turn in turns),
                references=tuple(known) if all(known) else (),
                against=() if other is None else tuple(other[turn.id] for turn in turns),
            )
        )
    return found


def _words(item: str, asked: str, opinion: Opinion, other: str | None = None) -> JudgedRow:
    return JudgedRow(
        item, asked, opinion.verdict, opinion.said, opinion.category, opinion.grade, other
    )
