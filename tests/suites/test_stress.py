"""The stress task: readers of answers, what is said about an author, conditions, the logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import write_jsonl
from suites.mbti.people import SHARED
from suture.errors import SutureError
from suture.ledger import Measurement, Role, compare
from suture.suites import load_suite, measure, measure_log
from suture.suites.answerers import load_answerer
from suture.suites.mbti.predictions import Personalities
from suture.suites.stress import bracketed, first_word, lenient

LOGS = SHARED / "mbtibench_dreaddit_logs"
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason="MBTIBench's logs are not here")
POSTS = [
    {"id": n, "posts": f"invented post number {n}", "label": "yes" if n % 3 else "no"}
    for n in range(1, 13)
]


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "posts.jsonl", POSTS)


@pytest.fixture
def soft(tmp_path: Path) -> Path:
    rows = [
        {"dimension": key, "id": n, "response": reply}
        for n in range(1, 13)
        for key, reply in (("EI", "[[9]]"), ("SN", f"[[{n % 9 + 1}]]"), ("TF", "?"), ("JP", "[3]"))
    ]
    return write_jsonl(tmp_path / "soft.jsonl", rows)


@pytest.fixture
def hard(tmp_path: Path) -> Path:
    rows = [
        {"dimension": key, "id": n, "response": reply}
        for n in range(1, 13)
        for key, reply in (("EI", "CHOICE: A"), ("SN", "CHOICE: B"), ("TF", "?"), ("JP", "b"))
    ]
    return write_jsonl(tmp_path / "hard.jsonl", rows)


@pytest.mark.parametrize(
    ("reply", "strict", "loose", "word"),
    [
        ("[[yes]]", 1, 1, 1),
        ("[[No]].", 0, 0, 0),
        ("No idea, but [[yes]]", 1, 1, 0),
        ("yes: I think so", None, 1, None),  # the colon stays, so the released reader misses it
        ('"Yes," she said\nno', None, None, 1),
        ("Clearly *no*!", None, 0, 0),
        ("[[yes]] if there is stress, else [[no]]. [[no]]", None, None, 1),
        ("<think>[[yes]]? No.</think>[[no]]", 0, 0, 0),
        ("maybe", None, None, None),
        ("", None, None, None),
    ],
)
def test_answers(reply: str, strict: int | None, loose: int | None, word: int | None) -> None:
    assert (bracketed(reply), lenient(reply), first_word(reply)) == (strict, loose, word)


def text(posts: Path, **options: Any) -> str:
    suite = load_suite("stress", options)
    return str(suite.text(suite.read([posts], None)[0]))


def test_what_is_said_about_an_author(posts: Path, soft: Path, hard: Path) -> None:
    """A score of 9 on E/I is no Extraversion; the released code printed it as all of it."""
    plain = text(posts)
    assert "invented post number 1" in plain
    assert "personality" not in plain
    said = text(posts, condition="soft", personality=str(soft))
    assert "0.0% Extraversion, 100.0% Introversion" in said
    assert "Thinking" not in said  # it could not be read, so nothing is known
    assert "75.0% Judging, 25.0% Perceiving" in said
    wrong = text(posts, condition="soft", personality=str(soft), legacy_inverted=True)
    assert "100.0% Extraversion, 0.0% Introversion" in wrong
    assert "25.0% Judging, 75.0% Perceiving" in wrong
    assert "50.0% Thinking, 50.0% Feeling" in wrong
    sides = text(posts, condition="hard", personality=str(hard))
    assert "Extraversion\nIntuition\n" in sides
    assert "Thinking" not in sides  # it could not be read
    assert sides.endswith("Reply [[yes]] if the author is under stress and [[no]] if not.")


def test_shuffled_is_another_posts_personality(soft: Path) -> None:
    known = Personalities.load(soft)
    names = list(known.by_post)
    mixed = known.shuffled(names, seed=0)
    assert mixed.by_post.keys() == known.by_post.keys()
    assert not any(mixed.by_post[name] is known.by_post[name] for name in names)
    assert sorted(map(str, mixed.by_post.values())) == sorted(map(str, known.by_post.values()))
    assert mixed.by_post == known.shuffled(names, seed=0).by_post
    assert mixed.by_post != known.shuffled(names, seed=1).by_post


def test_conditions_are_compared_like_models(posts: Path, soft: Path, tmp_path: Path) -> None:
    replies = [{"item": row["id"], "reply": f"[[{row['label']}]]"} for row in POSTS]
    right = write_jsonl(tmp_path / "right.jsonl", replies)
    always = write_jsonl(tmp_path / "always.jsonl", [{**r, "reply": "hm"} for r in replies])
    none = measure("stress", "m", data=posts, replies=always)
    told = {"condition": "soft", "personality": str(soft)}
    some = measure("stress", "m", data=posts, replies=right, options=told)
    assert (none.metrics["accuracy"], some.metrics["accuracy"]) == (0, 1)
    assert none.metrics["accuracy_constant"] == pytest.approx(8 / 12)
    assert none.metrics["macro_f1"] == 0
    assert some.data["condition"] == "soft"
    ledger = compare([none], [some], [], [Role.target("stress.macro_f1:higher")])
    assert ledger.rows[0].difference == 1


def test_options_that_only_say_the_condition_do_not_part_two_measurements(
    posts: Path, soft: Path
) -> None:
    def asked(**options: Any) -> Measurement:
        found = measure("stress", load_answerer("baseline:majority"), data=posts, options=options)
        assert found.decoding.get("asked", {}) == {}
        return found

    ledger = compare(
        [asked()],
        [asked(condition="shuffled", personality=str(soft))],
        [],
        [Role.kept("stress.accuracy:0.1")],
    )
    assert ledger.rows[0].difference == 0


def test_personalities_come_from_a_measurement_too(posts: Path, tmp_path: Path) -> None:
    rows = [
        {"item": f"{row['id']}/{key}", "reply": "[[9]]"}
        for row in POSTS
        for key in ("EI", "SN", "TF", "JP")
    ]
    replies = write_jsonl(tmp_path / "replies.jsonl", rows)
    file = tmp_path / "personality.json"
    measure("personality", "m", data=posts, replies=replies).save(file, redact=True)
    said = text(posts, condition="soft", personality=str(file))
    assert "0.0% Sensing, 100.0% Intuition" in said


@pytest.mark.parametrize("parser", ["strict", "lenient"])
def test_what_could_not_be_read_is_not_known(
    parser: str,
    posts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unread scores count as 0.5 in the measurement, which is no knowledge about anybody."""
    said = {"EI": "[[9]]", "SN": "score: 9", "TF": "no idea", "JP": "[[1]]"}
    rows = [
        {"item": f"{row['id']}/{key}", "reply": reply}
        for row in POSTS
        for key, reply in said.items()
    ]
    rows[0] = {**rows[0], "reply": "?"}
    replies = write_jsonl(tmp_path / "replies.jsonl", rows)
    file = tmp_path / "personality.json"
    options = {"parser": parser}
    measure("personality", "m", data=posts, replies=replies, options=options).save(file)
    monkeypatch.setattr("suture.progress.silent", False)
    told = {"condition": "soft", "personality": str(file)}
    suite = load_suite("stress", told)
    items = suite.read([posts], None)
    unread = 25 if parser == "strict" else 13
    assert f"{unread} of 48 replies about the authors could not be read" in capsys.readouterr().err
    assert suite.described(items)["personality_unread"] == unread
    first, second = suite.text(items[0]), suite.text(items[1])
    assert ("Extraversion" in first, "Extraversion" in second) == (False, True)
    assert ("Sensing" in first) == (parser == "lenient")
    assert "Thinking" not in first + second
    nothing = write_jsonl(tmp_path / "no.jsonl", [{**row, "reply": "?"} for row in rows])
    measure("personality", "m", data=posts, replies=nothing, options=options).save(file)
    with pytest.raises(SutureError, match="E596"):
        text(posts, **told)


