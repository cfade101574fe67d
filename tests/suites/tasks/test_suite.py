"""The suite over tasks: reading, policies, variants, means, examples, scoring again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import yaml

from fakes import Mock
from helpers import write_jsonl
from suture.checkpoint import Checkpoint
from suture.errors import SutureError
from suture.inference import load
from suture.ledger import Measurement, Role, compare
from suture.suites import load_suite, measure, rescore

RECORDS = [
    {"id": "a", "text": "a warm and funny evening", "gold": "positive"},
    {"id": "b", "text": "two dull hours", "gold": "negative"},
    {"id": "c", "text": "I laughed and cried", "gold": "positive", "cluster": "x"},
    {"id": "d", "text": "dull from the start", "gold": "negative", "cluster": "x"},
    {"id": "e", "text": "nothing works here", "gold": "negative"},
    {"id": "f", "text": "a lovely cast", "gold": "positive"},
]
TRAIN = [
    {"id": f"t{i}", "text": text, "gold": gold}
    for i, (text, gold) in enumerate(
        [
            ("a warm film", "positive"),
            ("a dull film", "negative"),
            ("funny and warm", "positive"),
            ("dull and slow", "negative"),
            ("warm and funny", "positive"),
            ("slow and dull hours", "negative"),
        ]
    )
]
TASK: dict[str, Any] = {
    "name": "films",
    "suite": "sentiment",
    "title": "how a sentence finds a film",
    "answer": {"kind": "label", "labels": ["negative", "positive"], "default": "positive"},
    "prompts": {
        "zero-shot": [
            ["{input}\nIs it {labels}?"],
            ["Say {labels} of this.\n{input}"],
            ["{input} {answer_form}"],
        ],
        "step-by-step": [["{input}\nWhat is praised?", "So is it {labels}?"]],
    },
    "metrics": [{"name": "accuracy"}, {"name": "macro_f1"}],
    "headline": "macro_f1",
}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    file = tmp_path / "films.yaml"
    file.write_text(yaml.safe_dump(TASK))
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "records.jsonl", RECORDS)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "train.jsonl", TRAIN)


def _measure(rule: Callable[[Any], str], task: Path, data: Path, **options: Any) -> Measurement:
    return measure("sentiment", Mock(rule), data=data, options={"task": str(task), **options})


def test_a_task_is_added_by_one_file(task: Path, data: Path) -> None:
    found = _measure(lambda item: item.record.gold, task, data)
    assert found.metrics["films.accuracy"] == found.metrics["films.macro_f1"] == 1.0
    assert [row.item for row in found.rows][:2] == ["films/a", "films/b"]
    assert found.rows[2].cluster == found.rows[3].cluster == "films/x"
    assert set(found.metrics) == set(found.derived) == set(found.better)
    first = found.replies[0].prompt
    assert first == "Text: a warm and funny evening\nIs it negative or positive?"


ANSWERS = {"a": "positive", "b": "negative", "c": "I think positive", "d": "hm", "e": "", "f": "no"}


@pytest.mark.parametrize(
    ("policy", "parser", "accuracy", "macro", "n"),
    [
        # right a b; c d e f unread: F1 positive 1/2 of 3 asked, 1 given; the same of negative
        ("abstain", "strict", 2 / 6, 0.5, 6),
        ("abstain", "lenient", 3 / 6, (2 * 2 / 5 + 2 / 4) / 2, 6),
        # unread is positive: positive 3 hits, 3 asked, 5 given; negative 1 hit, 3 asked, 1 given
        ("default", "strict", 4 / 6, (6 / 8 + 2 / 4) / 2, 6),
        ("drop", "strict", 1.0, 1.0, 2),
        ("drop", "lenient", 1.0, 1.0, 3),
    ],
)
def test_answers_that_cannot_be_read(
    policy: str, parser: str, accuracy: float, macro: float, n: int, task: Path, data: Path
) -> None:
    rule = lambda item: ANSWERS[item.record.id]  # noqa: E731
    found = _measure(rule, task, data, policy=policy, parser=parser)
    assert found.metrics["films.accuracy"] == pytest.approx(accuracy)
    assert found.metrics["films.macro_f1"] == pytest.approx(macro)
    assert found.derived["films.macro_f1"]["n"] == n
    assert f"policy {policy}" in found.derived["films.macro_f1"]["definition"]
    # both rates, whatever counts
    assert found.metrics["films.parsed_strict"] == pytest.approx(2 / 6)
    assert found.metrics["films.parsed_lenient"] == pytest.approx(3 / 6)
    assert found.derived["films.parsed_strict"]["n"] == 6


def test_a_default_has_to_be_given(tmp_path: Path, data: Path) -> None:
    answer = {"kind": "label", "labels": ["negative", "positive"]}
    file = tmp_path / "bare.yaml"
    file.write_text(yaml.safe_dump({**TASK, "answer": answer}))
    with pytest.raises(SutureError) as caught:
        _measure(lambda item: "x", file, data, policy="default")
    assert caught.value.code == "E581"


def test_replies_that_never_stop_are_counted(task: Path, data: Path) -> None:
    mock = Mock(lambda item: "positive positive positive", ended=False)
    found = measure("sentiment", mock, data=data, options={"task": str(task), "parser": "lenient"})
    assert found.metrics["films.unended"] == 1.0
    assert found.metrics["ends_properly"] == 0.0
    assert found.metrics["films.parsed_strict"] == 0.0


def test_wordings_and_orders_of_a_backend_with_a_known_bias(task: Path, data: Path) -> None:
    def first_label(item: Any) -> str:
        """Always the label that is named first; only the wording 1 makes it read the text."""
        if item.paraphrase == 1:
            return str(item.record.gold)
        text = item.turns[-1]
        return min(("negative", "positive"), key=text.index)

    found = _measure(first_label, task, data, paraphrases=3, orders=2)
    assert found.n == 36
    each = [found.metrics[f"films.accuracy.p{p}o{o}"] for p in range(3) for o in range(2)]
    assert each == pytest.approx([0.5, 0.5, 1.0, 1.0, 0.5, 0.5])
    assert found.metrics["films.accuracy.mean"] == pytest.approx(4 / 6)
    assert found.metrics["films.accuracy.sd"] == pytest.approx(stdev(each))
    assert found.metrics["films.accuracy.worst"] == 0.5
    assert found.metrics["films.macro_f1.worst"] == pytest.approx(1 / 3)
    assert found.derived["films.accuracy.p1o0"]["n"] == 6
    # all variants of a record are one cluster
    assert len({row.cluster for row in found.rows}) == 5
    shown = {r.prompt.splitlines()[-1] for r in found.replies if "@p0" in r.item}
    assert shown == {"Is it negative or positive?", "Is it positive or negative?"}


def test_more_wordings_than_there_are(task: Path, data: Path) -> None:
    for options in ({"paraphrases": 4}, {"orders": 3}, {"method": "step-by-stp"}):
        with pytest.raises(SutureError) as caught:
            _measure(lambda item: "x", task, data, **options)
        assert caught.value.code == "E580"


def test_headlines_of_an_aspect_are_averaged_held_out_ones_apart(
    tmp_path: Path, data: Path
) -> None:
    files = []
    for name, held_out in (("one", False), ("two", False), ("three", True), ("four", True)):
        file = tmp_path / f"{name}.yaml"
        about = {"name": name, "suite": "emotion", "aspect": "perception", "held_out": held_out}
        file.write_text(yaml.safe_dump({**TASK, **about}))
        files.append(str(file))

    def rule(item: Any) -> str:
        wrong = {"positive": "negative", "negative": "positive"}[item.record.gold]
        late = item.record.id in "def"
        return wrong if item.task in ("two", "four") and late else str(item.record.gold)

    found = measure("emotion", Mock(rule), data=data, options={"task": files})
    of = {name: found.metrics[f"{name}.macro_f1"] for name in ("one", "two", "three", "four")}
    assert of["one"] == 1.0 > of["two"]
    assert found.metrics["perception.mean"] == pytest.approx((of["one"] + of["two"]) / 2)
    assert found.metrics["perception.held_out_mean"] == pytest.approx((1 + of["four"]) / 2)
    assert "statistic" in found.derived["perception.mean"]


@pytest.mark.parametrize("sampler", ["balanced", "random", "nearest"])
def test_examples_come_from_the_training_records(
    sampler: str, task: Path, data: Path, train: Path
) -> None:
    options = {"task": str(task), "shots": 2, "sampler": sampler, "train": str(train)}
    suite = load_suite("sentiment", options)
    items = suite.read([data], None)
    again = load_suite("sentiment", options).read([data], None)
    assert [i.start for i in items] == [i.start for i in again]
    for item in items:
        assert [turn["role"] for turn in item.start] == ["user", "assistant"] * 2
        said = {turn["content"] for turn in item.start[1::2]}
        if sampler == "balanced":
            assert said == {"negative", "positive"}
    if sampler == "nearest":
        nearest = items[1].start[-2]["content"]  # of "two dull hours", the nearest stands last
        assert "slow and dull hours" in nearest


def test_a_record_is_never_its_own_example(task: Path, train: Path) -> None:
    options = {"task": str(task), "shots": 5, "train": str(train)}
    suite = load_suite("sentiment", options)
    for item in suite.read([train], None):
        assert not any(item.record.text == turn["content"] for turn in item.start[::2])
        assert len(item.start) == 10
    with pytest.raises(SutureError) as caught:
        load_suite("sentiment", {**options, "shots": 6}).read([train], None)
    assert caught.value.code == "E585"


def test_without_task_or_data(data: Path) -> None:
    with pytest.raises(SutureError, match="no task") as caught:
        measure("sentiment", Mock(lambda item: "x"), data=data)
    assert caught.value.code == "E579"
    with pytest.raises(SutureError, match="did you mean 'sst2'") as caught:
        measure("emotion", Mock(lambda item: "x"), data=data, options={"task": "sst3"})
    assert caught.value.code == "E574"
    with pytest.raises(SutureError) as caught:
        measure("emotion", Mock(lambda item: "x"), options={"task": "sst2"})
    assert caught.value.code == "E582"


def test_a_task_of_the_other_suite_and_an_id_that_stands_twice(task: Path, data: Path) -> None:
    with pytest.raises(SutureError, match="suture measure sentiment") as caught:
        measure("emotion", Mock(lambda item: "x"), data=data, options={"task": str(task)})
    assert caught.value.code == "E589"
    with pytest.raises(SutureError) as caught:
        measure("sentiment", Mock(lambda item: "x"), data=[data, data], options={"task": str(task)})
    assert caught.value.code == "E524"


def test_a_gold_outside_the_labels_is_named(task: Path, tmp_path: Path) -> None:
    rows = [*RECORDS, {"id": "z", "text": "so so", "gold": "mixed"}]
    data = write_jsonl(tmp_path / "odd.jsonl", rows)
    with pytest.raises(SutureError, match="'mixed'") as caught:
        _measure(lambda item: "x", task, data)
    assert caught.value.code == "E587"
    assert "z" in str(caught.value.where)


def test_records_without_gold_are_answered_but_not_scored(task: Path, tmp_path: Path) -> None:
    rows = [{"id": row["id"], "text": row["text"]} for row in RECORDS]
    found = _measure(lambda item: "positive", task, write_jsonl(tmp_path / "r.jsonl", rows))
    assert "films.accuracy" not in found.metrics
    assert found.metrics["films.parsed_strict"] == 1.0


def test_a_checkpoint_is_asked_turn_by_turn(
    tiny: Callable[..., Path], task: Path, data: Path, tmp_path: Path
) -> None:
    lm = load(Checkpoint.open(tiny()), device="cpu")
    options = {"task": str(task), "method": "step-by-step", "parser": "lenient"}
    found = measure("sentiment", lm, data=data, options=options, max_new_tokens=4)
    assert found.model["fingerprint"] == lm.fingerprint
    assert found.replies[0].prompt.endswith("What is praised?\n\nSo is it negative or positive?")
    file = found.save(tmp_path / "m.json")
    again = rescore(file, out=tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == file.read_bytes()
    assert again.derived == found.derived


def test_a_before_model_says_how_likely_replies_are(
    tiny: Callable[..., Path], task: Path, data: Path
) -> None:
    lm, before = (load(Checkpoint.open(tiny(seed=seed)), device="cpu") for seed in (0, 1))
    for method, there in (("zero-shot", True), ("step-by-step", False)):
        options = {"task": str(task), "method": method}
        found = measure(
            "sentiment", lm, data=data, options=options, max_new_tokens=4, before=before
        )
        assert ("logprob_before" in found.metrics) == there


def test_examples_wordings_and_captions_are_compared_on_the_same_items(
    task: Path, train: Path, tmp_path: Path
) -> None:
    def rows(**beside: str) -> Path:
        return write_jsonl(tmp_path / "shown.jsonl", [{**row, **beside} for row in RECORDS])

    plain = _measure(lambda item: "positive", task, rows())
    gold = lambda item: item.record.gold  # noqa: E731
    shown = tmp_path / "with-caption.yaml"
    shown.write_text(yaml.safe_dump({**TASK, "shows": ["text", "caption"]}))
    others = [
        _measure(gold, task, rows(), shots=2, sampler="random", train=str(train)),
        _measure(gold, task, rows(), method="step-by-step"),
        _measure(gold, task, rows(), parser="lenient"),
        _measure(gold, task, rows(), images="none"),
        _measure(gold, shown, rows(caption="A queue before a cinema.")),
    ]
    for other in others:
        row = compare([plain], [other], roles=[Role.target("sentiment.films.macro_f1:higher")])
        assert row.rows[0].difference == pytest.approx(1 - 1 / 3)
    # what was shown is on record
    told = [one.data["shown_sha256"] for one in (plain, *others)]
    assert len(set(told)) == 4
    # other texts and other policies are still refused
    changed = write_jsonl(tmp_path / "n.jsonl", [{**row, "text": "new"} for row in RECORDS])
    for other in (_measure(gold, task, changed), _measure(gold, task, rows(), policy="drop")):
        with pytest.raises(SutureError) as caught:
            compare([plain], [other], roles=[Role.target("sentiment.films.macro_f1:higher")])
        assert caught.value.code == "E607"


def test_views_of_a_data_set_have_its_clusters(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "view.yaml"
    file.write_text(yaml.safe_dump({**TASK, "dataset": "twitter-sarcasm:first-label"}))
    found = _measure(lambda item: "positive", file, data)
    assert found.rows[2].cluster == "twitter-sarcasm/x"


def test_a_baseline_does_not_learn_what_is_asked(task: Path, train: Path, tmp_path: Path) -> None:
    copy = write_jsonl(tmp_path / "copy.jsonl", TRAIN)
    for same in (train, copy):
        suite = load_suite("sentiment", {"task": str(task), "train": str(same)})
        items = suite.read([train], None)
        with pytest.raises(SutureError, match="the very records that are asked") as caught:
            suite.baseline("lexicon", items)
        assert caught.value.code == "E583"


def test_records_may_be_a_table(task: Path, data: Path, tmp_path: Path) -> None:
    lines = ["id,text,gold", *(f"{row['id']},{row['text']},{row['gold']}" for row in RECORDS)]
    table = tmp_path / "records.csv"
    table.write_text("\n".join(lines))
    assert _measure(lambda item: item.record.gold, task, table).metrics["films.accuracy"] == 1.0
    answer = {"kind": "score", "low": -1, "high": 1}
    metrics = {"metrics": [{"name": "mae"}], "headline": "mae"}
    scores = tmp_path / "scores.yaml"
    scores.write_text(yaml.safe_dump({**TASK, "answer": answer, **metrics}))
    table = tmp_path / "records.tsv"
    table.write_text("id\ttext\tgold\n1\twarm\t0.5\n2\tdull\t-1\n")
    found = _measure(lambda item: "0", scores, table)
    assert found.metrics["films.mae"] == pytest.approx(0.75)


def test_nothing_read_is_said_once(
    task: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("suture.progress.silent", False)
    _measure(lambda item: f"I think {item.record.gold}", task, data)
    said = capsys.readouterr().err
    assert said.count("0 of 6 replies had the form asked for") == 1
    assert "parser=lenient reads 6 of them" in said
    _measure(lambda item: f"I think {item.record.gold}", task, data, parser="lenient")
    assert "0 of 6" not in capsys.readouterr().err


def test_metrics_of_variants_are_named_where_there_are_several(task: Path) -> None:
    one = load_suite("sentiment", {"task": str(task)})
    assert not any(name.startswith("films.macro_f1.") for name in one.metrics)
    two = load_suite("sentiment", {"task": str(task), "orders": 2})
    assert {"films.macro_f1.p0o1", "films.macro_f1.sd"} <= set(two.metrics)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SutureError) as caught:
        load_suite("emotion", {"task": "sst2"}).read([tmp_path / "nope"], None)
    assert caught.value.code == "E301"


def test_the_other_suite_is_named_with_the_file_as_given(task: Path, data: Path) -> None:
    with pytest.raises(SutureError) as caught:
        measure("emotion", Mock(lambda item: "x"), data=data, options={"task": str(task)})
    assert f"--set task={task}" in str(caught.value)


def test_two_models_are_paired_in_a_derived_metric(task: Path, data: Path) -> None:
    good = _measure(lambda item: item.record.gold, task, data)
    bad = _measure(lambda item: "positive", task, data)
    row = compare([bad], [good], roles=[Role.target("sentiment.films.macro_f1:higher")]).rows[0]
    assert row.difference == pytest.approx(1 - 1 / 3)
    assert row.verdict == "not proven"  # six items carry nothing


def test_training_records_that_are_asked_are_left_out_by_text(
    task: Path,
    train: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("suture.progress.silent", False)
    again = [{**row, "id": f"again{row['id']}"} for row in TRAIN[:4]]
    data = write_jsonl(tmp_path / "asked.jsonl", [*again, RECORDS[0]])
    suite = load_suite("sentiment", {"task": str(task), "train": str(train)})
    items = suite.read([data], None)
    suite.baseline("majority", items)
    assert "4 of 6 training records are asked too" in capsys.readouterr().err
    with pytest.raises(SutureError, match="the very records that are asked"):
        suite.baseline("majority", suite.read([write_jsonl(data, [*TRAIN, RECORDS[0]])], None))


def test_records_without_gold_are_told(
    task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("suture.progress.silent", False)
    data = write_jsonl(tmp_path / "r.jsonl", [RECORDS[0], {"id": "x", "text": "y", "label": "z"}])
    _measure(lambda item: "positive", task, data)
    assert "1 of 2 records say nothing of what is right" in capsys.readouterr().err


@pytest.mark.parametrize("gold", [[], "", [" "]])
def test_a_text_as_gold_says_something(gold: Any, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    metrics = {"metrics": [{"name": "rouge_l"}], "headline": "rouge_l"}
    file.write_text(yaml.safe_dump({**TASK, "answer": {"kind": "text"}, **metrics}))
    data = write_jsonl(tmp_path / "r.jsonl", [{**RECORDS[0], "gold": gold}])
    with pytest.raises(SutureError, match="record 'a'") as caught:
        _measure(lambda item: "well", file, data)
    assert caught.value.code == "E587"


def test_dropped_answers_are_left_out_of_every_metric_alike(task: Path, data: Path) -> None:
    one = _measure(lambda i: "" if i.record.id == "a" else i.record.gold, task, data, policy="drop")
    two = _measure(lambda i: "" if i.record.id == "f" else "positive", task, data, policy="drop")
    roles = [Role.target(f"sentiment.films.{name}:higher") for name in ("accuracy", "macro_f1")]
    for row in compare([two], [one], roles=roles).rows:
        assert (row.n, row.after) == (4, 1.0)
        assert "2 items left out: one side gave no answer that could be read" in row.note
