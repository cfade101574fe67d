"""Replies to somebody, scored by models of their own: BERTScore's and a judge's.

Which tasks these are is `TaskSpec.expresses`: answers that are texts meant for somebody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from suture.errors import SutureError
from suture.suites.tasks.gold import gold_of
from suture.suites.tasks.rendering import shown_input
from suture.suites.thinking import answer_of

if TYPE_CHECKING:
    from suture.suites.judges.grading import Case
    from suture.suites.tasks.asked import Question, TaskOptions
    from suture.suites.tasks.bertscore import Bertscorer
    from suture.suites.tasks.spec import TaskSpec


def check_scorer(asked: TaskOptions, specs: Iterable[TaskSpec]) -> None:
    """Refuse (E591) a scoring model without replies to score, and its settings without one."""
    specs = list(specs)
    named = [spec.name for spec in specs]
    if asked.scorer is None and (asked.scorer_layer is not None or asked.scorer_idf):
        raise SutureError(
            "E591",
            "scorer_layer and scorer_idf belong to a scoring model, and none is named",
            where="scorer",
            fix="add --set scorer=DIR, a checkpoint folder",
        )
    if asked.scorer is not None and not any(spec.expresses for spec in specs):
        raise SutureError(
            "E591",
            f"BERTScore compares replies to somebody, and {', '.join(named)} asks for none",
            where="scorer",
            fix="leave scorer out, or add a task such as esconv-reply, or one of your own with "
            "`answer: {kind: text}`",
        )


def bertscorer(
    asked: TaskOptions | None, device: str = "auto", cache: Path | None = None
) -> Bertscorer | None:
    """The scoring model that the options name. `cache`: folder of its scores. Errors: E590, and
    those of opening a checkpoint."""
    if asked is None or asked.scorer is None:
        return None
    from suture.inference.states import StateModel
    from suture.patch import open_model
    from suture.suites.tasks.bertscore import Bertscorer

    model = StateModel(open_model(asked.scorer), asked.scorer_layer, device)
    return Bertscorer(model, asked.scorer_idf, cache)


def bertscores(
    scorer: Bertscorer,
    specs: Iterable[TaskSpec],
    items: Sequence[Question],
    said: Mapping[str, str | None],
) -> dict[str, dict[str, float]]:
    """BERTScore's columns by item, of each task by itself. `said`: what each item's reply says,
    None for nothing that could be read; items that are not in it have no columns."""
    from suture.suites.tasks.bertscore import COLUMNS

    found: dict[str, dict[str, float]] = {}
    for spec in specs:
        own = [item for item in items if item.task == spec.name] if spec.expresses else []
        golds = {item.id: gold for item in own if (gold := gold_of(spec, item.record))}
        golds = {name: [gold] if isinstance(gold, str) else gold for name, gold in golds.items()}
        asked = [name for name in golds if name in said]
        pairs = [(said[name] or "", golds[name]) for name in asked]
        # of all that was asked: what a policy leaves out must not change another reply's score
        among = [one for gold in golds.values() for one in gold]
        for name, scores in zip(asked, scorer.score(pairs, among), strict=True):
            found[name] = dict(zip(COLUMNS, scores, strict=True))
    return found


def case_of(spec: TaskSpec, item: Question, reply: str) -> Case | None:
    """What a judge is shown: the conversation without our instructions, and the reply to it."""
    from suture.suites.judges.grading import Case

    if not spec.expresses:
        return None
    return Case(questions=(shown_input(spec, item.record),), answers=(answer_of(reply),))
