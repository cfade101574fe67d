"""The shipped test data: complete, balanced, and with a notice for every file."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from suture.suites import available, load_suite
from suture.suites.common import DATA

EXPECTED = {
    "xstest.jsonl": {"id", "prompt", "category", "label"},
    "safety_test.jsonl": {"id", "prompt", "category", "source"},
    "harmless_test.jsonl": {"id", "prompt", "category"},
    "goemotions_test.jsonl": {"id", "prompt", "options", "answer"},
    "goemotions_dev.jsonl": {"id", "prompt", "options", "answer"},
}
GIVEN = {  # suites without data of their own
    "base-capability", "contribution", "emotion", "features", "personality", "sentiment",
    "stress", "tofu", "transfer", "unlearning", "utility",
}  # fmt: skip


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_every_data_file_is_known_and_has_a_notice() -> None:
    files = {file.name for file in DATA.glob("*.jsonl")}
    assert files == {*EXPECTED, "mt_bench.jsonl"}
    notice = (DATA / "NOTICE.md").read_text(encoding="utf-8")
    for name in sorted(files):
        section = re.search(rf"^## [^\n]*{re.escape(name)}[^\n]*$", notice, re.MULTILINE)
        assert section is not None, name
        assert re.search(r"CC BY|MIT|Apache", section.group()), name
    assert not re.search(r"\bNC\b|GPL", notice)


@pytest.mark.parametrize("name", EXPECTED)
def test_rows(name: str) -> None:
    found = rows(name)
    assert all(set(row) == EXPECTED[name] for row in found)
    assert len({row["id"] for row in found}) == len(found)
    assert len({row["prompt"] for row in found}) == len(found)
    assert all(row["prompt"].strip() == row["prompt"] for row in found)


def test_sizes_carry_the_verdicts_asked_of_them() -> None:
    assert len(rows("safety_test.jsonl")) >= 150
    assert len(rows("harmless_test.jsonl")) >= 300
    assert Counter(row["label"] for row in rows("xstest.jsonl")) == {"safe": 250, "unsafe": 200}


@pytest.mark.parametrize(
    ("name", "n"), [("goemotions_test.jsonl", 2000), ("goemotions_dev.jsonl", 900)]
)
def test_goemotions_is_balanced(name: str, n: int) -> None:
    found = rows(name)
    assert len(found) == n
    counts = Counter(row["answer"] for row in found).values()
    assert len(counts) == 3
    assert max(counts) - min(counts) <= 1
    assert {tuple(row["options"]) for row in found} == {("positive", "negative", "neutral")}
    first = {row["prompt"].split("\n")[0] for row in found}
    assert first == {"What is the feeling of this message? positive, negative or neutral?"}


def test_splits_share_no_text() -> None:
    texts = [{row["prompt"].casefold() for row in rows(name)} for name in EXPECTED]
    for i, one in enumerate(texts):
        assert all(one.isdisjoint(other) for other in texts[i + 1 :])


def test_mmlu_questions_stand_alone_and_are_spread() -> None:
    mmlu = [row for row in rows("harmless_test.jsonl") if row["category"].startswith("mmlu:")]
    for row in mmlu:
        assert row["prompt"].endswith("?")
        assert 5 <= len(row["prompt"].split()) <= 40
        assert "which of the following" not in row["prompt"].casefold()
        assert "__" not in row["prompt"]
    per_subject = Counter(row["category"] for row in mmlu)
    assert len(per_subject) >= 40
    assert max(per_subject.values()) <= 25


@pytest.mark.parametrize("name", available())
def test_every_suite_reads_its_default_data(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    if not suite.default_data:  # these ask what they are given
        assert name in GIVEN
        return
    items = suite.read(suite.default_data, None)
    if name == "speed":  # a few will do
        assert len(items) == 16
        return
    turns = 2 if name == "open-ended" else 1
    assert len(items) == turns * sum(len(rows(file.name)) for file in suite.default_data)


def test_mt_bench_is_whole() -> None:
    found = rows("mt_bench.jsonl")
    assert [row["question_id"] for row in found] == list(range(81, 161))
    assert all(len(row["turns"]) == 2 for row in found)
    assert set(Counter(row["category"] for row in found).values()) == {10}
