"""Score the replies of a measurement again, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.ledger import (
    Measurement,
    Row,
    load_judged,
    load_replies,
    replies_path,
    replies_sha256,
)
from suture.suites import scorers
from suture.suites.assembling import (
    data_files,
    declared,
    in_order,
    numbers,
    others,
    spoken,
    untold,
)
from suture.suites.common import Suite, items_sha256, part_of
from suture.suites.finding import load_suite
from suture.suites.judging import check_judge, judged, scored_by
from suture.suites.scorers import Scorer

if TYPE_CHECKING:
    from suture.suites.judges import Judge


def rescore(
    measurement: str | Path,
    replies: str | Path | None = None,
    out: str | Path | None = None,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    scorer: Scorer | None = None,
    judge: Judge | None = None,
) -> Measurement:
    """Score saved replies again, with today's phrases, without a model; with `judge`, judge them.

    `replies`: default, the file beside the measurement. `data`: default, the files the measurement
    names; their items must be the ones measured (E523). Scores that need the model (log-likelihood,
    `logprob_before`) are kept as they are. Replies other than those measured, by their SHA-256,
    cannot be traced to the model: they are scored as `measure(..., replies=...)` does, for a model
    that is only declared, with the scores that follow from the texts. Written to `out` if given.
    """
    old = Measurement.load(measurement)
    asked = old.data.get("options")
    suite = load_suite(str(old.data.get("suite", old.suite)), asked)  # a run may give it a label
    if judge is not None:
        check_judge(suite, judge)
    texts = Path(replies) if replies is not None else replies_path(measurement)
    files = data_files(suite, data if data is not None else untold(old.data.get("files")))
    items = part_of(suite.read(files, old.data.get("limit")), old.data.get("part"))
    if items_sha256(items) != old.data.get("sha256"):
        raise SutureError(
            "E523",
            "the data is not what was measured",
            where=", ".join(map(str, files)),
            why="labels and answers could belong to other items",
            fix="give the same files with --data, or measure again",
        )
    if scorer is None and suite.scorer is not None:
        scorer = scorers.load(suite.scorer)
    found = in_order(suite, spoken(suite, items), load_replies(texts), texts)
    digest = replies_sha256(found)
    kept = {row.item: row.scores for row in old.rows}
    if digest != old.replies_sha256:
        kept = {}
        model = declared(str(old.model.get("path", "model")))
        decoding = {"declared": True}
        old = replace(old, model=model, decoding=decoding, template={}, before={})
    elif (without := getattr(suite, "without_models", None)) is not None:
        suite = without()
    rows = [
        # in the order of the old columns, so that scoring twice gives the same bytes
        Row(row.item, {**kept.get(row.item, {}), **row.scores}, row.cluster)
        for row in suite.score(items, found, scorer)
    ]
    words = load_judged(measurement)
    if judge is not None:
        other = others(suite, items, words)
        rows, words = judged(suite, items, rows, found, judge, other)
    elif digest != old.replies_sha256:
        words = []
    metrics, derived = numbers(suite, rows)
    directions = {**old.better, **suite.metrics}
    new = replace(
        old,
        rows=rows,
        metrics=metrics,
        derived=derived,
        better={name: directions[name] for name in metrics if name in directions},
        scorer=_again(suite, scorer, judge, old, rows),
        replies_sha256=digest,
        replies=found,
        judged=words,
    )
    if out is not None:
        new.save(out)
    return new


def _again(
    suite: Suite, scorer: Scorer | None, judge: Judge | None, old: Measurement, rows: list[Row]
) -> dict[str, Any]:
    """What a judge or a scoring model found before and was not asked again stays, and so does who
    said it."""
    found = scored_by(suite, scorer, judge)
    columns = {name.rpartition(".")[2] for row in rows for name in row.scores}
    for who, said in (
        ("judge", {"judged_safe", "grade_unparsed", "empathy_unparsed"}),
        ("bertscore", {"bertscore_f1"}),
    ):
        if who not in found and who in old.scorer and columns & said:
            found[who] = old.scorer[who]
    return found
