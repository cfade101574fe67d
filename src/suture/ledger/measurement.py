"""The rows of one suite on one model, and their files.

A measurement file is JSON: what was measured (suite, data, template, decoding, scorer), on which
weights (fingerprint), the averages and one row per item. The replies lie beside it in
`<stem>.replies.jsonl`, readable by the owner only, so that scores can be shared and replies stay.
A judge's own words lie in `<stem>.judged.jsonl`, readable by the owner too: they quote replies.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from suture.checkpoint.jsonfile import write_atomic
from suture.errors import SutureError, nearest

Better = Literal["higher", "lower"]
_UNSAVED = ("replies", "judged", "file")  # the first two have files of their own


@dataclass(frozen=True)
class Row:
    """The scores of one item. A metric that does not apply to the item has no entry.

    `cluster` names the group of items that are not independent (author, subject, base prompt).
    """

    item: str
    scores: dict[str, float]
    cluster: str | None = None


@dataclass(frozen=True)
class ReplyRow:
    """What the model said to one item; `ended` is False when the token limit cut it off."""

    item: str
    prompt: str
    reply: str
    ended: bool
    tokens: int


@dataclass(frozen=True)
class JudgedRow:
    """What a judge said to one item, word for word.

    `asked`: harm, grade, or, of a pair, whether this reply stood first or second. `verdict`: how
    the words were read. `category`: of harm, `grade`: the number, where there is one. `other`: the
    reply that this one was compared with.
    """

    item: str
    asked: str
    verdict: str
    said: str
    category: str | None = None
    grade: float | None = None
    other: str | None = None


@dataclass(frozen=True)
class Measurement:
    """One suite on one model.

    `model`: fingerprint (None when `identity` is "declared"), path, patches (their fingerprints),
    identity, dtype, device.
    `data`: name, sha256 of the items in canonical JSON, n, limit. `template`: fingerprint.
    `decoding`: greedy, max_new_tokens. `scorer`: name and sha256 of its phrase list, if any.
    `before`: fingerprint of the model that log-probabilities or KL refer to, if any.
    `replies_sha256`: of the replies scored, known even where they are not kept.
    `metrics`: mean of each score over the rows that have it. `better`: direction of each metric.
    `derived`: by name what is known of a metric beyond its value: {value, definition, direction, n,
    best?, interval?, reference? (fingerprint), inputs?}. Here stand all metrics that are no mean of
    rows (a p-value, an AUC, a harmonic mean); each is in `metrics` and `better` too.
    `file`: where it was loaded from.
    """

    suite: str
    model: dict[str, Any]
    n: int
    metrics: dict[str, float]
    better: dict[str, Better]
    rows: list[Row]
    data: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    scorer: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    derived: dict[str, dict[str, Any]] = field(default_factory=dict)
    replies_sha256: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    replies: Sequence[ReplyRow] = field(default=(), repr=False, compare=False)
    judged: Sequence[JudgedRow] = field(default=(), repr=False, compare=False)
    file: str | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The content of the file, without replies and judge's words."""
        head = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("rows", *_UNSAVED) and (name != "derived" or self.derived)
        }
        return {**head, "rows": [_row_dict(row) for row in self.rows]}

    def save(self, path: str | Path, *, redact: bool = False) -> Path:
        """Write the measurement and, unless `redact`, replies and judge's words (mode 600).

        The measurement is mode 644, or 600 where its suite says that it is about people
        (`data["private"]`).

        Each file appears whole or not at all. With `redact` older files beside it are removed.
        """
        path = Path(path)
        content = self.as_dict()
        rows = content.pop("rows")
        try:
            head = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)
            lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
        except ValueError:
            raise SutureError(
                "E601",
                "a score is not a finite number",
                where=f"{self.suite} on {self.model.get('path', 'the model')}",
                why="averages and intervals would be meaningless",
                fix="check the model's weights with `suture inspect`",
            ) from None
        for beside, found in ((replies_path(path), self.replies), (judged_path(path), self.judged)):
            if redact or not found:
                beside.unlink(missing_ok=True)
            else:
                _save_lines(beside, found)
        mode = 0o600 if self.data.get("private") else 0o644
        _write(path, f'{head[:-2]},\n "rows": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n", mode)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Measurement:
        """Read a measurement file; E602 says what is wrong with one that cannot be used."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        except OSError as error:
            raise _absent(path, error, "E602", "the measurement file") from None
        except ValueError as error:
            raise _unusable(path, str(error)) from None
        if not isinstance(content, dict):
            raise _unusable(path, "the file is not a JSON object")
        for key, kind in (("suite", str), ("model", dict), ("metrics", dict), ("rows", list)):
            if not isinstance(content.get(key), kind):
                raise _unusable(path, f"'{key}' is missing or not a {kind.__name__}")
        if "fingerprint" not in content["model"]:
            raise _unusable(path, "'model' has no 'fingerprint'")
        rows = [_read_row(path, index, row) for index, row in enumerate(content["rows"])]
        if not rows:
            raise _unusable(path, "there are no rows")
        items = {row.item for row in rows}
        if len(items) != len(rows):
            raise _unusable(path, "an item appears twice in 'rows'")
        if content.get("n", len(rows)) != len(rows):
            raise _unusable(path, f"n is {content['n']}, but there are {len(rows)} rows")
        names = {score for row in rows for score in row.scores}
        known = {k: content[k] for k in cls.__dataclass_fields__ if k in content}
        optional = ("better", "data", "template", "decoding", "scorer", "before", "versions")
        for key in optional:
            if not isinstance(known.setdefault(key, {}), dict):
                raise _unusable(path, f"'{key}' is not an object")
        if not isinstance(known.get("replies_sha256"), str | None):
            raise _unusable(path, "'replies_sha256' is not a text")
        if any(value not in ("higher", "lower") for value in known["better"].values()):
            raise _unusable(path, "a value in 'better' is neither 'higher' nor 'lower'")
        derived = known.setdefault("derived", {})
        if not isinstance(derived, dict) or not all(isinstance(d, dict) for d in derived.values()):
            raise _unusable(path, "'derived' is not an object of objects")
        for name, about in derived.items():
            if about.get("value") != known["metrics"].get(name):
                raise _unusable(path, f"'derived' and 'metrics' differ in '{name}'")
        lost = sorted(set(known["metrics"]) - names - set(derived))
        if lost:
            raise _unusable(path, f"metric '{lost[0]}' has no row behind it")
        for name in _UNSAVED:
            known.pop(name, None)
        return cls(**{**known, "rows": rows, "n": len(rows), "file": str(path)})


def mean_scores(rows: Iterable[Row]) -> dict[str, float]:
    """The average of each score over the rows that have it, summed exactly (math.fsum)."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.scores.items():
            columns.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in columns.items()}


