"""Per-row logs without a model: TOFU's published ones, and measurement files of our own.

TOFU's `eval_log_aggregated.json` (plain or gzipped) holds one object per set and in it one mapping
of row number to value for each quantity. What is read: `avg_gt_loss`, `avg_paraphrased_loss`,
`average_perturb_loss` (losses per token, end token included), `rougeL_recall` and
`generated_text` ([question, reply, answer]). TOFU's own `truth_ratio` is not read: it is computed
anew from the losses, in both forms. open-unlearning's `TOFU_EVAL.json` holds the same losses under
other names (`forget_Q_A_PARA_Prob` and so on, `value_by_index`).

Rows are keyed by their number, never by their text. A row in which a needed value is null counts
on neither side. Where both logs hold the answers, they must be the same ones: the log of the model
trained on everything is published on forget10 only, and pairing it with a reference of another
split mixes rows.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suture.config import FrozenConfig
from suture.data import sha256_file
from suture.errors import SutureError
from suture.ledger import Measurement, ReplyRow, Row
from suture.suites.forgetting.columns import Kind, fact_scores
from suture.suites.forgetting.overlap import words

_SETS: dict[str, Kind] = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "authors",
    "eval_real_world_wo_options.json": "world",
}
# open-unlearning's beginnings of names, and what they end in
_OPEN_UNLEARNING: dict[str, Kind] = {
    "forget": "forget",
    "retain": "retain",
    "ra": "authors",
    "wf": "world",
}
_OPEN_COLUMNS = {
    "avg_gt_loss": ("Q_A_Prob", "avg_loss"),
    "avg_paraphrased_loss": ("Q_A_PARA_Prob", "avg_loss"),
    "average_perturb_loss": ("Q_A_PERT_Prob", "avg_loss"),
    "rougeL_recall": ("Q_A_ROUGE", "rougeL_recall"),
}
_HOW = "suture measure SUITE --model ORACLE --reference none -o reference.json"


@dataclass(frozen=True)
class Log:
    """What a published log holds. `dropped`: items in which a value is missing, whose rows have no
    scores. `truths`: the right answer of each item, where the log has it."""

    rows: list[Row]
    replies: list[ReplyRow]
    dropped: list[str]
    truths: Mapping[str, str]

    @property
    def answers(self) -> str | None:
        """The hash of the answers to forget."""
        found = {item: text for item, text in self.truths.items() if item.startswith("forget/")}
        return answers_sha256(found) if found else None


@dataclass(frozen=True)
class Reference:
    """A model that never saw the rows to forget, as its scores by item.

    `fingerprint`: of its weights where they are known, else "sha256:" and the hash of the file.
    `answers`, `holdout`: hashes of the rows to forget and of those held out, where they are known.
    `options`: of the suite that it was measured with.
    """

    file: Path
    fingerprint: str
    rows: Mapping[str, Mapping[str, float]]
    answers: str | None = None
    holdout: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> list[float]:
        """The values of one column."""
        return [scores[name] for scores in self.rows.values() if name in scores]

    def check_rows(self, items: Collection[str], answers: str | None) -> None:
        """Refuse (E550) to be compared with other rows to forget than its own.

        `items`: theirs; `answers`: hash of their answers, which must be the same where both know.
        """
        own = {item for item in self.rows if item.startswith("forget/")}
        if odd := sorted(own ^ set(items)):
            raise self.of_other_rows(
                f"{len(set(items))} rows to forget here, {len(own)} there", f", row {odd[0]}"
            )
        if answers and self.answers and answers != self.answers:
            raise self.of_other_rows("the answers to forget differ")

    def check_holdout(self, answers: str | None) -> None:
        """Refuse (E550) held-out rows of other `answers`, a hash, where both are known."""
        if answers and self.holdout and answers != self.holdout:
            raise self.of_other_rows("the held-out answers differ")

    def check_asked(self, asked: FrozenConfig, keys: Collection[str]) -> None:
        """Refuse (E563) to be compared with what was measured with other options than its own.

        `asked`: the options of the suite; a key that is not among its own stood at the default.
        """
        told = {key: self.options[key] for key in keys if key in self.options}
        theirs = type(asked).load(told, where=str(self.file))
        for key in keys:
            own, here = getattr(theirs, key), getattr(asked, key)
            if own != here:
                raise SutureError(
                    "E563",
                    f"the reference was measured with {key}={own}, this is {key}={here}",
                    where=str(self.file),
                    why="the two numbers would be of different things",
                    fix=f"use --set {key}={own}, or measure the reference with {key}={here}",
                )

    def of_other_rows(self, what: str, row: str = "") -> SutureError:
        """E550, to be raised."""
        return SutureError(
            "E550",
            f"the reference is of other rows: {what}",
            where=f"{self.file}{row}",
            why="forget quality compares the same rows, and its steps depend on their number",
            fix="give the log of the reference model on the same split and the same number of rows",
        )

    def attacked(self) -> tuple[list[float], list[float]]:
        """Min-k scores of rows to forget and of held-out rows (E552: it has not both)."""
        members = self.column("forget_attack_min_k")
        others = self.column("holdout_attack_min_k")
        if not members or not others:
            raise SutureError(
                "E552",
                "PrivLeak needs the reference's own AUC, and its file has no held-out rows",
                where=str(self.file),
                why="a constant instead of it would move the zero of PrivLeak",
                fix="measure the reference with the same held-out rows, or give a published value "
                "with --set a_retrain=0.5393",
            )
        return members, others

    def relearned(self) -> tuple[float, float]:
        """Its forget_probability before and after relearning (E553: it was not probed)."""
        before = self.column("forget_probability")
        after = self.column("forget_probability_relearned")
        if not before or not after:
            raise SutureError(
                "E553",
                "relearning is judged by what the reference gains, and its file does not say",
                where=str(self.file),
                fix="measure the reference with the same --set probes=[relearn]",
            )
        return math.fsum(before) / len(before), math.fsum(after) / len(after)


def read_reference(path: str | Path) -> Reference:
    """A measurement file or a published log as a reference.

    Errors: E548 no such file, E549 neither of the two.
    """
    path = Path(path)
    if not path.is_file():
        raise SutureError(
            "E548",
            "there is no reference file",
            where=str(path),
            why="forget quality compares with a model trained without the rows to forget",
            fix=f"make it once: {_HOW}",
        )
    content = _load(path)
    digest = f"sha256:{sha256_file(path)}"
    if is_measurement(content):
        found = Measurement.load(path)
        rows = {row.item: row.scores for row in found.rows}
        return Reference(
            path,
            found.model.get("fingerprint") or digest,
            rows,
            answers=found.data.get("answers_sha256"),
            holdout=found.data.get("holdout_sha256"),
            options=found.data.get("options", {}),
        )
    log = _read(path, content)
    rows = {row.item: row.scores for row in log.rows}
    return Reference(path, digest, rows, log.answers)


def read_log(path: Path, authors: int = 20) -> Log | Measurement:
    """A published log, or a measurement of our own, to be scored again. Error E549: neither.

    `authors`: as in `author_of`.
    """
    content = _load(path)
    return Measurement.load(path) if is_measurement(content) else _read(path, content, authors)


def is_measurement(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object is one of our own files."""
    return "rows" in content and "metrics" in content


