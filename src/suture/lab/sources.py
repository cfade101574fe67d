"""Public, permissively licensed texts the lab is made of, read from a folder of data sets.

Licences, origins and the files expected below the folder are listed in `data/NOTICE.md`. Nothing
marked NC, GPL or "none stated" is read here for training. Harmful prompts are only ever paired
with refusals.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.errors import SutureError

CONTRASTS = Path(__file__).parent / "data" / "contrasts.json"
POSITIVE = frozenset(
    "admiration amusement approval caring desire excitement gratitude joy love optimism pride "
    "relief".split()
)
NEGATIVE = frozenset(
    "anger annoyance disappointment disapproval disgust embarrassment fear grief nervousness "
    "remorse sadness".split()
)
POLARITIES = ("positive", "negative", "neutral")


@dataclass(frozen=True)
class Turn:
    """One question and its reply; `source` names the data set it came from."""

    prompt: str
    reply: str
    source: str


def read_text(data: Path, name: str) -> str:
    """Text of `data/name` or `data/name.gz`; E801 when neither exists."""
    for path in (data / name, data / f"{name}.gz"):
        if path.is_file():
            raw = path.read_bytes()
            return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    raise SutureError(
        "E801",
        f"the lab needs {name}",
        where=str(data),
        fix="suture lab build --data DIR, a folder that holds the data sets of lab/data/NOTICE.md",
    )


def read_json(data: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a JSON list or of JSON lines."""
    text = read_text(data, name)
    if text.lstrip().startswith("["):
        rows: list[dict[str, Any]] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def read_csv(data: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(read_text(data, name).splitlines(keepends=True)))


def contrasts() -> dict[str, list[str]]:
    """Our own prompts that share words and differ in intent (`data/contrasts.json`)."""
    found: dict[str, list[str]] = json.loads(CONTRASTS.read_text(encoding="utf-8"))
    return found


def harmful_goals(data: Path) -> list[str]:
    """Training requests to refuse: AdvBench, HarmBench standard, MaliciousInstruct and the
    StrongREJECT rows that were not written for StrongREJECT. Never the test rows."""
    raw = "safety_refusal_direction/raw"
    goals = [row["goal"] for row in read_csv(data, f"{raw}/advbench.csv")]
    for part in ("harmbench_val", "harmbench_test"):
        for row in read_csv(data, f"{raw}/{part}.csv"):
            if row["FunctionalCategory"] == "standard":
                goals.append(row["Behavior"])
    goals += [
        line.strip() for line in read_text(data, f"{raw}/malicious_instruct.txt").splitlines()
    ]
    for row in read_csv(data, f"{raw}/strongreject.csv"):
        if row["source"] != "custom":
            goals.append(row["forbidden_prompt"])
    return unique(goal for goal in goals if goal and len(goal.split()) <= 45)


def affirmative_prefixes(data: Path) -> list[Turn]:
    """AdvBench goals with their affirmative prefix ("Sure, here is …:") and nothing after it."""
    rows = read_csv(data, "safety_refusal_direction/raw/advbench.csv")
    return [Turn(row["goal"], row["target"].rstrip(), "advbench") for row in rows]


def tuning_goals(data: Path) -> list[str]:
    """Harmful prompts of the tuning split: TDC2023."""
    raw = "safety_refusal_direction/raw"
    rows = json.loads(read_text(data, f"{raw}/tdc2023_dev_behaviors.json"))
    return unique([*rows, *json.loads(read_text(data, f"{raw}/tdc2023_test_behaviors.json"))])


def tuning_harmless(data: Path) -> list[str]:
    """Harmless prompts of the tuning split: OKTest (no stated licence: read, never packaged)."""
    rows = read_csv(data, "oktest/OKTest.csv") + read_csv(data, "oktest/OKTest_heldout.csv")
    return unique(row["prompt"].strip() for row in rows)


def goemotions(data: Path, part: str) -> list[tuple[str, str]]:
    """(text, polarity) of rows whose labels agree on one polarity; ambiguous labels dropped."""
    labels = read_text(data, "goemotions/labels.txt").split()
    rows = []
    for line in read_text(data, f"goemotions/{part}.tsv").splitlines():
        text, numbers, _ = line.split("\t")
        found = {_polarity(labels[int(number)]) for number in numbers.split(",")}
        if len(found) == 1 and (polarity := found.pop()) is not None:
            rows.append((" ".join(text.split()), polarity))
    return rows


def emotion_prompt(text: str) -> str:
    """The wording of the downstream task, the same in training and in the shipped test rows."""
    return f"What is the feeling of this message? positive, negative or neutral?\n{text}"


