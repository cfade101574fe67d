"""Baselines: what they learn from a few records of our own, for every kind of answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helpers import write_jsonl, write_tokenizer
from suture.data.tasks.record import Record, Turn
from suture.errors import SutureError
from suture.suites import measure
from suture.suites.answerers import Baseline
from suture.suites.tasks.features import most_similar, text_states, views, word_states
from suture.suites.tasks.learning import BASELINES, learn, log_odds
from suture.suites.tasks.spec import TaskSpec
from tiny_families import tiny_family

GOOD = ["lovely", "warm", "bright", "kind"]
BAD = ["dull", "cold", "grey", "rude"]
NAMES = ["Ana", "Bo", "Cleo", "Dag", "Eve", "Finn", "Gil"]


def _task(answer: Mapping[str, Any], metric: str, **more: Any) -> TaskSpec:
    return TaskSpec.load(
        {
            "name": "t",
            "suite": "sentiment",
            "title": "a task",
            "answer": answer,
            "prompts": {"zero-shot": [["{input} {answer_form}"]]},
            "metrics": [{"name": metric}],
            "headline": metric,
            **more,
        }
    )


LABEL = _task({"kind": "label", "labels": ["bad", "good"]}, "accuracy")
LABELS = _task({"kind": "labels", "labels": ["bad", "good"]}, "micro_f1")
SCORE = _task({"kind": "score", "low": -1, "high": 1}, "mae")
SPANS = _task({"kind": "spans"}, "micro_f1")
PAIRS = _task(
    {
        "kind": "pairs",
        "parts": [
            {"name": "who", "kind": "span"},
            {"name": "how", "kind": "label", "labels": ["bad", "good"]},
        ],
    },
    "micro_f1",
)
LINKS = _task(
    {
        "kind": "pairs",
        "parts": [{"name": "felt", "kind": "number"}, {"name": "caused", "kind": "number"}],
    },
    "micro_f1",
)


def _days(gold: Callable[[bool], Any], copies: int = 12) -> list[Record]:
    """One word decides; all else is said of both kinds of day."""
    found = []
    for i in range(copies):
        for good, words in ((True, GOOD), (False, BAD)):
            for word in words:
                text = f"number {i} was a {word} day in town"
                found.append(Record(id=f"{word}{i}", text=text, gold=gold(good)))
    return found


def _named(gold: Callable[[str, bool], Any]) -> list[Record]:
    found = []
    for i, name in enumerate(NAMES * 4):
        good = i % 2 == 0
        text = f"today {name} was {'kind' if good else 'rude'} to us"
        found.append(Record(id=str(i), text=text, gold=[gold(name, good)]))
    return found


ASKED = [
    Record(id="a", text="it was a warm day"),
    Record(id="b", text="it was a rude day"),
    Record(id="c", text="unheard of"),
]


def test_the_most_frequent_answer() -> None:
    train = [*_days(lambda good: "good" if good else "bad"), Record(id="x", text="y", gold="bad")]
    assert learn("majority", LABEL, train, ASKED) == ["bad"] * 3
    several = [
        Record(id=str(i), text="x", gold=g) for i, g in enumerate([["good", "bad"], ["bad"]])
    ]
    several.append(Record(id="z", text="x", gold=["bad", "good"]))  # another order of one set
    assert learn("majority", LABELS, several, ASKED[:1]) == [["bad", "good"]]
    scores = [Record(id=str(i), text="x", gold=g) for i, g in enumerate([0.5, -1.0])]
    assert learn("majority", SCORE, scores, ASKED[:1]) == [-0.25]
    assert learn("majority", SPANS, _named(lambda name, good: name), ASKED[:1]) == [["Ana"]]


@pytest.mark.parametrize("name", ["lexicon", "tf-idf", "embedding"])
def test_words_decide_a_label(name: str) -> None:
    train = _days(lambda good: "good" if good else "bad")
    assert learn(name, LABEL, train, ASKED[:2]) == ["good", "bad"]
    assert learn(name, LABEL, train, ASKED[:2]) == learn(name, LABEL, train, ASKED[:2])


def test_a_lexicon_that_knows_no_word_takes_the_usual_answer() -> None:
    train = [*_days(lambda good: "good" if good else "bad"), Record(id="x", text="y", gold="bad")]
    assert learn("lexicon", LABEL, train, ASKED)[2] == "bad"


@pytest.mark.parametrize("name", ["lexicon", "tf-idf", "embedding"])
def test_words_decide_labels_and_scores(name: str) -> None:
    both = learn(name, LABELS, _days(lambda good: ["good"] if good else ["bad"]), ASKED[:2])
    assert both == [["good"], ["bad"]]
    high, low = learn(name, SCORE, _days(lambda good: 0.9 if good else -0.9), ASKED[:2])
    assert 1 >= high > 0 > low >= -1


def test_log_odds_are_those_of_monroe() -> None:
    texts = [Counter({"a": 30, "b": 10}), Counter({"a": 10, "b": 40, "c": 10})]
    # 100 words, so the prior is worth ten: as often as in all texts, 4 of them "a"
    inside, outside = (30 + 4) / (40 + 10 - 34), (10 + 4) / (60 + 10 - 14)
    z = math.log(inside / outside) / math.sqrt(1 / 34 + 1 / 14)
    assert log_odds(texts, [True, False]) == {"a": pytest.approx(z)}
    assert log_odds([Counter("ab"), Counter("b")], [True, False]) == {}  # nothing is credible
    assert log_odds(texts, [True, True]) == {}


@pytest.mark.parametrize("name", ["lexicon", "tf-idf"])
def test_pieces_are_found_in_new_texts(name: str) -> None:
    asked = [Record(id="n", text="today Cleo was kind to Finn"), Record(id="o", text="nobody")]
    found = learn(name, SPANS, _named(lambda who, good: who), asked)
    assert "Cleo" in found[0]
    assert found[1] == []


def test_a_tagger_finds_names_it_has_never_seen() -> None:
    asked = [Record(id="n", text="today Greta was kind to us")]
    assert learn("tf-idf", SPANS, _named(lambda who, good: who), asked) == [["Greta"]]
    assert learn("lexicon", SPANS, _named(lambda who, good: who), asked) == [[]]
    pairs = _named(lambda who, good: [who, "good" if good else "bad"])
    assert learn("tf-idf", PAIRS, pairs, asked) == [[["Greta", "good"]]]


def test_pieces_of_several_words() -> None:
    train = [
        Record(id=str(i), text=f"we met {name} Lund yesterday", gold=[f"{name} Lund"])
        for i, name in enumerate(NAMES)
    ]
    asked = [Record(id="x", text="we met Bo Lund yesterday")]
    for name in ("lexicon", "tf-idf"):
        assert learn(name, SPANS, train, asked) == [["Bo Lund"]]


@pytest.mark.parametrize("name", ["lexicon", "tf-idf"])
def test_links_between_utterances(name: str) -> None:
    def talk(number: int, news: str, answer: str) -> str:
        return f"1. Ana: hello {number}\n2. Bo: {news}\n3. Ana: {answer}"

    train = [
        Record(id=f"{i}", text=talk(i, "we won the cup", "hurray"), gold=[[3, 2]]) for i in range(6)
    ] + [Record(id=f"n{i}", text=talk(i, "it is noon", "I see"), gold=[]) for i in range(6)]
    asked = [
        Record(id="a", text=talk(9, "we won the cup", "hurray")),
        Record(id="b", text=talk(9, "it is noon", "I see")),
    ]
    assert learn(name, LINKS, train, asked) == [[[3, 2]], []]


def test_a_text_is_answered_as_the_most_similar_one_was() -> None:
    spec = _task({"kind": "text"}, "bleu_2")
    train = [
        Record(id="1", text="my cat died", gold="I am so sorry."),
        Record(id="2", text="I passed the exam", gold="Congratulations!"),
        Record(id="3", text="the exam was hard", gold="Well done, still."),
        Record(id="4", text="my cat is ill", gold="I hope it gets well."),
    ]
    asked = [Record(id="a", text="my old cat died")]
    for name in ("tf-idf", "embedding"):
        assert learn(name, spec, train, asked) == ["I am so sorry."]


def test_what_is_seen_of_a_record() -> None:
    spec = _task(
        {"kind": "label", "labels": ["a", "b"]}, "accuracy", shows=["context", "text", "caption"]
    )
    record = Record(
        id="1",
        text="one two three four five six Ana seven eight nine ten eleven",
        aspect="Ana",
        context=[Turn(speaker="x", text="before"), Turn(text="last")],
        caption="a cat",
        gold="a",
    )
    found = views(spec, record)
    assert found["near"] == "three four five six seven eight nine ten"
    assert (found["last"], found["caption"]) == ("last", "a cat")
    assert found["context"] == "x: before\nlast"


def test_the_most_similar_come_first() -> None:
    train = _days(lambda good: "good")
    ((first, *_),) = most_similar(LABEL, train, [Record(id="q", text="a rude day")], 2)
    assert "rude" in train[first].text


def test_what_a_baseline_cannot_do() -> None:
    train = _named(lambda who, good: who)
    strangers = [Record(id="1", text="x", gold="bad"), Record(id="2", text="y", gold="good")]
    cases: list[tuple[str, TaskSpec, list[Record]]] = [
        ("tf-idf", LABEL, []),
        ("embedding", SPANS, train),
        ("embedding", LINKS, [Record(id="1", text="1. A: x", gold=[[1, 1]])]),
        ("lexicon", _task({"kind": "text"}, "bleu_2"), [Record(id="1", text="x", gold="y")]),
        ("tf-idf", LABEL, strangers),
    ]
    for name, spec, records in cases:
        with pytest.raises(SutureError) as caught:
            learn(name, spec, records, ASKED)
        assert caught.value.code == "E583"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT; its tokenizer knows every byte and puts a token at either end."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    path = tmp_path_factory.mktemp("bert") / "m"
    tiny_family(path, "bert", loud=6.0, vocab_size=300)
    write_tokenizer(path, vocab=300)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A <|end|>", special_tokens=[("<|user|>", 1), ("<|end|>", 0)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def _plain_states(folder: Path, text: str, layer: int) -> tuple[Any, Any]:
    """Of one text alone, and the characters of each token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    read = tokenizer(text, return_offsets_mapping=True)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([read["input_ids"]]), output_hidden_states=True)
    return out.hidden_states[layer][0].numpy(), read["offset_mapping"]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_states_of_words_and_texts(kind: str, reader: Path, tiny: Callable[..., Path]) -> None:
    folder = reader if kind == "encoder" else tiny(vocab=300)
    texts = [["the", "lazy", "dog!"], ["übel"], [], ["How", "do", "I", "bake", "a", "loaf", "?"]]
    (found,) = word_states([texts], str(folder), 1)
    (means,) = text_states([[" ".join(words) for words in texts]], str(folder), 1)
    assert found[2].shape[0] == 0
    assert not means[2].any()
    for words, vectors, mean in zip(texts, found, means, strict=True):
        if not words:
            continue
        states, spans = _plain_states(folder, " ".join(words), 1)
        own = [k for k, (start, end) in enumerate(spans) if start != end]
        assert len(own) == len(spans) - 2 * (kind == "encoder")
        assert mean == pytest.approx(states[own].mean(axis=0), abs=1e-5)
        at = 0
        for word, vector in zip(words, vectors, strict=True):
            mine = [k for k in own if spans[k][0] < at + len(word) and spans[k][1] > at]
            assert vector == pytest.approx(states[mine].mean(axis=0), abs=1e-5)
            at += len(word) + 1


