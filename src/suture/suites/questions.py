"""Questions with known answers, read from the shapes that published benchmarks come in.

A file is JSONL, JSON (a list, or an object with `examples`), CSV or TSV, plain or gzipped. Each row
is recognised by its columns:

    prompt, options, answer                    ours, multiple choice; answer is an index
    prompt, answer                             ours, to be answered in words
    question, choices, answer                  MMLU; also choice0.. or A.. columns, and MMLU's CSV
                                               without a header (question, A, B, C, D, letter)
    question, choices {text, label}, answerKey ARC, OpenBookQA, CommonsenseQA from the Hub
    question {stem, choices}, answerKey        the same as first published
    question, passage, answer (true or false)  BoolQ
    goal, sol1, sol2, label                    PIQA
    sentence, option1, option2, answer         WinoGrande
    ctx, endings, label                        HellaSwag
    premise, choice1, choice2, question, label COPA, XCOPA
    question, answer "... #### 42"             GSM8K; what stands before #### is shown in examples
    input, target                              BIG-Bench Hard

The category of a row without one is its file's name, so that examples of the same subject are
found (`anatomy_test.csv`, `anatomy_dev.csv`). A row of no known shape is an error (E535).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from suture.config import FrozenConfig
from suture.data.records import Text
from suture.errors import SutureError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SPLIT = re.compile(r"[_.-](test|dev|train|val|validation|heldout)$")
Raw = Mapping[str, Any]


class Question(FrozenConfig):
    """One question: to choose from `options` (`answer` is an index) or to answer in words."""

    id: Text = Field(description="unique name of the item")
    prompt: Text = Field(description="the question")
    options: list[Text] = Field(default=[], description="the possible answers; none: open")
    answer: int | None = Field(None, ge=0, description="index of the right option")
    target: Text | None = Field(None, description="the right answer of an open question")
    worked: Text | None = Field(None, description="the answer with its steps, for examples")
    category: str | None = Field(None, description="subject; examples are taken from the same")
    cluster: str | None = Field(None, description="rows of one cluster are not independent")

    @property
    def solution(self) -> str:
        """What an example shows as the answer."""
        if self.answer is not None:
            return self.options[self.answer]
        return self.worked or self.target or ""


def read_questions(path: Path) -> list[Question]:
    """Every row of `path`; E535 names the first that is no question, E302 a file without rows."""
    category = _SPLIT.sub("", path.name.split(".")[0])
    found = [_question(path, number, raw, category) for number, raw in file_rows(path)]
    if not found:
        raise SutureError("E302", "the file has no rows", where=str(path))
    return found


def _question(path: Path, number: int, raw: Raw, category: str) -> Question:
    for needed, convert in _SHAPES:
        if needed <= raw.keys():
            try:
                values = convert(raw)
                if values is None:
                    continue
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                said = (
                    str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
                )
                raise _strange(path, number, said) from None
            values.setdefault("category", raw.get("category") or raw.get("subject") or category)
            identity = raw.get("id", raw.get("ind", raw.get("idx")))
            values["id"] = f"{category}/{number}" if identity is None else str(identity)
            values["cluster"] = raw.get("cluster")
            question = Question.load(values, where=f"{path}:{number}")
            if question.options and not 0 <= (question.answer or 0) < len(question.options):
                raise _strange(path, number, f"there is no option {question.answer}")
            return question
    raise _strange(path, number, f"columns {', '.join(map(str, list(raw)[:8]))}")


def _ours(raw: Raw) -> dict[str, Any]:
    return {"prompt": raw["prompt"], "options": list(raw["options"]), "answer": _place(raw)}


def _place(raw: Raw) -> int:
    """The index of the right option: given as such, as a letter, or as the option's own text."""
    given, options = raw["answer"], [str(one) for one in raw["options"]]
    text = str(given).strip()
    if not isinstance(given, str) or text.isdigit():
        return int(given)
    if options.count(text) == 1:
        return options.index(text)
    letter = text.strip("().").upper()
    if len(letter) == 1 and letter in LETTERS[: len(options)]:
        return LETTERS.index(letter)
    raise ValueError(
        f"answer {text!r} is no option: give its index from 0, its letter, or its text"
    )


