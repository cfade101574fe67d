"""The suite: what is asked in each way, rows and metrics, the constant answer, refusals."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import enliven
from helpers import write_jsonl
from suites.mbti.people import PEOPLE, SHARED
from suture.checkpoint import Checkpoint
from suture.errors import SutureError
from suture.inference import load
from suture.inference.generation import Reply
from suture.ledger import Measurement, ReplyRow, Row
from suture.suites import load_suite, measure, measure_log
from suture.suites.answerers import replies_of
from suture.suites.mbti import parsing
from suture.suites.mbti.asking import examples, fill, user_turns
from suture.suites.mbti.dimensions import dimensions
from suture.suites.mbti.records import Trait, prepared
from suture.suites.prompts import prompts

FILE = SHARED / "mbtibench" / "mbtibench.jsonl.gz"
needs_data = pytest.mark.skipif(not FILE.is_file(), reason="MBTIBench is not here")
KEYS = ("ei", "sn", "tf", "jp")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "people.jsonl", PEOPLE)


def told(items: list[Trait], replies: list[str]) -> list[ReplyRow]:
    return [
        ReplyRow(item.id, "", reply, True, 3) for item, reply in zip(items, replies, strict=True)
    ]


def test_a_log_of_replies_is_scored(
    people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        {"dimension": key, "id": one["id"], "response": f"[[{1 + 8 * one['softlabels']['E/I']}]]"}
        for one in PEOPLE
        for key in ("EI", "SN", "TF", "JP")
    ]
    log = write_jsonl(tmp_path / "log.jsonl", rows)
    assert set(measure_log("personality", log).metrics) == {
        "parsed_strict", "parsed_lenient", "ends_properly",
    }  # fmt: skip
    monkeypatch.setattr("suture.progress.silent", False)
    found = measure_log("personality", log, options={"labels": str(people)})
    assert "by id alone: both must be about the same people" in capsys.readouterr().err
    assert found.data["private"] is True
    assert found.metrics["ei.rmse"] == pytest.approx(0, abs=1e-12)
    assert found.metrics["tf.bias"] == pytest.approx(0, abs=1e-12)
    assert found.n == 24
    for odd in ([*rows, rows[0]], [{"id": 1}], [{**rows[0], "dimension": "E/I"}]):
        with pytest.raises(SutureError, match="E596"):
            measure_log("personality", write_jsonl(tmp_path / "odd.jsonl", odd))
    write_jsonl(people, PEOPLE[1:])
    with pytest.raises(SutureError, match="E564"):
        measure_log("personality", log, options={"labels": str(people)})


def test_posts_are_prepared() -> None:
    posts = ["0123456789", "a b, c! d {e} f g h", "   spaces in front"]
    assert prepared(posts, tokens=5) == "Post 1: a b, c!; Post 2: spaces in front; "
    assert prepared(posts, tokens=80, most=1) == "Post 1: a b, c! d e f g h; "
    assert prepared("one single text", tokens=2) == "Post 1: one single; "


def test_items_are_traits_and_people_are_clusters(people: Path) -> None:
    suite = load_suite("personality")
    items = suite.read([people], None)
    assert [item.id for item in items[:4]] == ["1/EI", "1/SN", "1/TF", "1/JP"]
    assert items[3].cluster == "1"
    assert (items[3].soft, items[3].hard) == (1.0, "P")
    assert (
        items[0].posts == "Post 1: the quick brown fox 1; Post 2: jump over the lazy dog, again; "
    )
    assert len(suite.read([people], 2)) == 8
    some = load_suite("personality", {"dimensions": "T/F", "posts": 1}).read([people], None)
    assert [item.dimension for item in some] == ["T/F"] * 6
    assert "dog" not in some[0].posts


@pytest.mark.parametrize(("name", "count"), [("E/I", 11), ("S/N", 14), ("T/F", 14), ("J/P", 11)])
def test_every_way_of_asking(name: str, count: int) -> None:
    trait = Trait(id="1/X", person="1", dimension=name, posts="Post 1: \\0 {first} braces; ")
    about = dimensions()[name]
    for form, end in (("soft", "[[4]]"), ("hard", "CHOICE: <A/B>")):
        once = user_turns(trait, "zero-shot", form)
        assert len(once) == 1
        steps = user_turns(trait, "step-by-step", form)
        assert len(steps) == 2
        chain = user_turns(trait, "questionnaire", form)
        assert len(chain) == count + 1
        for turns in (once, steps, chain):
            assert end in turns[-1] or end in " ".join(turns[-1].split())
            assert trait.posts in turns[0]  # even one that looks like a placeholder
            assert not any("{question}" in turn or "{about" in turn for turn in turns)
        asked = "\n".join(chain)
        assert all(one.text() in asked for one in about.questions)
        assert asked.count("A. ") == count
        shots = examples(trait, "few-shot", form)
        assert [turn["role"] for turn in shots] == ["user", "assistant"] * 2
    assert examples(trait, "zero-shot", "soft") == []


def test_examples_agree_in_both_forms() -> None:
    """The released demonstrations contradict themselves in one dimension; ours must not."""
    for name, about in dimensions().items():
        trait = Trait(id="1/X", person="1", dimension=name, posts="x")
        soft = [t["content"] for t in examples(trait, "few-shot", "soft")[1::2]]
        hard = [t["content"] for t in examples(trait, "few-shot", "hard")[1::2]]
        sides = [parsing.side(reply, about) for reply in hard]
        assert sides == [0, 1]
        assert [(parsing.score(reply) or 0) > 5 for reply in soft] == [False, True]


def test_examples_may_be_known_people_of_the_same_source(tmp_path: Path) -> None:
    rows = [
        {"id": n, "source": s, "posts": f"invented words of {n}", "softlabels": {"E/I": y}}
        for n, s, y in (("a", "x", 0.1), ("b", "x", 0.9), ("c", "y", 0.2), ("d", "y", 0.5))
    ]
    file = str(write_jsonl(tmp_path / "people.jsonl", rows))
    options = {"method": "few-shot", "dimensions": "E/I", "examples": file}
    suite = load_suite("personality", options)
    items = suite.read([Path(file)], None)

    def shown(place: int) -> list[tuple[str, str]]:
        start, _ = suite.conversation(items[place])
        asked = [turn["content"] for turn in start]
        names = [re.search(r"words of (\w)", text) for text in asked[0::2]]
        return [(name[1], said) for name, said in zip(names, asked[1::2], strict=True) if name]

    assert shown(2) == [("a", "[[2]]"), ("b", "[[8]]")]  # of y only c and the middling d are known
    assert shown(0) == [("c", "[[3]]"), ("b", "[[8]]")]
    with pytest.raises(SutureError, match="E568"):
        shown(1)


class Listener:
    """Somebody who can be asked, and keeps what was said."""

    sees = False

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def converse(self, conversations: Any, *, max_new_tokens: int) -> list[Reply]:
        self.heard.append([list(turns) for turns in conversations])
        text = "[[2]]" if "[[4]]" in conversations[0][-1]["content"] else "A."
        return [Reply(text, 2, True) for _ in conversations]


def test_the_questionnaire_is_one_conversation(people: Path) -> None:
    suite = load_suite("personality", {"method": "questionnaire", "dimensions": "E/I"})
    items = suite.read([people], None)
    listener = Listener()
    replies = replies_of(listener, suite, items, 8)
    assert [reply.reply for reply in replies] == ["[[2]]"] * 6
    assert len(listener.heard) == 12
    last = listener.heard[-1][0]
    assert [turn["role"] for turn in last] == [*["user", "assistant"] * 11, "user"]
    assert {turn["content"] for turn in last[1::2]} == {"A."}


def test_filling_is_one_pass() -> None:
    assert fill("{a} and {b}", {"a": "{b}", "b": "\0x\0"}) == "{b} and \0x\0"


def test_soft_metrics_follow_from_the_rows(people: Path) -> None:
    suite = load_suite("personality")
    items = suite.read([people], None)
    rnd = random.Random(3)
    scores = [rnd.choice([0, 1, 2.5, 5, 8, 9, 10]) for _ in items]
    rows = suite.score(items, told(items, [f"[[{x}]]" for x in scores]))
    found = suite.derived(rows)
    edges = np.linspace(0, 1, 10)
    for key, name in zip(KEYS, dimensions(), strict=True):
        pairs = [(i.soft, x) for i, x in zip(items, scores, strict=True) if i.dimension == name]
        gold = np.array([g for g, _ in pairs])
        said = np.clip((np.array([x for _, x in pairs]) - 1) / 8, 0, 1)
        apart = (np.digitize(gold, edges) - np.digitize(said, edges)).astype(float)
        assert found[f"{key}.s_rmse"]["value"] == pytest.approx(math.sqrt((apart**2).mean()))
        assert found[f"{key}.s_mae"]["value"] == pytest.approx(abs(apart).mean())
        assert found[f"{key}.rmse"]["value"] == pytest.approx(
            math.sqrt(((gold - said) ** 2).mean())
        )
        assert found[f"{key}.mae"]["value"] == pytest.approx(abs(gold - said).mean())
        assert found[f"{key}.bias"]["value"] == pytest.approx((said - gold).mean())
        polar = (abs(2 * said - 1) - abs(2 * gold - 1)).mean()
        assert found[f"{key}.polarisation"]["value"] == pytest.approx(polar)
        assert found[f"{key}.bias"]["best"] == 0
    mean = sum(found[f"{key}.s_rmse"]["value"] for key in KEYS) / 4
    assert found["mean.s_rmse"]["value"] == pytest.approx(mean)
    assert set(found) <= set(suite.metrics)


def test_unread_answers_are_counted(people: Path) -> None:
    suite = load_suite("personality", {"dimensions": ["E/I"]})
    items = suite.read([people], None)
    replies = told(items, ["[[3]]", "score: 3", "", "no", "[[10]]", "[[0]]"])
    found = suite.derived(suite.score(items, replies))
    assert found["parsed_strict"]["value"] == 0.5
    assert found["parsed_lenient"]["value"] == pytest.approx(4 / 6)
    assert found["ends_properly"]["value"] == pytest.approx(5 / 6)
    assert found["ei.rmse"]["n"] == 6

    def said(**options: Any) -> list[float | None]:
        one = load_suite("personality", {"dimensions": ["E/I"], **options})
        return [row.scores.get("ei.said") for row in one.score(items, replies)]

    assert said() == [0.25, 0.5, 0.5, 0.5, 1, 0]
    assert said(parser="lenient") == [0.25, 0.25, 0.5, 0.5, 1, 0]
    assert said(parser="released") == [0.25, 0.5, 0.5, 0.5, 1.125, -0.125]
    assert said(unread="drop") == [0.25, None, None, None, 1, 0]


def test_an_unread_side_is_wrong_and_a_class_only_in_the_released_way(people: Path) -> None:
    replies = ["CHOICE: A"] * 3 + ["CHOICE: B"] * 2 + ["who knows"]
    values = {}
    for parser in ("strict", "released"):
        options = {"dimensions": ["E/I"], "form": "hard", "parser": parser}
        suite = load_suite("personality", options)
        items = suite.read([people], None)
        assert [item.hard for item in items] == list("EEEIII")
        found = suite.derived(suite.score(items, told(items, replies)))
        values[parser] = found["ei.macro_f1"]["value"]
        assert found["ei.accuracy"]["value"] == pytest.approx(5 / 6)
        assert found["ei.bias"]["n"] == 5
    assert values["strict"] == pytest.approx((1 + 0.8) / 2)
    assert values["released"] == pytest.approx((1 + 0.8 + 0) / 3)


def test_the_constant_answer_stands_beside_every_metric(people: Path) -> None:
    for form, name in (("soft", "mean"), ("hard", "majority")):
        suite = load_suite("personality", {"form": form})
        items = suite.read([people], None)
        replies = suite.baseline(name, items, seed=0)
        found = suite.derived(suite.score(items, told(items, replies)))
        for metric in [m for m in found if m.endswith("_constant")]:
            beside = metric.removesuffix("_constant")
            assert found[metric]["value"] == pytest.approx(found[beside]["value"], abs=1e-3)
        assert found["parsed_strict"]["value"] == 1
    with pytest.raises(SutureError, match="E567"):
        load_suite("personality").baseline("majority", items)


@pytest.mark.parametrize("form", ["soft", "hard"])
def test_words_are_learnt_from_other_people_only(form: str, tmp_path: Path) -> None:
    """A word that gives the label away is found; a word that only one person uses is not."""
    rows = [
        {
            "id": n,
            "posts": [f"{'party' if n % 2 else 'library'} again, says person {n}"] * 2,
            "softlabels": {"E/I": float(n % 2 == 0)},
            "hardlabels": {"E/I": "IE"[n % 2]},
        }
        for n in range(40)
    ]
    suite = load_suite("personality", {"form": form, "dimensions": "E/I"})
    items = suite.read([write_jsonl(tmp_path / "people.jsonl", rows)], None)
    said = suite.baseline("tf-idf", items, seed=0)
    found = suite.derived(suite.score(items, told(items, said)))
    if form == "hard":
        assert found["ei.accuracy"]["value"] == 1
    else:
        assert found["ei.rmse"]["value"] < 0.3 < found["ei.rmse_constant"]["value"]
    backwards = suite.baseline("tf-idf", items[::-1], seed=0)[::-1]
    assert backwards == said
    for row in rows:
        row["posts"] = [f"nothing that is said twice {row['id']}"]
    items = suite.read([write_jsonl(tmp_path / "people.jsonl", rows)], None)
    said = suite.baseline("tf-idf", items, seed=0)
    found = suite.derived(suite.score(items, told(items, said)))
    if form == "soft":
        assert found["ei.rmse"]["value"] == pytest.approx(0.5, abs=0.05)
    with pytest.raises(SutureError, match="E567"):
        suite.baseline("tf-idf", [item.model_copy(update={form: None}) for item in items])


def test_people_without_labels_get_answers_and_no_errors(tmp_path: Path) -> None:
    bare = [{"id": one["id"], "posts": one["posts"][0]} for one in PEOPLE]
    suite = load_suite("personality")
    items = suite.read([write_jsonl(tmp_path / "bare.jsonl", bare)], None)
    rows = suite.score(items, told(items, ["[[9]]"] * len(items)))
    assert rows[0].scores["ei.said"] == 1
    assert set(suite.derived(rows)) == {"parsed_strict", "parsed_lenient", "ends_properly"}
    with pytest.raises(SutureError, match="E567"):
        suite.baseline("mean", items)


def test_other_labels_of_the_same_people(people: Path, tmp_path: Path) -> None:
    rows = [{"id": one["id"], "softlabels": {"E/I": 0.25}} for one in PEOPLE]
    labels = write_jsonl(tmp_path / "labels.jsonl", rows)
    suite = load_suite("personality", {"labels": str(labels)})
    items = suite.read([people], None)
    assert {(item.soft, item.hard) for item in items[:2]} == {(0.25, None), (None, None)}
    write_jsonl(labels, rows[1:])
    with pytest.raises(SutureError, match=r"E564.*'1'"):
        suite.read([people], None)


def test_labels_may_be_null(tmp_path: Path) -> None:
    """As `suture labels estimate` writes items without votes, and exact ties."""
    rows = [
        {
            "id": one["id"],
            "softlabels": {"E/I": 0.5, "S/N": None},
            "hardlabels": {"E/I": None, "S/N": None, "T/F": "T"},
        }
        for one in PEOPLE
    ]
    labels = write_jsonl(tmp_path / "labels.jsonl", rows)
    bare = [{"id": one["id"], "posts": one["posts"]} for one in PEOPLE]
    suite = load_suite("personality", {"labels": str(labels)})
    items = suite.read([write_jsonl(tmp_path / "people.jsonl", bare)], None)
    found = {(item.dimension, item.soft, item.hard) for item in items[:3]}
    assert found == {("E/I", 0.5, None), ("S/N", None, None), ("T/F", None, "T")}
    derived = suite.derived(suite.score(items, told(items, ["[[9]]"] * len(items))))
    assert "ei.rmse" in derived
    assert "sn.rmse" not in derived


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"hardlabels": {"EI": None}}, "'None' of 'EI'"),
        ({"softlabels": {"EI": None}}, "null of 'EI'"),
        ({"softlabels": {"E/I": 1.5}}, "1.5 of 'E/I'"),
        ({"softlabels": {"EI": 0.5}}, "of 'EI'"),
        ({"hardlabels": {"T/F": "I"}}, "'I' of 'T/F'"),
    ],
)
def test_a_label_outside_its_space(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    file = write_jsonl(tmp_path / "people.jsonl", [{**PEOPLE[0], **change}])
    with pytest.raises(SutureError, match="E564") as caught:
        load_suite("personality").read([file], None)
    assert what in str(caught.value)


def test_refusals(people: Path) -> None:
    with pytest.raises(SutureError, match="E565"):
        load_suite("personality", {"dimensions": ["I/E"]})
    with pytest.raises(SutureError, match="E566"):
        load_suite("personality").read([], None)
    with pytest.raises(SutureError, match="E702"):
        load_suite("personality", {"method": "psycot"})
    with pytest.raises(SutureError, match="E569"):
        load_suite("personality").read([write_jsonl(people, [{"id": 1, "posts": ["short"]}])], None)


def test_questions_for_engines_elsewhere_and_their_replies(people: Path, tmp_path: Path) -> None:
    rows = prompts("personality", data=people, options={"method": "few-shot", "form": "hard"})
    assert len(rows) == 24
    assert [turn["role"] for turn in rows[0]["messages"]] == [*["user", "assistant"] * 2, "user"]
    replies = write_jsonl(
        tmp_path / "replies.jsonl", [{"item": row["item"], "reply": "CHOICE: A"} for row in rows]
    )
    found = measure(
        "personality", "elsewhere", data=people, replies=replies, options={"form": "hard"}
    )
    assert found.metrics["ei.accuracy"] == 0.5
    assert found.metrics["sn.accuracy"] == 1.0
    found.save(tmp_path / "m.json", redact=True)
    again = Measurement.load(tmp_path / "m.json")
    assert again.metrics == found.metrics
    assert "fox" not in (tmp_path / "m.json").read_text()


def test_a_questionnaire_is_asked_elsewhere_turn_by_turn(people: Path, tmp_path: Path) -> None:
    file, said = tmp_path / "said.jsonl", list[dict[str, str]]()
    options = {"method": "questionnaire", "form": "hard"}
    rows = prompts("personality", data=people, options=options)
    number = 0
    while rows:
        number += 1
        assert {row["item"].rpartition("#")[2] for row in rows} == {str(number)}
        assert all(len(row.get("messages", [0])) == 2 * number - 1 for row in rows)
        said += [{"item": row["item"], "reply": "CHOICE: A"} for row in rows]
        write_jsonl(file, said)
        rows = prompts("personality", data=people, options=options, replies=file)
    assert number > 2
    found = measure("personality", "elsewhere", data=people, replies=file, options=options)
    assert found.metrics["ei.accuracy"] == 0.5


@pytest.mark.parametrize("method", ["zero-shot", "questionnaire"])
def test_a_model_is_asked(method: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "people.jsonl", PEOPLE[:2])
    folder = tmp_path / "model"
    source = tiny(vocab=300, layers=1)
    folder.mkdir()
    for one in source.iterdir():
        content = one.read_bytes()
        if one.name in ("config.json", "tokenizer_config.json"):
            content = content.replace(b"512", b"8192")
        (folder / one.name).write_bytes(content)
    lm = enliven(load(Checkpoint.open(folder)))
    options = {"method": method, "dimensions": ["E/I"], "posts": 1}
    found = measure("personality", lm, data=file, max_new_tokens=3, options=options)
    assert [row.item for row in found.rows] == ["1/EI", "2/EI"]
    assert len(found.replies) == 2
    assert found.metrics["parsed_strict"] == 0
    assert json.loads(json.dumps(found.as_dict()))["data"]["options"]["method"] == method


@needs_data
def test_the_constant_answer_of_mbtibench() -> None:
    """The first row of MBTIBench's table, to the last printed digit."""
    suite = load_suite("personality")
    items = suite.read([FILE], None)
    assert len(items) == 286 * 4
    rows = suite.score(items, told(items, [""] * len(items)))
    wanted = {"ei": (2.66, 2.29), "sn": (2.70, 2.31), "tf": (2.82, 2.43), "jp": (3.04, 2.59)}
    rows = [Row(row.item, row.scores, row.cluster) for row in rows]
    found = suite.derived(rows)
    for key, (rmse, mae) in wanted.items():
        assert round(found[f"{key}.s_rmse_constant"]["value"], 2) == rmse
        assert round(found[f"{key}.s_mae_constant"]["value"], 2) == mae
    assert found["parsed_strict"]["value"] == 0