def test_words_beyond_what_can_be_read_have_no_state(reader: Path) -> None:
    (((vectors),),) = word_states([[["dog"] * 100]], str(reader), 1)
    assert vectors[0].any()
    assert not vectors[-1].any()


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_states_of_a_checkpoint(kind: str, reader: Path, tiny: Callable[..., Path]) -> None:
    folder = str(reader if kind == "encoder" else tiny(vocab=300))
    train = _days(lambda good: "good" if good else "bad", 1)
    found = learn("embedding", LABEL, train, train, model=folder)
    assert len(found) == len(train)
    assert set(found) <= {"good", "bad"}
    with pytest.raises(SutureError) as caught:
        learn("embedding", LABEL, train, train, model=folder, layer=9)
    assert caught.value.code == "E590"


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_pieces_from_the_states_of_words(
    kind: str, reader: Path, tiny: Callable[..., Path]
) -> None:
    folder = str(reader if kind == "encoder" else tiny(vocab=300))
    asked = [
        Record(id="n", text="today Cleo was kind to us"),
        Record(id="o", text="was kind to us"),
    ]
    train = _named(lambda who, good: who)
    assert learn("embedding", SPANS, train, asked, model=folder) == [["Cleo"], []]
    pairs = _named(lambda who, good: [who, "good" if good else "bad"])
    found = learn("embedding", PAIRS, pairs, asked[:1], model=folder)
    assert found == [[["Cleo", "good"]]]
    assert found == learn("embedding", PAIRS, pairs, asked[:1], model=folder)
    several = [
        Record(id=str(i), text=f"we met {name} Lund yesterday", gold=[f"{name} Lund"])
        for i, name in enumerate(NAMES)
    ]
    seen = [Record(id="x", text="we met Bo Lund yesterday")]
    assert learn("embedding", SPANS, several, seen, model=folder) == [["Bo Lund"]]