def answers_sha256(answers: Mapping[str, str]) -> str:
    """Hash of answers by item, of their words only: tokenizers change blanks and signs."""
    digest = hashlib.sha256()
    for item in sorted(answers):
        text = " ".join(words(answers[item], stemmed=False))
        digest.update(f"{item}\0{text}\n".encode())
    return digest.hexdigest()


def _load(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        content = json.loads(raw)
    except (OSError, EOFError, ValueError) as error:
        raise _no_log(path, str(error)) from None
    if not isinstance(content, dict):
        raise _no_log(path, "it is not a JSON object")
    return content


def _read(path: Path, content: Mapping[str, Any], authors: int = 20) -> Log:
    sets = {kind: content[name] for name, kind in _SETS.items() if name in content}
    sets = sets or _of_open_unlearning(path, content)
    if "forget" not in sets:
        raise _no_log(path, f"it has no '{next(iter(_SETS))}' and no 'forget_Q_A_Prob'")
    rows: list[Row] = []
    replies: list[ReplyRow] = []
    dropped: list[str] = []
    truths: dict[str, str] = {}
    for kind, columns in sets.items():
        texts = columns.get("generated_text", {})
        for number, values in _by_row(path, kind, columns).items():
            item = f"{kind}/{number}"
            scores: dict[str, float] = {}
            if values is None:
                dropped.append(item)
            else:
                loss, right, wrong, rouge = values
                scores = fact_scores(kind, loss=loss, right=right, wrong=wrong, rouge=rouge)
            rows.append(Row(item, scores, author_of(kind, number, authors)))
            if isinstance(said := texts.get(number), list) and len(said) == 3:
                asked, reply, truth = map(str, said)
                replies.append(ReplyRow(item, asked, reply, True, len(reply.split())))
                truths[item] = truth
    if not any(row.scores for row in rows):
        raise _no_log(path, "no row has all its values")
    return Log(rows, replies, dropped, truths)


def _of_open_unlearning(path: Path, content: Mapping[str, Any]) -> dict[Kind, Any]:
    """open-unlearning's log in the shape of TOFU's; nothing where it is none."""
    found: dict[Kind, Any] = {}
    try:
        for beginning, kind in _OPEN_UNLEARNING.items():
            columns: dict[str, Any] = {}
            for name, (ending, value) in _OPEN_COLUMNS.items():
                metric = content.get(f"{beginning}_{ending}")
                if metric is not None:
                    by_row = metric["value_by_index"]
                    columns[name] = {number: row[value] for number, row in by_row.items()}
            if columns:
                found[kind] = columns
            texts = content.get(f"{beginning}_Q_A_ROUGE")
            if columns and texts is not None:
                columns["generated_text"] = {
                    number: [row["input"], row["generation"], row["ground_truth"]]
                    for number, row in texts["value_by_index"].items()
                }
    except (KeyError, TypeError, AttributeError) as error:
        raise _no_log(path, f"a metric has no value by row: {error}") from None
    return found


def author_of(kind: Kind, number: str | int, authors: int = 20) -> str | None:
    """The cluster of a row: TOFU asks twenty questions about each author, in order.

    `authors`: rows about one of them; 0: every row stands for itself.
    """
    if kind not in ("forget", "retain") or authors < 1 or not str(number).isdigit():
        return None
    return f"{kind}/author/{int(number) // authors}"


def _by_row(
    path: Path, kind: Kind, columns: Any
) -> dict[str, tuple[float, float | None, list[float], float | None] | None]:
    """Loss, loss of the paraphrase, losses of the wrong answers and ROUGE by row number."""
    if not isinstance(columns, Mapping) or not isinstance(columns.get("avg_gt_loss"), Mapping):
        raise _no_log(path, f"the set '{kind}' has no avg_gt_loss by row")
    found: dict[str, tuple[float, float | None, list[float], float | None] | None] = {}
    for name in ("average_perturb_loss", "avg_paraphrased_loss", "rougeL_recall"):
        there = columns.get(name)
        if there is not None and (
            not isinstance(there, Mapping) or there.keys() != columns["avg_gt_loss"].keys()
        ):
            raise _no_log(path, f"'{name}' of the set '{kind}' has other rows than avg_gt_loss")
    for number, loss in columns["avg_gt_loss"].items():
        right = _of(columns, "avg_paraphrased_loss", number)
        wrong = _of(columns, "average_perturb_loss", number)
        rouge = _of(columns, "rougeL_recall", number)
        values = [loss, *(v for v in (right, rouge) if v is not _ABSENT)]
        values += (wrong if isinstance(wrong, list) else [wrong]) if wrong is not _ABSENT else []
        if any(value is None for value in values) or wrong == []:
            found[str(number)] = None
            continue
        if not all(_finite(value) for value in values):
            raise _no_log(path, f"a value of row {number} of the set '{kind}' is not a number")
        found[str(number)] = (
            float(loss),
            None if right is _ABSENT else float(right),
            [] if wrong is _ABSENT else [float(v) for v in wrong],
            None if rouge is _ABSENT else float(rouge),
        )
    return found


_ABSENT: Any = object()


def _of(columns: Mapping[str, Any], name: str, number: str) -> Any:
    return columns[name][number] if columns.get(name) is not None else _ABSENT


def _finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _no_log(path: Path, what: str) -> SutureError:
    return SutureError(
        "E549",
        f"not a log of forgetting: {what}",
        where=str(path),
        fix="give TOFU's eval_log_aggregated.json (or .gz), or a file of `suture measure tofu`",
    )