def _ours_open(raw: Raw) -> dict[str, Any]:
    return {"prompt": raw["prompt"], "target": str(raw["answer"]), "worked": raw.get("worked")}


def _mmlu(raw: Raw) -> dict[str, Any] | None:
    options = raw["choices"]
    if not isinstance(options, list):
        return None
    return {"prompt": raw["question"], "options": options, "answer": _index(raw["answer"])}


def _columns(raw: Raw) -> dict[str, Any] | None:
    keys = [k for k in raw if re.fullmatch(r"choice_?\d|option_?\d|[A-H]", k)]
    if len(keys) < 2:
        return None
    options = [str(raw[key]) for key in sorted(keys) if raw[key] not in (None, "")]
    return {"prompt": raw["question"], "options": options, "answer": _index(raw["answer"])}


def _labelled(raw: Raw) -> dict[str, Any]:
    """ARC and CommonsenseQA: options with labels, nested in one of two ways."""
    asked = raw.get("question", raw.get("question_stem"))
    choices = raw.get("choices")
    if isinstance(asked, Mapping):
        asked, choices = asked["stem"], asked["choices"]
    if isinstance(choices, Mapping):
        texts, labels = list(choices["text"]), [str(one) for one in choices["label"]]
    else:
        assert isinstance(choices, list)
        texts = [one["text"] for one in choices]
        labels = [str(one["label"]) for one in choices]
    return {"prompt": asked, "options": texts, "answer": labels.index(str(raw["answerKey"]))}


def _boolq(raw: Raw) -> dict[str, Any] | None:
    answer = raw.get("answer", raw.get("label"))
    if isinstance(answer, str) and answer.casefold() in ("true", "false", "yes", "no"):
        answer = answer.casefold() in ("true", "yes")
    if not isinstance(answer, bool | int):
        return None
    asked = str(raw["question"]).rstrip("?") + "?"
    return {
        "prompt": f"{raw['passage']}\n{asked[0].upper()}{asked[1:]}",
        "options": ["no", "yes"],
        "answer": int(answer),
    }


def _piqa(raw: Raw) -> dict[str, Any]:
    return {
        "prompt": raw["goal"],
        "options": [raw["sol1"], raw["sol2"]],
        "answer": int(raw["label"]),
    }


def _winogrande(raw: Raw) -> dict[str, Any]:
    return {
        "prompt": f"{raw['sentence']}\nWhat does _ stand for?",
        "options": [raw["option1"], raw["option2"]],
        "answer": int(raw["answer"]) - 1,
    }


def _hellaswag(raw: Raw) -> dict[str, Any]:
    return {"prompt": raw["ctx"], "options": list(raw["endings"]), "answer": int(raw["label"])}


def _copa(raw: Raw) -> dict[str, Any]:
    asked = {"cause": "What was the cause?", "effect": "What happened as a result?"}
    return {
        "prompt": f"{raw['premise']}\n{asked[raw['question']]}",
        "options": [raw["choice1"], raw["choice2"]],
        "answer": int(raw["label"]),
    }


def _gsm8k(raw: Raw) -> dict[str, Any] | None:
    text = str(raw["answer"])
    if "####" not in text:
        return {"prompt": raw["question"], "target": text}
    steps, _, number = text.rpartition("####")
    steps = re.sub(r"<<[^<>]*>>", "", steps).strip()
    worked = f"{steps}\nThe answer is {number.strip()}." if steps else None
    return {"prompt": raw["question"], "target": number.strip().replace(",", ""), "worked": worked}


def _bbh(raw: Raw) -> dict[str, Any]:
    return {"prompt": raw["input"], "target": str(raw["target"])}


