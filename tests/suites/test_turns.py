"""Several turns through an engine elsewhere: out turn by turn, back in one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes import enliven
from helpers import write_jsonl
from suture.checkpoint import Checkpoint
from suture.cli.main import run
from suture.errors import SutureError
from suture.inference import LoadedModel, converse, load
from suture.ledger import Measurement
from suture.suites import measure
from suture.suites.prompts import prompts

RECORDS = [{"id": name, "text": f"the {name} dog", "gold": "lazy"} for name in ("a", "b", "c")]
LONG = {
    "name": "long",
    "suite": "emotion",
    "title": "asked in three turns",
    "answer": {"kind": "label", "labels": ["lazy", "quick"]},
    "prompts": {
        "zero-shot": [["{input}"]],
        "step-by-step": [["{input}\nWhich words?", "Why?", "So, {labels}?"]],
    },
    "metrics": [{"name": "accuracy"}],
    "headline": "accuracy",
}
SHORT = {**LONG, "name": "short", "prompts": {"zero-shot": [["{input}"]],
         "step-by-step": [["{input} Say {labels}."]]}}  # fmt: skip


@pytest.fixture
def lm(tiny: Callable[..., Path]) -> LoadedModel:
    return enliven(load(Checkpoint.open(tiny(vocab=300, seed=3))))


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    files = []
    for task in (LONG, SHORT):
        file = tmp_path / f"{task['name']}.yaml"
        file.write_text(yaml.safe_dump(task))
        files.append(str(file))
    data = write_jsonl(tmp_path / "records.jsonl", RECORDS)
    return {"data": data, "options": {"task": files, "method": "step-by-step"}}


def elsewhere(lm: LoadedModel, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An engine that knows `prompt`, `messages` and nothing else."""
    plain = [row.get("messages") or [{"role": "user", "content": row["prompt"]}] for row in rows]
    said = converse(lm, plain, max_new_tokens=6)
    return [
        {"item": row["item"], "reply": reply.text, "ended": reply.ended, "tokens": reply.tokens}
        for row, reply in zip(rows, said, strict=True)
    ]


def test_turn_by_turn_is_what_is_asked_here(
    lm: LoadedModel, asked: dict[str, Any], tmp_path: Path
) -> None:
    here = measure("emotion", lm, max_new_tokens=6, **asked)
    file = tmp_path / "said.jsonl"
    rows, said = prompts("emotion", **asked), list[dict[str, Any]]()
    left = []
    while rows:
        left.append([row["item"] for row in rows])
        said += elsewhere(lm, rows)
        rows = prompts("emotion", **asked, replies=write_jsonl(file, said))
    assert left == [
        [*(f"long/{name}#1" for name in "abc"), *(f"short/{name}" for name in "abc")],
        [f"long/{name}#2" for name in "abc"],
        [f"long/{name}#3" for name in "abc"],
    ]
    there = measure("emotion", "elsewhere", replies=file, **asked)
    assert [row.scores for row in there.rows] == [row.scores for row in here.rows]
    assert [reply.reply for reply in there.replies] == [reply.reply for reply in here.replies]
    assert there.metrics["long.unended"] == here.metrics["long.unended"]


def test_an_engine_may_go_through_the_turns_itself(
    lm: LoadedModel, asked: dict[str, Any], tmp_path: Path
) -> None:
    said = []
    for row in prompts("emotion", **asked):
        messages = [{"role": "user", "content": row["prompt"]}]
        for following in [*row.get("then", []), None]:
            (reply,) = converse(lm, [messages], max_new_tokens=6)
            messages.append({"role": "assistant", "content": reply.text})
            if following is not None:
                messages.append({"role": "user", "content": following})
        said.append({"item": row["item"].partition("#")[0], "reply": messages[-1]["content"]})
    file = write_jsonl(tmp_path / "said.jsonl", said)
    assert prompts("emotion", **asked, replies=file) == []
    here = measure("emotion", lm, max_new_tokens=6, **asked)
    there = measure("emotion", "elsewhere", replies=file, **asked)
    assert [reply.reply for reply in there.replies] == [reply.reply for reply in here.replies]