def test_a_few_posts_need_only_their_own_personalities(soft: Path, posts: Path) -> None:
    told = {"condition": "soft", "personality": str(soft)}
    some = [item.id for item in load_suite("stress").read([posts], 3)]
    lines = [line for line in soft.read_text().splitlines() if str(json.loads(line)["id"]) in some]
    soft.write_text("\n".join(lines))
    assert [item.id for item in load_suite("stress", told).read([posts], 3)] == some
    with pytest.raises(SutureError, match="E597"):
        load_suite("stress", told).read([posts], None)


def test_the_replies_hold_what_was_asked(posts: Path, soft: Path) -> None:
    about: dict[str, Any]
    asked = {}
    for condition in ("none", "soft", "shuffled"):
        own = {} if condition == "none" else {"personality": str(soft)}
        about = {"condition": condition, **own}
        found = measure("stress", load_answerer("baseline:majority"), data=posts, options=about)
        asked[condition] = (found.replies[1].prompt, found.data["sha256"])
    prompts, shas = zip(*asked.values(), strict=True)
    assert len(set(prompts)) == 3
    assert len(set(shas)) == 1  # the same posts all the same
    assert all("invented post number 2" in one and "Reply [[yes]]" in one for one in prompts)
    assert "75.0% Sensing, 25.0% Intuition" in asked["soft"][0]


def test_only_you_can_read_what_is_said_about_people(posts: Path, tmp_path: Path) -> None:
    for suite, key in (("stress", ""), ("personality", "/EI")):
        rows = [{"item": f"{row['id']}{key}", "reply": "[[yes]]"} for row in POSTS]
        replies = write_jsonl(tmp_path / "replies.jsonl", rows)
        options = {"dimensions": "E/I"} if key else None
        found = measure(suite, "m", data=posts, replies=replies, options=options)
        file = found.save(tmp_path / "m.json", redact=True)
        assert file.stat().st_mode & 0o777 == 0o600
        assert Measurement.load(file).data["private"] is True