def test_pieces_by_states_go_through_the_suite(reader: Path, tmp_path: Path) -> None:
    named = _named(lambda who, good: who)
    rows = [{"id": r.id, "text": r.text, "gold": {"spans": r.gold}} for r in named]
    data = write_jsonl(tmp_path / "r.jsonl", rows)
    known = [{**row, "id": f"t{row['id']}", "text": f"{row['text']} again"} for row in rows]
    train = write_jsonl(tmp_path / "t.jsonl", known)
    options = {"task": "mate-twitter2015", "train": str(train)}
    asked = Baseline("embedding", {"model": str(reader), "layer": 2})
    found = measure("sentiment", asked, data=data, options=options)
    assert found.metrics["mate-twitter2015.micro_f1"] == 1.0
    assert found.metrics["mate-twitter2015.parsed_strict"] == 1.0
    assert found.model["model"] == str(reader)
    with pytest.raises(SutureError, match="needs a checkpoint") as caught:
        measure("sentiment", Baseline("embedding"), data=data, options=options)
    assert caught.value.code == "E583"


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_measured_like_a_model(name: str, tmp_path: Path) -> None:
    rows = [
        {"id": r.id, "text": r.text, "gold": r.gold}
        for r in _days(lambda good: "positive" if good else "negative")
    ]
    data = write_jsonl(tmp_path / "r.jsonl", rows)
    known = [{**row, "id": f"t{row['id']}", "text": f"{row['text']} again"} for row in rows]
    train = write_jsonl(tmp_path / "t.jsonl", known)
    options = {"task": "sst2", "train": str(train)}
    found = measure("emotion", Baseline(name, {"seed": 1}), data=data, options=options)
    assert found.model["path"] == f"baseline:{name}"
    assert found.metrics["sst2.parsed_strict"] == 1.0
    assert found.metrics["sst2.accuracy"] == (0.5 if name == "majority" else 1.0)
    with pytest.raises(SutureError, match="by heart") as caught:
        measure("emotion", Baseline(name), data=data, options={"task": "sst2"})
    assert caught.value.code == "E583"