def test_a_cut_turn_is_not_ended_and_a_missing_one_is_said(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    said = [{"item": f"short/{name}", "reply": "lazy"} for name in "abc"]
    said += [{"item": f"long/{name}#{k}", "reply": "lazy"} for name in "abc" for k in (1, 2, 3)]
    said[3]["ended"] = False
    file = write_jsonl(tmp_path / "said.jsonl", said)
    found = measure("emotion", "elsewhere", replies=file, **asked)
    assert found.metrics["long.unended"] == pytest.approx(1 / 3)
    assert found.metrics["long.accuracy"] == 1.0
    with pytest.raises(SutureError, match="turns are left") as caught:
        measure("emotion", "elsewhere", replies=write_jsonl(file, said[:-1]), **asked)
    assert caught.value.code == "E522"
    assert prompts("emotion", **asked, replies=file)[0]["item"] == "long/c#3"
    with pytest.raises(SutureError, match="comes before it") as caught:
        prompts("emotion", **asked, replies=write_jsonl(file, said[:-2] + said[-1:]))
    assert caught.value.code == "E592"


def test_single_turns_stay_as_they_were(asked: dict[str, Any]) -> None:
    asked["options"]["method"] = "zero-shot"
    rows = prompts("emotion", **asked)
    assert rows[0] == {"item": "long/a", "prompt": "Text: the a dog"}


def test_the_command_says_what_is_left(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "next.jsonl", tmp_path / "said.jsonl"
    told = ["measure", "emotion", "--prompts", str(out), "--data", str(asked["data"]), "--set",
            f"task={asked['options']['task'][0]}", "--set", "method=step-by-step"]  # fmt: skip
    assert run(told) == 0
    assert "turns are left" in capsys.readouterr().out
    said: list[dict[str, Any]] = []
    for _ in range(3):
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        said += [{"item": row["item"], "reply": "lazy"} for row in rows]
        assert run([*told, "--replies", str(write_jsonl(file, said))]) == 0
    assert "nothing is left to ask" in capsys.readouterr().out
    assert out.read_text() == ""
    scored = tmp_path / "m.json"
    about = [*told[:2], "--model", "NAME", "--replies", str(file), "-o", str(scored), *told[4:]]
    assert run(about) == 0
    assert Measurement.load(scored).metrics["long.accuracy"] == 1.0


def test_an_item_may_not_be_called_as_a_turn_of_another(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    records = [{**RECORDS[0], "id": name} for name in ("t", "t#1")]
    asked = {**asked, "data": write_jsonl(tmp_path / "clash.jsonl", records)}
    with pytest.raises(SutureError, match="as a turn of 'long/t'") as caught:
        prompts("emotion", **asked)
    assert caught.value.code == "E595"


def test_replies_to_other_questions_are_refused(
    asked: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("suture.progress.silent", False)
    asked["options"] = {**asked["options"], "task": asked["options"]["task"][1:]}
    rows = prompts("emotion", **asked)
    said = [{"item": row["item"], "prompt": row["prompt"], "reply": "lazy"} for row in rows]
    templated = [{**row, "prompt": f"<user>{row['prompt']}<assistant>"} for row in said]
    extra = [*said, {"item": "short/z", "reply": "lazy"}]
    for right in (said, templated, extra):
        file = write_jsonl(tmp_path / "right.jsonl", right)
        assert measure("emotion", "m", replies=file, **asked).metrics["short.accuracy"] == 1
    assert "1 of 4 replies are to nothing that is asked" in capsys.readouterr().err
    other = write_jsonl(tmp_path / "o.jsonl", [{**said[0], "prompt": "the sly fox"}, *said[1:]])
    for ask in (
        lambda: measure("emotion", "m", replies=other, **asked),
        lambda: prompts("emotion", replies=other, **asked),
    ):
        with pytest.raises(SutureError, match="answers another question") as caught:
            ask()
        assert caught.value.code == "E594"
