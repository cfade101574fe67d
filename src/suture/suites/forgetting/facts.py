"""What a model is asked: questions with right and wrong answers, and chunks of a text.

A file holds rows (JSON lines, a JSON list, CSV or TSV, plain or gzipped) or, where its name ends in
.txt or .md, running text. Columns of a row:

    question, answer       or prompt, response: what is asked and the truth
    paraphrased_answer     the truth in other words (truth ratio)
    perturbed_answer       a list of wrong answers like it (truth ratio)
    id                     default: the row's number from 0. Questions may repeat, numbers do not.
                           Measurements show ids, so an id should name nobody
    cluster, name          rows of one person or author are not independent. Measurements show a
                           number in its place, by first appearance in the file: forget/person-0

Text is cut into chunks of words, of which a first part is read and the rest is to be continued:
the protocol of RKLU's book experiment (400 chunks of 512 tokens, 200 of them read). Chunks are
counted in words, 0.75 per token, so that all tokenizers are asked the same (inferred).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from suture.config import FrozenConfig
from suture.data import same_text
from suture.data.records import Text
from suture.errors import SutureError
from suture.suites.common import thin
from suture.suites.forgetting.columns import Kind
from suture.suites.questions import file_rows, file_text

CHUNK, READ, CHUNKS = 384, 150, 400  # words of a chunk, words of it that are read, chunks of a file
_WORD = re.compile(r"\S+\s*")


class Fact(FrozenConfig):
    """One question of one set, or one chunk of a text (`chunk`: prompt and answer without blanks
    lost, so that the two joined are the text)."""

    id: Text = Field(description="set and row: forget/0")
    kind: Kind
    prompt: str = Field(description="the question, or the beginning of a chunk")
    answer: Text = Field(description="the truth, or the rest of a chunk")
    paraphrased: str | None = Field(None, description="the truth in other words")
    wrong: tuple[Text, ...] = Field((), description="wrong answers")
    cluster: str | None = Field(None, description="rows of one cluster are not independent")
    chunk: bool = False


def read_facts(
    kind: Kind,
    path: Path,
    *,
    limit: int | None = None,
    rows: int | None = None,
    chunk: int = CHUNK,
    read: int = READ,
    people: dict[str, int] | None = None,
) -> list[Fact]:
    """The rows or chunks of one file as the set `kind`.

    `rows`: only the first so many; `limit`: of these so many, spread evenly. `chunk`, `read`: words
    of a chunk of text, and how many of them are read. `people`: numbers that names have from other
    files of the same set; new ones are added.
    Errors: E302 an empty file, E554 not rows, a row without question or answer, an id twice.
    """
    if path.suffix in (".txt", ".md"):
        return thin(_chunks(kind, path, chunk, read)[:rows], limit)
    people = {} if people is None else people
    # people are numbered before any row is left out: the same file, the same marks
    found: list[Fact] = []
    seen: set[str] = set()
    for number, (line, raw) in enumerate(file_rows(path, _bad)):
        found.append(_fact(kind, path, number, line, raw, people))
        if found[-1].id in seen:
            raise _bad(path, line, "its id stands twice")
        seen.add(found[-1].id)
    if not found:
        raise SutureError("E302", "the file has no rows", where=str(path))
    return thin(found[:rows], limit)


def _fact(
    kind: Kind, path: Path, number: int, line: int, raw: Mapping[str, Any], people: dict[str, int]
) -> Fact:
    """The row `number`, from 0 as in ids; errors say its `line`. `people` gains who is new."""
    asked = raw.get("question", raw.get("prompt"))
    answer = raw.get("answer", raw.get("response"))
    for name, value in (("question", asked), ("answer", answer)):
        if not isinstance(value, str) or not value.strip():
            raise _bad(path, line, f"it has no '{name}'")
    other = raw.get("paraphrased_answer")
    wrong = raw.get("perturbed_answer", [])
    wrong = [wrong] if isinstance(wrong, str) else wrong
    if not isinstance(wrong, list) or not all(isinstance(w, str) and w.strip() for w in wrong):
        raise _bad(path, line, "'perturbed_answer' is not a list of texts")
    if other is not None and (not isinstance(other, str) or not other.strip()):
        raise _bad(path, line, "'paraphrased_answer' is not a text")
    group = raw.get("cluster", raw.get("name"))
    return Fact(
        id=f"{kind}/{raw.get('id', number)}",
        kind=kind,
        prompt=str(asked),
        answer=str(answer),
        paraphrased=other,
        wrong=tuple(wrong),
        cluster=None if group is None else f"{kind}/{_masked(str(group), people)}",
    )


def _masked(name: str, people: dict[str, int]) -> str:
    """A person's place among those of the file, in place of the name: measurements are passed on.

    A hash could be tried against a list of names; a number says nothing without the file. It is the
    same in every measurement of one file (or of the same files in the same order), whatever part of
    it is asked, and means somebody else in another file.
    """
    return f"person-{people.setdefault(name, len(people))}"


def _chunks(kind: Kind, path: Path, chunk: int, read: int) -> list[Fact]:
    """Whole chunks, at most CHUNKS of them, spread evenly over the text; a short text is one."""
    words = _WORD.findall(file_text(path).lstrip())
    if len(words) < 2:
        raise _bad(path, 1, "there is nothing to continue")
    facts = []
    for number, start in enumerate(range(0, max(1, len(words) - chunk + 1), chunk)):
        part = words[start : start + chunk]
        cut = read if len(part) == chunk else max(1, len(part) * read // chunk)
        first = "".join(part[:cut])
        kept = first.rstrip()
        rest = (first[len(kept) :] + "".join(part[cut:])).rstrip()
        facts.append(Fact(id=f"{kind}/{number}", kind=kind, prompt=kept, answer=rest, chunk=True))
    return thin(facts, min(CHUNKS, len(facts)))


def _bad(path: Path, line: int, what: str) -> SutureError:
    return SutureError(
        "E554",
        f"not a row to forget or to keep: {what}",
        where=f"{path}:{line}",
        fix='write {"question": "...", "answer": "..."} per row; docs/suites.md lists the columns',
    )


def check_apart(facts: Sequence[Fact]) -> None:
    """Refuse (E555) the same question and answer both to forget and to keep or to hold out.

    Case and blanks make no difference.
    """

    def content(fact: Fact) -> tuple[str, str]:
        return same_text(fact.prompt), same_text(fact.answer)

    known = {content(fact): fact.id for fact in facts if fact.kind == "forget"}
    for fact in facts:
        twin = known.get(content(fact))
        if twin is not None and fact.kind != "forget":
            raise SutureError(
                "E555",
                f"{twin} and {fact.id} are the same row",
                why="what is to be forgotten cannot be kept, nor be unknown, at the same time",
                fix=f"take it out of the file of '{fact.kind}'",
            )
