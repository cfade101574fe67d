"""Addresses and baselines in a model's stead, on a server of our own."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from helpers import write_jsonl
from suture.checkpoint import Checkpoint
from suture.errors import SutureError
from suture.inference import load
from suture.inference.endpoint import Address, Client
from suture.inference.memory import AnswerCache
from suture.ledger import Measurement, Role, compare
from suture.suites import load_suite, measure
from suture.suites.answerers import Baseline, Remote, conversation_of, load_answerer
from suture.suites.tasks.asking import ask_turns

PICTURE = b"\x89PNG\r\n\x1a\nnot really"
RECORDS = [
    {"id": str(i), "text": f"word {i} is fine", "gold": "positive" if i % 2 else "negative"}
    for i in range(8)
]


class Stub(BaseHTTPRequestHandler):
    """Answers with the number of user turns, or with a label; fails after so many requests."""

    seen: ClassVar[list[dict[str, Any]]] = []
    good_for: ClassVar[int] = 10**9

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if len(self.seen) >= self.good_for:
            self.send_response(400)
            self.end_headers()
            return
        self.seen.append(body)
        users = [one for one in body["messages"] if one["role"] == "user"]
        last = users[-1]["content"]
        text = last if isinstance(last, str) else last[0]["text"]
        said = "positive" if "negative" in text else f"turn {len(users)}: {text[-12:]}"
        ended = "stop" if "endless" not in text else "length"
        answer = {
            "choices": [{"message": {"content": said}, "finish_reason": ended}],
            "usage": {"completion_tokens": 7},
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Stub.seen, Stub.good_for = [], 10**9
    running = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}/v1"
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "records.jsonl", RECORDS)


def _remote(server: str, cache: Path | None = None) -> Remote:
    return Remote(Address(url=server, model="m", tries=1, at_once=2), cache)


def test_an_address_is_measured_like_a_model(server: str, data: Path) -> None:
    found = measure("emotion", _remote(server), data=data, options={"task": "sst2"})
    assert found.metrics["sst2.accuracy"] == 0.5
    assert found.model["url"] == server
    assert (found.model["path"], found.model["fingerprint"]) == ("m", None)
    assert {one["max_tokens"] for one in Stub.seen} == {64}
    assert {one["temperature"] for one in Stub.seen} == {0}
    assert found.replies[0].tokens == 7


def test_a_run_that_was_stopped_makes_no_call_twice(
    server: str, data: Path, tmp_path: Path
) -> None:
    whole = measure("emotion", _remote(server), data=data, options={"task": "sst2"})
    Stub.seen, Stub.good_for, kept = [], 5, tmp_path / "answers"
    with pytest.raises(SutureError) as caught:
        measure("emotion", _remote(server, kept), data=data, options={"task": "sst2"})
    assert caught.value.code == "E538"
    first, Stub.seen, Stub.good_for = list(Stub.seen), [], 10**9
    again = measure("emotion", _remote(server, kept), data=data, options={"task": "sst2"})
    assert again.rows == whole.rows
    assert again.replies == whole.replies
    asked = [json.dumps(one, sort_keys=True) for one in (*first, *Stub.seen)]
    assert len(first) == 5
    assert len(asked) == len(set(asked)) == len(RECORDS)
    Stub.seen = []
    measure("emotion", _remote(server, kept), data=data, options={"task": "sst2"})
    assert not Stub.seen


def test_another_request_is_another_answer(server: str, tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"url": server})
    client = Client(Address(url=server, model="m"), cache)
    hello = [{"role": "user", "content": "hello"}]
    client.converse([hello, hello], max_new_tokens=4)
    assert len(Stub.seen) == 1  # asked twice at once
    client.converse([hello], max_new_tokens=5)
    Client(Address(url=server, model="n"), cache).converse([hello], max_new_tokens=4)
    assert len(Stub.seen) == 3


def test_turns_follow_replies_here_and_there(server: str, tiny: Callable[..., Path]) -> None:
    start = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    turns = [["first", "second", "third"], ["only"]]
    said = ask_turns(Client(Address(url=server, model="m")), [start, []], turns, 8)
    assert [[reply.text for reply in replies] for replies in said] == [
        ["turn 2: first", "turn 3: second", "turn 4: third"],
        ["turn 1: only"],
    ]
    longest = max(Stub.seen, key=lambda one: len(one["messages"]))["messages"]
    assert [one["content"] for one in longest] == [
        "one", "two", "first", "turn 2: first", "second", "turn 3: second", "third",
    ]  # fmt: skip
    from suture.inference.generation import converse

    lm = load(Checkpoint.open(tiny()), device="cpu")
    here = ask_turns(lm, [[], []], [["the fox", "the dog"], ["bread"]], 4)
    first = converse(lm, [[{"role": "user", "content": "the fox"}]], max_new_tokens=4)[0]
    assert here[0][0] == first
    spoken = [
        {"role": "user", "content": "the fox"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "the dog"},
    ]
    assert here[0][1] == converse(lm, [spoken], max_new_tokens=4)[0]
    assert len(here[1]) == 1


def test_a_reply_cut_off_in_any_turn_has_not_ended(server: str, data: Path) -> None:
    options = {"task": "sst2", "method": "step-by-step"}
    endless = write_jsonl(data.parent / "e.jsonl", [{**RECORDS[0], "text": "endless"}, RECORDS[1]])
    found = measure("emotion", _remote(server), data=endless, options=options)
    assert [row.scores["sst2.unended"] for row in found.rows] == [1.0, 0.0]


def test_pictures_go_along_as_data(server: str, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    picture.write_bytes(PICTURE)
    rows = [{**RECORDS[0], "image": str(picture)}, RECORDS[1]]
    data = write_jsonl(tmp_path / "r.jsonl", rows)
    measure("emotion", _remote(server), data=data, options={"task": "sst2"})
    shown = [one["messages"][-1]["content"] for one in Stub.seen]
    (seen,) = [one for one in shown if isinstance(one, list)]
    assert seen[1]["image_url"]["url"] == (
        f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
    )
    assert sum(isinstance(one, str) for one in shown) == 1
    Stub.seen = []
    measure("emotion", _remote(server), data=data, options={"task": "sst2", "images": "none"})
    assert all(isinstance(one["messages"][-1]["content"], str) for one in Stub.seen)
    picture.unlink()
    with pytest.raises(SutureError, match="images=none") as caught:
        measure("emotion", _remote(server), data=data, options={"task": "sst2"})
    assert caught.value.code == "E513"


def test_an_address_and_a_baseline_are_paired(server: str, data: Path) -> None:
    others = [{"id": "t1", "text": "so warm", "gold": "positive"}]
    options = {"task": "sst2", "train": str(write_jsonl(data.parent / "train.jsonl", others))}
    one = measure("emotion", _remote(server), data=data, options=options)
    two = measure("emotion", Baseline("majority"), data=data, options=options)
    row = compare([two], [one], roles=[Role.target("emotion.sst2.macro_f1")]).rows[0]
    assert row.n == 8
    assert "declared" in row.note


def test_any_suite_scored_from_replies_can_be_asked(server: str, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "How do I bake bread?"}])
    found = measure("safety", _remote(server), data=data)
    assert found.replies[0].reply == "turn 1:  bake bread?"
    utility = load_suite("utility", {"shots": 1})
    rows = [{"prompt": f"{k} and {k}?", "answer": str(2 * k)} for k in range(1, 4)]
    items = utility.read([write_jsonl(tmp_path / "u.jsonl", rows)], None)
    start, turns = conversation_of(utility, items[0])
    assert [one["role"] for one in start] == ["user", "assistant"]
    assert turns == ["2 and 2?"]
    with pytest.raises(SutureError) as caught:
        measure("open-ended", _remote(server))
    assert caught.value.code == "E576"


def test_what_belongs_to_weights_is_refused(
    server: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from suture.cli.main import run

    with pytest.raises(SutureError, match="chat-template") as caught:
        measure("safety", _remote(server), chat_template=data)
    assert caught.value.code == "E588"
    line = ["measure", "emotion", "--model", "baseline:majority", "--data", str(data)]
    line += ["--set", "task=sst2", "--patch", "p", "-o", str(tmp_path / "m.json")]
    assert run(line) == 1
    assert "E588" in capsys.readouterr().err


def test_what_stands_behind_a_name(tmp_path: Path) -> None:
    assert load_answerer("some/folder") is None
    assert load_answerer("baseline") is None
    found = load_answerer("baseline:tf-idf,seed=3")
    assert found == Baseline("tf-idf", {"seed": 3})
    assert found.identity["seed"] == 3
    remote = load_answerer("endpoint:url=http://localhost:1/v1,model=m", cache=tmp_path)
    assert isinstance(remote, Remote)
    assert remote.cache == tmp_path
    with pytest.raises(SutureError) as caught:
        load_answerer("endpoint:url=http://localhost:1/v1,modle=m")
    assert caught.value.code == "E701"


def test_a_baseline_that_a_suite_does_not_have(data: Path) -> None:
    with pytest.raises(SutureError, match="did you mean 'baseline:majority'") as caught:
        measure("emotion", Baseline("majorty"), data=data, options={"task": "sst2"})
    assert caught.value.code == "E575"
    with pytest.raises(SutureError, match="no baseline"):
        measure("safety", Baseline("majority"))


def test_an_address_that_nobody_listens_at(data: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SutureError, match="the endpoint does not answer") as caught:
        measure("emotion", _remote(f"http://127.0.0.1:{port}/v1"), data=data,
                options={"task": "sst2"})  # fmt: skip
    assert caught.value.code == "E538"


def test_the_command_keeps_answers_beside_the_file(server: str, data: Path, tmp_path: Path) -> None:
    from suture.cli.main import run

    out = tmp_path / "m.json"
    line = ["measure", "emotion", "--model", f"endpoint:url={server},model=m", "--data", str(data)]
    line += ["--set", "task=sst2", "-o", str(out), "--json"]
    assert run(line) == 0
    assert Measurement.load(out).metrics["sst2.accuracy"] == 0.5
    asked = len(Stub.seen)
    assert run(line) == 0
    assert len(Stub.seen) == asked == len(RECORDS)
    assert (tmp_path / "m.answers" / "answers.sqlite").stat().st_mode & 0o777 == 0o600
