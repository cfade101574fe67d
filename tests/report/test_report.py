from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report.sample import HARMFUL_PROMPT, HARMFUL_REPLY, answers, ledger_rows, sample_facts
from report.schema import violations
from suture.errors import SutureError
from suture.ledger import JudgedRow, Measurement, Row
from suture.report import (
    AnswerPair,
    Point,
    Provenance,
    ReportFacts,
    SweepFacts,
    SweptSetting,
    Tradeoff,
    report_dict,
    write_report,
)
from suture.report.answers import _all_harmless, is_harmful
from suture.report.html import LIMIT_BYTES, environment, render_html
from suture.report.markdown import render_markdown

NASTY = (
    "<script>alert(1)</script></details></p>{{ 7*7 }}{% raw %}<!-- `|` [x](http://a.b) "
    "\x00\x1b[2J\x9b1m\u202egnp\u2066\u200b\ud800\U000e0041 & \"'"
)
PAIRED_VOID = {"meta", "br", "link", "input", "img", "hr"}


class Page(HTMLParser):
    """Tags with attributes, text by whether a closed `<details>` hides it, and nesting faults."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.shown: list[str] = []
        self.hidden: list[str] = []
        self.faults: list[str] = []
        self.stack: list[tuple[str, dict]] = []
        self.feed(source)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in PAIRED_VOID:
            self.stack.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack[-1][0] != tag:
            self.faults.append(f"</{tag}> closes {self.stack[-1:]}")
        else:
            self.stack.pop()

    def handle_data(self, data: str) -> None:
        names = [tag for tag, _ in self.stack]
        if names[-1:] == ["style"]:
            return
        closed = [
            place
            for place, (tag, attrs) in enumerate(self.stack)
            if tag == "details" and "open" not in attrs
        ]
        folded = any(names[place + 1 : place + 2] != ["summary"] for place in closed)
        (self.hidden if folded else self.shown).append(data)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_html(sample_facts()))


def nasty_sweep() -> SweepFacts:
    row = {NASTY: {"metric": NASTY, "before": 0.1, "after": 0.2, "ends": (0.1, 0.3)}}
    setting = SweptSetting(1, NASTY, NASTY, "front", row, row, NASTY, NASTY, NASTY)
    plot = Tradeoff((Point(0.1, 0.2, NASTY, NASTY, about=NASTY),), NASTY, NASTY)
    metrics = ((NASTY, "higher"),)
    gap = {NASTY: {**row[NASTY], "difference": 0.1, "ci95": [0.0, 0.2]}}
    setting = dataclasses.replace(setting, against=gap)
    return SweepFacts((setting,), (plot,), metrics, (setting,), NASTY, {"selection": {NASTY: 1}})


def nasty_facts() -> ReportFacts:
    facts = sample_facts(title=NASTY)
    pair = AnswerPair(
        "drift",
        NASTY,
        NASTY,
        NASTY + "old",
        NASTY + "new",
        False,
        {NASTY: 0.0},
        {NASTY: 1.0},
        NASTY,
    )
    return dataclasses.replace(
        facts,
        before={"fingerprint": NASTY, "path": NASTY, "name": NASTY},
        after={"fingerprint": "2b", "path": "../" + NASTY, "name": NASTY},
        reference={"fingerprint": None, "path": NASTY, "name": NASTY},
        ledger=[
            {**ledger_rows()[0], "metric": NASTY, "suite": NASTY, "test": NASTY, "note": NASTY}
        ],
        patch={"tensors": 1, "elements": 1, "bytes": 1, "fingerprint": NASTY, "path": NASTY},
        junk=[{"suite": NASTY, "column": NASTY, "against": NASTY, "worse": True}],
        answers=[pair, dataclasses.replace(pair, suite=NASTY, harmful=True)],
        provenance=Provenance(
            recipe=NASTY,
            command=NASTY,
            method=NASTY,
            config={NASTY: NASTY, "list": [NASTY]},
            versions={NASTY: NASTY},
            data=[{"name": NASTY, "sha256": NASTY}],
            measurements=[{"role": NASTY, "suite": NASTY, "file": NASTY, "data": {"name": NASTY}}],
            template={NASTY: NASTY},
            decoding={NASTY: {"x": NASTY}},
            licences=[NASTY],
        ),
        seconds={NASTY: 1.0},
        notes=[NASTY],
        missing=[NASTY],
        sweep=nasty_sweep(),
    )


def test_report_json_has_the_keys_of_the_issue(tmp_path: Path) -> None:
    written = write_report(sample_facts(), tmp_path / "run")
    report = json.loads(written["json"].read_text())
    assert violations(report) == []
    assert report["seconds"] == pytest.approx(54.4)
    assert violations({**report, "seconds": None, "ledger": [{}]}) != []


def test_numbers_that_are_not_finite_become_null() -> None:
    row = {**ledger_rows()[0], "p_value": float("nan"), "reference": float("inf")}
    report = report_dict(sample_facts(ledger=[row], seconds={"a": 1.0, "total": 9.0}))
    assert report["ledger"][0]["p_value"] is None
    assert report["ledger"][0]["reference"] is None
    assert report["seconds"] == 9.0
    json.dumps(report, allow_nan=False)


def test_page_stands_alone(page: Page) -> None:
    assert page.faults == []
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "img", "link", "iframe", "object", "base", "form"} & set(tags)
    assert not [k for _, attrs in page.tags for k in attrs if k in ("src", "srcset")]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert [k for _, attrs in page.tags for k in attrs if k == "href"] == ["href"] * len(links)
    assert links == [f"settings/irr-{n}/report.html" for n in (4, 5)]  # inside the run folder
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert "default-src 'none'" in policy[0]
    source = render_html(sample_facts())
    for word in ("<script", "src=", "http:", "https:", "url(", "@import", "xmlns"):
        assert word not in source, word
    assert source.count("http") == 1  # http-equiv


def test_first_screen_holds_the_verdicts(page: Page) -> None:
    text = " ".join(" ".join(page.shown).split())
    first = text[: text.index("Before and after")]
    for word in ("Not proven", "improved", "held", "31.3%", "89.8%", "93.1%", "+58.6", "275"):
        assert word in first, word
    assert "+52.1 to +64.4 points" in first
    assert "n ≈ 264 would settle it 4 times in 5, if nothing is truly lost" in first
    assert "at most 3 points worse than the reference" in first
    assert "One paired run proves a checkpoint, not a method" in text


def test_harmful_text_is_only_in_closed_details(page: Page) -> None:
    shown, hidden = " ".join(page.shown), " ".join(page.hidden)
    for text in (HARMFUL_PROMPT, HARMFUL_REPLY):
        assert text not in shown
        assert text in hidden
    assert "Harmful prompt and replies" in hidden
    assert "harmful test prompts" in shown


def test_redaction_and_other_files_hold_no_harmful_text(tmp_path: Path) -> None:
    write_report(sample_facts(redact=True), tmp_path)
    for file in tmp_path.iterdir():
        text = file.read_text()
        assert HARMFUL_PROMPT not in text
        assert HARMFUL_REPLY not in text
    write_report(sample_facts(), tmp_path)
    for name in ("report.json", "report.md"):
        text = (tmp_path / name).read_text()
        assert HARMFUL_PROMPT not in text
        assert HARMFUL_REPLY not in text


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_page_with_harmful_text_is_private(tmp_path: Path) -> None:
    write_report(sample_facts(), tmp_path)
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o600
    write_report(sample_facts(redact=True), tmp_path)
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) & 0o044
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_hostile_text_stays_text() -> None:
    source = render_html(nasty_facts())
    page = Page(source)
    assert page.faults == []
    assert "script" not in [tag for tag, _ in page.tags]
    assert "{{ 7*7 }}" in source
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", source)
    assert "\U000e0041" not in source
    source.encode("utf-8")
    for sign in ("␀", "␛", "⟨RLO⟩", "⟨ZWSP⟩", "⟨TAG⟩", "&lt;script&gt;"):
        assert sign in source


def test_hostile_text_in_markdown_and_json() -> None:
    facts = nasty_facts()
    text = render_markdown(facts)
    spans = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)  # code spans are literal
    plain = re.sub(r"\\.", "", spans)
    for markup in ("<script", "](", "://"):
        assert markup not in plain
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    widths = {re.sub(r"\\\|", "", line).count("|") for line in rows if "improved" in line}
    assert widths == {9}
    encoded = json.dumps(report_dict(facts))
    assert encoded.isascii()
    assert json.loads(encoded)["title"] == NASTY


def test_page_stays_under_two_megabytes() -> None:
    long = "<&> 字 " * 4000
    many = [
        AnswerPair(f"suite-{i % 12}", str(i), long, long, long[::-1], i % 2 == 0, share=0.5)
        for i in range(800)
    ]
    source = render_html(sample_facts(answers=many))
    assert len(source.encode()) < LIMIT_BYTES
    assert "further pairs" in source
    Page(source)
    with pytest.raises(SutureError) as caught:
        render_html(sample_facts(ledger=[ledger_rows()[0] | {"note": "x" * 2_500_000}]))
    assert caught.value.code == "E760"


def test_facts_by_hand_may_be_bare(tmp_path: Path) -> None:
    facts = ReportFacts(title="t", verdict="not measured", ledger=[{"suite": "s", "metric": "m"}])
    write_report(facts, tmp_path)
    Page((tmp_path / "report.html").read_text())
    assert json.loads((tmp_path / "report.json").read_text())["patch"] is None


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SutureError) as caught:
        write_report(sample_facts(), tmp_path / "file")
    assert caught.value.code == "E761"
    assert (tmp_path / "file").read_text() == "x"


def test_a_sweep_is_a_plot_and_two_tables_in_words(page: Page) -> None:
    text = " ".join(" ".join(page.shown).split())
    for words in (
        "What each setting buys",
        "Chosen by: safety >= 0.75",
        "On the rows to choose by",
        "On other rows, which no choice has seen",
        "E403: does not fit",
        "chosen",
    ):
        assert words in text, words
    sweep = report_dict(sample_facts())["sweep"]
    assert [row["mark"] for row in sweep["settings"]].count("picked") == 1
    marks = ["front", "front", "front", "picked", "front", ""]
    assert [row["mark"] for row in sweep["settings"]] == marks
    assert "removed 0.8 | picked | 80.0%" in render_markdown(sample_facts())
    bare = dataclasses.replace(sample_facts(), sweep=None)
    assert "What each setting buys" not in render_html(bare)
    assert report_dict(bare)["sweep"] is None


def test_same_facts_give_same_bytes() -> None:
    assert render_html(sample_facts()) == render_html(sample_facts())


def test_autoescape_is_on() -> None:
    assert environment().autoescape is True
    assert environment().from_string("{{ x }}").render(x="<b>\x1b") == "&lt;b&gt;␛"


@pytest.mark.parametrize(
    ("suite", "scores", "harmful"),
    [
        ("safety", {"refusal_rate": 1.0}, True),
        ("over-refusal", {"xstest_unsafe_refused": 1.0}, True),
        ("over-refusal", {"xstest_safe_refused": 1.0}, False),
        ("over-refusal", {"harmless_refused": 0.0}, False),
        ("task", {"accuracy": 1.0}, False),
        ("my own suite", {"score": 1.0}, True),
    ],
)
def test_what_counts_as_harmful(suite: str, scores: dict, harmful: bool) -> None:
    from suture.ledger import Row

    assert is_harmful(suite, Row("1", scores)) is harmful


def test_kinds_of_change() -> None:
    kinds = {pair.item: pair.kind for pair in answers()}
    assert kinds["xs-031"] == "refuses now"
    assert kinds["xs-107"] == "complies now"
    assert kinds["zh-3"] == "changed"
    assert kinds["en-1"] == "same"


def test_the_judges_words_are_folded_and_inert() -> None:
    pair = AnswerPair(
        suite="open-ended",
        item="1/1",
        prompt="Why?",
        before="because",
        after="so",
        harmful=False,
        judged_before=[JudgedRow("1/1", "grade", "graded", f"poor {NASTY}", grade=3.0)],
        judged_after=[
            JudgedRow("1/1", "grade", "unparsed", "hm, words of the judge"),
            JudgedRow("1/1", "second", "better", "the second one", other="because"),
        ],
    )
    harmful = dataclasses.replace(
        pair,
        suite="safety",
        harmful=True,
        judged_before=[JudgedRow("1/1", "harm", "harmful", "quoted words", "S2")],
        judged_after=(),
    )
    source = render_html(sample_facts(answers=(pair, harmful)))
    page = Page(source)
    shown, hidden = " ".join(page.shown), " ".join(page.hidden)
    for words in ("words of the judge", "the second one", "quoted words", "poor "):
        assert words in hidden
        assert words not in shown
    for heading in (
        "before: graded 3", "after: unparsed", "after, standing second: better",
        "before: harmful (S2)",
    ):  # fmt: skip
        assert heading in hidden
    assert "<script>alert" not in source
    assert not page.faults
    redacted = render_html(sample_facts(answers=(pair, harmful), redact=True))
    assert "quoted words" not in redacted


@pytest.mark.parametrize(
    ("suite", "data", "sound"),
    [
        ("task", {}, True),
        ("open-ended", {"files": ["builtin:mt_bench.jsonl"]}, True),
        ("open-ended", {"files": ["builtin:mt_bench.jsonl", "/own.jsonl"]}, False),
        ("open-ended", {}, False),
        ("talk", {"suite": "open-ended", "files": ["builtin:mt_bench.jsonl"]}, True),
        ("task", {"suite": "safety", "files": ["builtin:safety_test.jsonl"]}, False),
    ],
)
def test_questions_of_ones_own_stay_folded(suite: str, data: dict, sound: bool) -> None:
    row = Row("1", {"distinct_2": 1.0})
    assert _all_harmless(Measurement(suite, {}, 1, {}, {}, [row], data=data)) is sound
    assert is_harmful("open-ended", row)
    assert is_harmful("safety", None)