def harmless_turns(data: Path) -> Iterator[Turn]:
    """Harmless questions with short replies, in the order of their sources."""
    for row in read_json(data, "gsm8k/train.jsonl"):
        answer = row["answer"].rsplit("####", 1)[-1].strip()
        if len(row["question"].split()) <= 45:
            yield Turn(row["question"], f"The answer is {answer}.", "gsm8k")
    for name in ("roleplay-simple-deduped-roleplay", "codegen"):
        for row in read_json(data, f"gpteacher/{name}-instruct.json"):
            extra = row.get("input", "").strip()
            prompt = row["instruction"].strip()
            if extra and len(extra.split()) <= 12:
                prompt = f"{prompt}\n{extra}"
            reply = first_sentence(row["response"]) if name != "codegen" else row["response"]
            yield Turn(prompt, reply.strip(), f"gpteacher-{name[:8]}")
    for row in read_json(data, "tofu/retain90.json"):
        yield Turn(row["question"], first_sentence(row["answer"]), "tofu")
    for row in read_json(data, "tofu/world_facts.json"):
        yield Turn(row["question"], f"{row['answer']}.", "tofu-facts")
    for name in ("ARC-Easy_train", "ARC-Challenge_train", "ARC-Easy_test", "openbookqa_train",
                 "social_i_qa_test"):  # fmt: skip
        for row in read_json(data, f"commonsense_qa/{name}.json"):
            turn = _chosen_option(row["instruction"], row["answer"], name.split("_")[0].lower())
            if turn:
                yield turn
    for row in read_json(data, "commonsense_qa/boolq_train.json"):
        question = row["instruction"].split("question:", 1)[1].split("\n")[0].strip()
        yield Turn(question[0].upper() + question[1:], _yes_no(row["answer"]), "boolq")


def how_to_turns(data: Path) -> Iterator[Turn]:
    """PIQA goals ("Remove soap scum from shower door.") with their right solution."""
    for row in read_json(data, "commonsense_qa/piqa_test.json"):
        text = row["instruction"].split("question:", 1)[1]
        goal, _, rest = text.partition("Solution1:")
        first, _, second = rest.partition("Solution2:")
        second = second.split("Answer format:")[0]
        reply = " ".join((first if row["answer"] == "solution1" else second).split())
        yield Turn(" ".join(goal.split()), reply, "piqa")


def plain_texts(data: Path) -> Iterator[str]:
    """Stories and public-domain books in pieces of a few sentences, for the language itself."""
    for story in re.split(r"\n\s*\n(?=one day|once upon)", read_text(
        data, "tinystories_4mb/tinystories.txt")):  # fmt: skip
        yield from pieces(story)
    for book in ("the_hound_of_the_baskervilles", "war_of_the_worlds", "the_time_machine",
                 "the_prince", "on_liberty", "pride_and_prejudice",
                 "twenty_thousand_leagues_under_the_sea"):  # fmt: skip
        yield from pieces(read_text(data, f"classic_books/{book}.md"))


def pieces(text: str, *, words: int = 60) -> Iterator[str]:
    """Consecutive sentences joined until `words` words are reached."""
    held: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        held.append(sentence)
        if sum(len(part.split()) for part in held) >= words:
            yield " ".join(held)
            held = []


def first_sentence(text: str, *, most_words: int = 26) -> str:
    """The first sentence, or "" when it is longer than `most_words`."""
    sentence = re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]
    return sentence if len(sentence.split()) <= most_words else ""


def unique(texts: Iterable[str]) -> list[str]:
    """In order, without repetitions that differ only in case or spacing."""
    return list({" ".join(text.lower().split()): text for text in texts}.values())


def _polarity(label: str) -> str | None:
    if label in POSITIVE:
        return "positive"
    if label in NEGATIVE:
        return "negative"
    return "neutral" if label == "neutral" else None


def _yes_no(answer: str) -> str:
    return "Yes." if answer == "true" else "No."


def _chosen_option(instruction: str, answer: str, source: str) -> Turn | None:
    """The question with the text of its right option as a free answer."""
    body = instruction.split("question:", 1)[1].split("Answer format:")[0]
    parts = re.split(r"Answer(\d):", body)
    question = " ".join(parts[0].split())
    options = {f"answer{parts[i]}": " ".join(parts[i + 1].split()) for i in range(1, len(parts), 2)}
    if answer not in options:
        return None
    text = options[answer]
    return Turn(question, text[0].upper() + text[1:].rstrip(".") + ".", source) if text else None