def replies_path(measurement: str | Path) -> Path:
    """Where the replies of a measurement file lie: `safety.json` has `safety.replies.jsonl`."""
    path = Path(measurement)
    return path.with_name(f"{path.stem}.replies.jsonl")


def judged_path(measurement: str | Path) -> Path:
    """Where a judge's words on the replies lie: `safety.json` has `safety.judged.jsonl`."""
    path = Path(measurement)
    return path.with_name(f"{path.stem}.judged.jsonl")


def load_judged(measurement: str | Path) -> list[JudgedRow]:
    """The judge's words beside a measurement file; none where there is no file (E603 a bad one)."""
    path = judged_path(measurement)
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [JudgedRow(**json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise _bad_replies(path, 0, str(error)) from None


def replies_sha256(replies: Iterable[ReplyRow]) -> str:
    """SHA-256 of the replies in canonical JSON, one line each: how a measurement knows its own."""
    digest = hashlib.sha256()
    for row in replies:
        line = json.dumps(asdict(row), sort_keys=True, separators=(",", ":"))
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()


def save_replies(path: Path, replies: Iterable[ReplyRow]) -> None:
    """One JSON object per line, mode 600."""
    _save_lines(path, replies)


def _save_lines(path: Path, rows: Iterable[ReplyRow | JudgedRow]) -> None:
    """One JSON object per line, mode 600."""
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    _write(path, "".join(lines), 0o600)


def load_replies(path: str | Path) -> list[ReplyRow]:
    """Read a replies file: {item, reply} at least; prompt, ended and tokens where known.

    Replies made elsewhere may lack `ended` (taken as True) and `tokens` (words are counted).
    Answers in FastChat's form (question_id, choices[0].turns) are items QUESTION/1 and QUESTION/2.
    """
    path = Path(path)
    found: list[ReplyRow] = []
    lines: dict[str, int] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _absent(path, error, "E603", "the replies file") from None
    except ValueError as error:
        raise _bad_replies(path, 0, str(error)) from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _bad_replies(path, number, str(error)) from None
        for one in _turns(row):
            item = one.get("item", one.get("id")) if isinstance(one, dict) else None
            if item is None or not isinstance(one.get("reply"), str):
                raise _bad_replies(path, number, "needs 'item' and a text 'reply'")
            reply: str = one["reply"]
            tokens = int(one.get("tokens", len(reply.split())))
            prompt = str(one.get("prompt") or "")
            ended = one.get("ended", True)
            if not isinstance(ended, bool):
                raise _bad_replies(path, number, f"'ended' is {ended!r}, neither true nor false")
            if str(item) in lines:
                twice = f"item '{item}' stands in line {lines[str(item)]} already"
                raise _bad_replies(path, number, twice)
            lines[str(item)] = number
            found.append(ReplyRow(str(item), prompt, reply, ended, tokens))
    if not found:
        raise _bad_replies(path, 0, "the file is empty")
    return found


def _turns(row: Any) -> list[Any]:
    """A line of FastChat's answers as one row per turn; any other line as it is."""
    try:
        turns, name = row["choices"][0]["turns"], row["question_id"]
    except (KeyError, IndexError, TypeError):
        return [row]
    return [{"item": f"{name}/{k}", "reply": text} for k, text in enumerate(turns, 1)]


def _row_dict(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"item": row.item, "scores": row.scores}
    return record if row.cluster is None else {**record, "cluster": row.cluster}


def _read_row(path: Path, index: int, row: Any) -> Row:
    scores = row.get("scores") if isinstance(row, dict) else None
    if not isinstance(scores, Mapping) or not isinstance(row.get("item"), str | int):
        raise _unusable(path, f"rows[{index}] needs 'item' and 'scores'")
    for name, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _unusable(path, f"rows[{index}].scores.{name} is not a number")
    cluster = row.get("cluster")
    values = {str(name): float(value) for name, value in scores.items()}
    return Row(str(row["item"]), values, None if cluster is None else str(cluster))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that can be compared")


def _write(path: Path, text: str, mode: int) -> None:
    """Atomically: a reader sees the old file or the whole new one, with `mode` from the start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode("utf-8"), mode=mode)


def _absent(path: Path, error: OSError, code: str, what: str) -> SutureError:
    """A file that is not there: the nearest one beside it, or how it is made."""
    reason = "it is a folder" if path.is_dir() else (error.strerror or str(error)).lower()
    there = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, [name for name in there if name != path.name])
    makes = "make it with `suture measure SUITE --model DIR -o FILE`"
    if code == "E603":
        makes = "replies lie beside a measurement unless it was made with --redact; give --replies"
    return SutureError(
        code,
        f"cannot read {what}: {reason}",
        where=str(path),
        fix=f"did you mean '{path.parent / close}'?" if close else makes,
    )


def _unusable(path: Path, what: str) -> SutureError:
    return SutureError(
        "E602",
        f"not a usable measurement: {what}",
        where=str(path),
        fix="make it again with `suture measure`",
    )


def _bad_replies(path: Path, line: int, what: str) -> SutureError:
    return SutureError(
        "E603",
        f"not a usable replies file: {what}",
        where=f"{path}:{line}" if line else str(path),
        fix='give one JSON object per line: {"item": "1", "reply": "text"}',
    )