_SHAPES: list[tuple[set[str], Callable[[Raw], dict[str, Any] | None]]] = [
    ({"prompt", "options", "answer"}, _ours),
    ({"prompt", "answer"}, _ours_open),
    ({"question", "choices", "answer"}, _mmlu),
    ({"question", "answerKey"}, _labelled),
    ({"question_stem", "choices", "answerKey"}, _labelled),
    ({"question", "passage"}, _boolq),
    ({"goal", "sol1", "sol2", "label"}, _piqa),
    ({"sentence", "option1", "option2", "answer"}, _winogrande),
    ({"ctx", "endings", "label"}, _hellaswag),
    ({"premise", "choice1", "choice2", "question", "label"}, _copa),
    ({"question", "answer"}, _columns),
    ({"question", "answer"}, _gsm8k),
    ({"input", "target"}, _bbh),
]


def _index(answer: Any) -> int:
    text = str(answer).strip()
    letter = text.strip("().").upper()
    if len(letter) == 1 and letter in LETTERS:
        return LETTERS.index(letter)
    if not text.lstrip("+-").isdigit():
        raise ValueError(f"answer {text!r} is neither an index nor a letter")
    return int(text)


def file_rows(
    path: Path, strange: Callable[[Path, int, str], SutureError] | None = None
) -> Iterator[tuple[int, Raw]]:
    """(line or row number, from 1, and columns) of every row.

    `strange(path, number, what)`: the error where there is no row; by default E535, which shows
    the shapes of questions.
    """
    strange = strange or _strange
    text = file_text(path)
    kind = [s for s in path.suffixes if s != ".gz"][-1:] or [""]
    if kind[0] in (".csv", ".tsv"):
        yield from _table(text, "\t" if kind[0] == ".tsv" else ",")
        return
    if kind[0] == ".json":
        try:
            content = json.loads(text)
        except ValueError as error:
            if str(error).startswith("Extra data"):  # JSON lines under the name of JSON
                yield from _objects(path, _lines(path, text, strange), strange)
                return
            raise strange(path, 1, f"not JSON: {error}") from None
        if isinstance(content, dict) and content.keys() & {"question", "prompt"}:
            content = [content]  # JSON lines, of which there is one
        rows = content.get("examples") if isinstance(content, dict) else content
        if not isinstance(rows, list):
            raise strange(path, 1, "neither a list nor an object with 'examples'")
        numbered: Iterator[tuple[int, Any]] = iter(enumerate(rows, 1))
    else:
        numbered = _lines(path, text, strange)
    yield from _objects(path, numbered, strange)


def _objects(
    path: Path,
    numbered: Iterator[tuple[int, Any]],
    strange: Callable[[Path, int, str], SutureError],
) -> Iterator[tuple[int, Raw]]:
    for number, row in numbered:
        if not isinstance(row, dict):
            raise strange(path, number, "the row is not an object")
        yield number, row


def _lines(
    path: Path, text: str, strange: Callable[[Path, int, str], SutureError]
) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise strange(path, number, f"not JSON: {error}") from None


def _table(text: str, delimiter: str) -> Iterator[tuple[int, Raw]]:
    """Rows under their header, or MMLU's six columns without one."""
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    if not rows:
        return
    header = [name.strip() for name in rows[0]]
    known = {name for needed, _ in _SHAPES for name in needed}
    if known & set(header):
        for number, row in enumerate(rows[1:], 2):
            yield number, dict(zip(header, row, strict=False))
        return
    for number, row in enumerate(rows, 1):
        if len(row) < 4:
            yield number, dict(enumerate(row))  # type: ignore[arg-type]
            continue
        yield number, {"question": row[0], "choices": row[1:-1], "answer": row[-1]}


def file_text(path: Path) -> str:
    """The text of a file, plain or gzipped, with line feeds only."""
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        code = "E303" if isinstance(error, UnicodeDecodeError) else "E301"
        raise SutureError(code, f"cannot read the data file: {error}", where=str(path)) from None


def _strange(path: Path, number: int, what: str) -> SutureError:
    return SutureError(
        "E535",
        f"not a question of a known shape: {what}",
        where=f"{path}:{number}",
        fix='write {"prompt": "...", "options": ["...", "..."], "answer": 0} or '
        '{"prompt": "...", "answer": "..."}; docs/suites.md lists the shapes that are understood',
    )