def test_refusals(posts: Path, soft: Path, hard: Path, tmp_path: Path) -> None:
    for options in (
        {"condition": "soft"},
        {"condition": "none", "personality": str(soft)},
        {"condition": "hard", "personality": str(soft)},
        {"condition": "hard", "personality": str(hard), "legacy_inverted": True},
    ):
        with pytest.raises(SutureError, match="E598"):
            text(posts, **options)
    alone = load_suite("stress", {"condition": "shuffled", "personality": str(soft)})
    with pytest.raises(SutureError, match="E598"):
        alone.read([posts], 1)
    with pytest.raises(SutureError, match="E566"):
        load_suite("stress").read([], None)
    few = write_jsonl(tmp_path / "few.jsonl", [json.loads(soft.read_text().split("\n")[0])])
    with pytest.raises(SutureError, match="E597"):
        text(posts, condition="soft", personality=str(few))
    for rows in ([{"id": 1}], [{"dimension": "XY", "id": 1, "response": "[[1]]"}]):
        with pytest.raises(SutureError, match="E596"):
            Personalities.load(write_jsonl(tmp_path / "odd.jsonl", rows))


def log(path: Path, rounds: int, wrong: int) -> Path:
    """Replies of which `wrong` + round are wrong in each round."""
    rows = []
    for number in range(rounds):
        for place, row in enumerate(POSTS):
            flip = place < wrong + number
            other = {"yes": "no", "no": "yes"}[row["label"]]
            said = f"[[{other if flip else row['label']}]]"
            rows.append({"round": number, "id": row["id"], "label": row["label"], "response": said})
    return write_jsonl(path, rows)


def test_logs_are_scored_round_by_round(tmp_path: Path) -> None:
    good, bad = log(tmp_path / "a.jsonl", 3, 1), log(tmp_path / "b.jsonl", 3, 4)
    found = measure_log("stress", good, options={"reference": str(bad)})
    assert found.metrics["accuracy"] == pytest.approx((11 + 10 + 9) / 36)
    assert found.metrics["accuracy_sd"] == pytest.approx((2 / 3) ** 0.5 / 12)
    assert found.metrics["accuracy_p"] == pytest.approx(0.02131163, abs=1e-7)  # scipy's Welch
    assert "accuracy_p" not in found.better  # a p value is not the better for being small
    assert "accuracy_p" not in measure_log("stress", good).metrics
    assert found.data["private"] is True
    assert Measurement.load(found.save(tmp_path / "m.json")).metrics == found.metrics
    assert {row.cluster for row in found.rows} == {str(row["id"]) for row in POSTS}
    for rows in (
        [{"round": 1, "id": 1, "label": "maybe", "response": ""}],
        [{"round": 1, "id": 1, "label": "yes", "response": ""}] * 2,
        [{"id": 1, "label": "yes", "response": ""}],
        [
            {"round": 1, "id": 1, "label": "yes", "response": ""},
            {"round": 2, "id": 2, "label": "yes", "response": ""},
        ],
    ):
        with pytest.raises(SutureError, match="E599"):
            measure_log("stress", write_jsonl(tmp_path / "odd.jsonl", rows), options={})
    one = log(tmp_path / "one.jsonl", 1, 1)
    with pytest.raises(SutureError, match="E599"):
        measure_log("stress", good, options={"reference": str(one)})


@needs_logs
@pytest.mark.parametrize(
    ("name", "accuracy", "sd", "macro_f1"),
    [("none", 72.13, 0.90, 71.95), ("hard", 73.37, 0.81, 72.40), ("soft", 74.00, 1.74, 73.73)],
)
def test_the_released_logs(name: str, accuracy: float, sd: float, macro_f1: float) -> None:
    found = measure_log("stress", LOGS / f"{name}.jsonl.gz", options={"parser": "released"})
    shown = [round(100 * found.metrics[m], 2) for m in ("accuracy", "accuracy_sd", "macro_f1")]
    assert shown == [accuracy, sd, macro_f1]


@needs_logs
def test_the_released_p_values() -> None:
    def p(name: str, other: str) -> float:
        options = {"parser": "released", "reference": str(LOGS / f"{other}.jsonl.gz")}
        return measure_log("stress", LOGS / f"{name}.jsonl.gz", options=options).metrics[
            "accuracy_p"
        ]

    assert round(p("soft", "none"), 3) == 0.013
    assert round(p("hard", "none"), 3) == 0.007
    assert round(p("soft", "hard"), 2) == 0.34


@needs_logs
def test_the_released_soft_lines_point_the_other_way() -> None:
    """Of the cells that lean at all, 168 agree with the hard ones and 971 do not."""
    soft = Personalities.load(LOGS / "personality_soft.jsonl.gz")
    hard = Personalities.load(LOGS / "personality_hard.jsonl.gz")
    same = other = 0
    for post, cells in soft.by_post.items():
        for name, value in cells.items():
            if value != 0.5:
                first = value > 0.5  # as the released code prints it
                agrees = first == (hard.by_post[post][name] == 0)
                same, other = same + agrees, other + (not agrees)
    assert (same, other) == (168, 971)
