"""SemEval ABSA in its XML: 2014 (aspectTerms) and 2015 and 2016 (Opinions).

    <sentence id="1"><text>...</text><aspectTerms>
      <aspectTerm term="food" polarity="positive" from="4" to="8"/></aspectTerms></sentence>
    <sentence id="1"><text>...</text><Opinions>
      <Opinion target="food" category="FOOD#QUALITY" polarity="positive" from="4" to="8"/>...

Targets "NULL" (2015, 2016) are opinions without words for their target; conflict (2014) is a
polarity of its own that nearly every paper leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from suture.data.reader import read_text
from suture.data.tasks.reading import finished, label, number, refuse
from suture.data.tasks.record import Record

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

POLARITIES = ("negative", "neutral", "positive", "conflict")


def read(
    files: Sequence[Path],
    *,
    unit: Literal["aspect", "sentence"] = "aspect",
    conflict: Literal["drop", "keep"] = "drop",
) -> list[Record]:
    """One record per aspect with its polarity as gold, or one per sentence, also those without an
    aspect, with `spans` and `pairs` of [term, polarity] as gold. Cluster: the sentence.

    Errors: E353 polarity, E355 a span that is not its term, E364 not XML, or XML with entities.
    """
    records: list[Record] = []
    for file in files:
        for place, sentence in enumerate(_tree(file).iter("sentence"), 1):
            identity = sentence.get("id") or str(place)
            text = sentence.findtext("text") or ""
            aspects = _aspects(sentence, text, file, identity)
            aspects = [one for one in aspects if conflict == "keep" or one[1] != "conflict"]
            if unit == "aspect":
                records += [
                    Record(
                        id=f"{identity}_{start}_{end}_{order}",
                        text=text,
                        aspect=term,
                        gold=polarity,
                        cluster=identity,
                    )
                    for order, (term, polarity, start, end) in enumerate(aspects)
                ]
                continue
            records.append(
                Record(
                    id=identity,
                    text=text,
                    gold={
                        "spans": [a[0] for a in aspects],
                        "pairs": [[a[0], a[1]] for a in aspects],
                    },
                    cluster=identity,
                    meta={"offsets": [[one[2], one[3]] for one in aspects]},
                )
            )
    return finished(records, files)


def _aspects(
    sentence: Element, text: str, file: Path, identity: str
) -> list[tuple[str, str, int, int]]:
    """(term, polarity, from, to) in the order of the text, each once: 2015 and 2016 repeat a target
    for every category."""
    found: dict[tuple[str, str, int, int], None] = {}
    for one in (*sentence.iter("aspectTerm"), *sentence.iter("Opinion")):
        term = one.get("term") or one.get("target") or "NULL"
        if term == "NULL":
            continue
        polarity = label(one.get("polarity") or "", POLARITIES, file, None)
        start = int(number(one.get("from") or "", file, None, low=0, high=len(text)))
        if not text.startswith(term, start):
            start = text.find(term)  # some offsets are off by blanks
        if start < 0:
            refuse(
                "E355",
                f"in sentence '{identity}' the text does not hold the aspect",
                file,
                fix="correct this sentence",
            )
        found[term, polarity, start, start + len(term)] = None
    return sorted(found, key=lambda one: one[2:])


def _tree(file: Path) -> Element:
    from xml.etree import ElementTree

    text = read_text(file)
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        refuse(
            "E364",
            "the XML declares entities",
            file,
            why="they can read other files or fill the memory",
            fix="remove the DOCTYPE; the published files have none",
        )
    try:
        return ElementTree.fromstring(text.encode("utf-8"))
    except ElementTree.ParseError as error:
        refuse("E364", f"not XML: {error}", file, error.position[0], fix="fetch the file again")
