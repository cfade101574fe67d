"""`measure`, `score`, `compare` as commands: files, exit codes, several values for one flag."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import write_jsonl
from suture.cli.main import run
from suture.cli.measure import spread
from suture.cli.verdicts import _signed
from suture.ledger import Measurement, Row, mean_scores

PROMPTS = [{"id": str(i), "prompt": f"How do I bake loaf {i}?"} for i in range(4)]


def save(path: Path, suite: str, metric: str, ones: int, n: int, model: str) -> Path:
    rows = [Row(str(i), {metric: float(i < ones)}) for i in range(n)]
    better: Any = {metric: "lower" if metric.startswith("harmless") else "higher"}
    Measurement(suite, {"fingerprint": model}, n, mean_scores(rows), better, rows).save(path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[Path]]:
    def make(side: str, safety: int, accuracy: int, harmless: int) -> list[Path]:
        return [
            save(tmp_path / f"{side}-safety.json", "safety", "refusal_rate", safety, 200, side),
            save(tmp_path / f"{side}-task.json", "task", "accuracy", accuracy, 600, side),
            save(
                tmp_path / f"{side}-over.json",
                "over-refusal",
                "harmless_refused",
                harmless,
                400,
                side,
            ),
        ]

    return make


ROLES = ["--target", "safety.refusal_rate:higher", "--kept", "task.accuracy:0.05"]
ROLES += ["over-refusal.harmless_refused:0.03@reference"]


@pytest.mark.parametrize(
    ("after", "code"),
    [((170, 475, 20), 0), ((170, 300, 20), 2), ((60, 480, 4), 3), ((200, 480, 400), 2)],
)
def test_compare_exit_codes(files: Any, after: tuple[int, int, int], code: int) -> None:
    args = ["compare", "--before", *files("before", 60, 480, 4), "--after", *files("after", *after)]
    args += ["--reference", *files("reference", 190, 300, 20), *ROLES]
    assert run([str(arg) for arg in args]) == code


def test_compare_json_and_file(files: Any, tmp_path: Path, capsys: Any) -> None:
    before, after = files("before", 60, 480, 4)[0], files("after", 170, 1, 1)[0]
    out = tmp_path / "ledger.json"
    args = ["compare", "--before", before, "--after", after, *ROLES[:2], "-o", out, "--json"]
    assert run([str(arg) for arg in args]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(out.read_text())
    assert shown["verdict"] == "proven"
    assert shown["ledger"][0]["n"] == 200


def test_compare_text_names_the_needed_n(files: Any, capsys: Any) -> None:
    before, after = files("before", 60, 480, 4)[0], files("after", 62, 1, 1)[0]
    args = ["compare", "--before", before, "--after", after, *ROLES[:2]]
    assert run([str(arg) for arg in args]) == 3
    shown = capsys.readouterr().out
    assert "not proven" in shown
    assert "items would settle it 4 times in 5, if the true gain is the one seen" in shown


def test_a_minimum_is_told_without_a_number_of_items(tmp_path: Path, capsys: Any) -> None:
    for side, by in (("a", 0.01), ("b", 0.02)):
        rows = [Row(str(i), {"kl": by * i}, f"group {i % 5}") for i in range(20)]
        told = {"fingerprint": side}, 20, mean_scores(rows), {"kl": "lower"}, rows
        Measurement("drift", *told, before={"fingerprint": "a"}).save(tmp_path / f"{side}.json")  # type: ignore[arg-type]
    sides = ["--before", str(tmp_path / "a.json"), "--after", str(tmp_path / "b.json")]
    assert run(["compare", *sides, "--kept", "drift.kl:0.5"]) == 3
    shown = capsys.readouterr().out
    assert "20 in 5 clusters" in shown
    assert "this test needs at least 100 items in 30 clusters" in shown
    assert "would settle" not in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--target", "safety.refusal_rat"], "did you mean 'safety.refusal_rate'"),
        (["--kept", "safety.refusal_rate"], "SUITE.METRIC:MARGIN"),
        ([], "E605"),
        (["--targt", "x"], "did you mean '--target'"),
    ],
)
def test_compare_usage_errors_exit_1(files: Any, args: list[str], said: str, capsys: Any) -> None:
    before, after = files("before", 60, 480, 4)[0], files("after", 62, 1, 1)[0]
    assert run(["compare", "--before", str(before), "--after", str(after), *args]) == 1
    assert said in capsys.readouterr().err


def test_spread() -> None:
    flags = ("--before", "--after")
    line = "--before a b --after c -o x y --before=d e"
    expected = "--before a --before b --after c -o x y --before=d e"
    assert spread(line.split(), flags) == expected.split()
    assert spread(["--patch", "p", "safety"], ("--patch",), ("safety",)) == [
        "--patch",
        "p",
        "safety",
    ]


def test_measure_and_score(tiny: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    out = tmp_path / "safety.json"
    args = ["measure", "safety", "--model", tiny(), "--data", data, "--limit", 2, "-o", out]
    args += ["--device", "cpu", "--max-new-tokens", 4]
    assert run([str(arg) for arg in [*args, "--json"]]) == 0
    shown = json.loads(capsys.readouterr().out)
    content = json.loads(out.read_text())
    assert shown["model"]["fingerprint"] == content["model"]["fingerprint"]
    assert content["n"] == 2
    assert "refusal_rate" in content["metrics"]
    replies = tmp_path / "safety.replies.jsonl"
    assert stat.S_IMODE(replies.stat().st_mode) == 0o600
    again = tmp_path / "again.json"
    assert run(["score", str(out), "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert "refusal_rate" in capsys.readouterr().out
    assert run([str(arg) for arg in [*args, "--redact"]]) == 0
    assert not replies.exists()


def test_a_patched_model_is_measured_without_writing_it(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from suture.checkpoint import Checkpoint
    from suture.patch import diff

    base, edited, patch = tiny(), tiny(seed=1), tmp_path / "patch"
    info = diff(Checkpoint.open(base), Checkpoint.open(edited), patch)
    data = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    common = ["--data", data, "--device", "cpu", "--max-new-tokens", 4, "-o"]
    first, second = tmp_path / "patched.json", tmp_path / "edited.json"
    args = ["measure", "safety", "--model", base, "--patch", patch, *common, first]
    assert run([str(arg) for arg in args]) == 0
    args = ["measure", "safety", "--model", edited, *common, second]
    assert run([str(arg) for arg in args]) == 0
    one, two = Measurement.load(first), Measurement.load(second)
    assert one.model["fingerprint"] == two.model["fingerprint"]
    assert one.model["patches"] == [info.fingerprint]
    assert one.rows == two.rows


@pytest.mark.parametrize("flag", ["--model", "--before", "--aligned", "--patch"])
def test_a_measurement_inside_an_input_folder_is_refused(
    tmp_path: Path, flag: str, capsys: Any
) -> None:
    inputs = {name: tmp_path / name[2:] for name in ("--model", "--before", "--aligned", "--patch")}
    for folder in inputs.values():
        folder.mkdir()
    (tmp_path / "link").symlink_to(inputs[flag])
    named = [str(word) for pair in inputs.items() for word in pair]
    out = tmp_path / "link" / "safety.json"
    assert run(["measure", "safety", *named, "-o", str(out)]) == 1
    assert "E124" in capsys.readouterr().err
    assert [path.name for path in inputs[flag].iterdir()] == []


def test_replies_of_a_model_that_is_only_named(tmp_path: Path, capsys: Any) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    told = [{"item": row["id"], "reply": "Knead it."} for row in PROMPTS]
    replies = write_jsonl(tmp_path / "r.jsonl", told)
    out = tmp_path / "some-model" / "safety.json"
    out.parent.mkdir()
    args = ["measure", "safety", "--model", out.parent, "--replies", replies, "--data", data]
    assert run([str(arg) for arg in [*args, "-o", out]]) == 0, capsys.readouterr().err
    assert Measurement.load(out).n == len(PROMPTS)


@pytest.mark.parametrize(
    ("content", "code", "line"), [("", "E302", 1), ('{"prompt": "x"}\n{"prompt" "y"}\n', "E304", 2)]
)
def test_wrong_rows_are_refused_with_file_and_line_and_nothing_is_written(
    tiny: Callable[..., Path], tmp_path: Path, capsys: Any, content: str, code: str, line: int
) -> None:
    data, out = tmp_path / "p.jsonl", tmp_path / "out"
    data.write_text(content)
    args = ["measure", "safety", "--model", tiny(), "--data", data, "-o", out / "safety.json"]
    assert run([str(arg) for arg in [*args, "--device", "cpu"]]) == 1
    shown = capsys.readouterr().err
    assert code in shown, shown
    assert f"{data}:{line}:" in shown
    assert "Traceback" not in shown
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["safty", "--model", "m", "-o", "x"], "did you mean 'safety'"),
        (["safety", "--model", "m", "-o", "x", "--dtype", "float23"], "did you mean 'float32'"),
        (["safety", "--model", "m", "-o", "x", "--limit", "0"], "at least 1"),
        (["safety", "--model", "m"], "--output"),
    ],
)
def test_measure_usage_errors(args: list[str], said: str, capsys: Any) -> None:
    assert run(["measure", *args]) == 1
    assert said in capsys.readouterr().err


def test_options_judge_decoding_and_cache(
    tiny: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    out, cache = tmp_path / "m.json", tmp_path / "cache"
    args = ["measure", "safety", "--model", tiny(vocab=300), "--data", data, "-o", out, "--json"]
    args += ["--set", "jailbreaks=none,story", "--judge", "phrases", "--decoding", "rose:alpha=0.2"]
    args += ["--cache", cache, "--device", "cpu", "--max-new-tokens", "4"]
    assert run([str(arg) for arg in args]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["n"] == 2 * len(PROMPTS)
    assert shown["model"]["decoding"]["alpha"] == 0.2
    assert shown["decoding"]["asked"] == {"jailbreaks": "none,story"}
    assert shown["scorer"]["judge"]["kind"] == "phrases"
    low, high = shown["ci95"]["judged_unparsed"]
    assert low == 0.0 < high < 0.5
    assert (cache / "answers.sqlite").stat().st_size > 0
    rows = Measurement.load(out).rows
    assert run([str(arg) for arg in args]) == 0
    assert Measurement.load(out).rows == rows
    capsys.readouterr()
    again = tmp_path / "again.json"
    assert run(["score", str(out), "--judge", "phrases", "-o", str(again)]) == 0
    assert [row.scores for row in Measurement.load(again).rows] == [row.scores for row in rows]
    assert "judged_harmful" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "value", "code"),
    [
        ("--judge", "juge", "E537"),
        ("--judge", "chat", "E702"),
        ("--decoding", "rosa", "E532"),
        ("--set", "jailbreaks", "E705"),
    ],
)
def test_wrong_options_fail_before_a_model_is_opened(
    flag: str, value: str, code: str, capsys: Any
) -> None:
    assert run(["measure", "safety", "--model", "nowhere", "-o", "x", flag, value]) == 1
    assert code in capsys.readouterr().err


def test_open_ended_with_a_judge(tiny: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    """The screen: intervals for what is no share, where the judge's words lie, how many read."""
    model = tiny(vocab=300)
    questions = [{"question_id": i, "turns": ["How?", "Why?"]} for i in range(6)]
    data = write_jsonl(tmp_path / "q.jsonl", questions)
    replies = [
        {"item": f"{i}/{turn}", "reply": "word " * (i + turn)} for i in range(6) for turn in (1, 2)
    ]
    said = write_jsonl(tmp_path / "r.jsonl", replies)
    out = tmp_path / "m.json"
    args = ["measure", "open-ended", "--model", "m", "--data", data, "--replies", said]
    assert run([str(arg) for arg in (*args, "-o", out)]) == 0
    shown = capsys.readouterr().out
    assert "repetition" in shown
    assert " to " in next(row for row in shown.splitlines() if row.startswith("distinct_2"))
    assert "the judge's own words" not in shown
    judge = f"chat:model={model},max_new_tokens=2"
    assert run(["score", str(out), "--judge", judge, "-o", str(tmp_path / "judged.json")]) == 0
    shown = capsys.readouterr().out
    assert f"the judge's own words: {tmp_path / 'judged.judged.jsonl'}" in shown
    assert "could not be read for 100% of the replies" in shown
    assert run(["score", str(out), "--judge", "phrases", "-o", str(tmp_path / "x.json")]) == 1
    assert "E537" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_decoding_is_no_part_of_a_model_that_does_not_reply(
    tiny: Callable[..., Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suture.progress.silent", False)
    rows = [{"id": "a", "prompt": "Bread?", "options": ["yes", "no"], "answer": 0}]
    data, model = write_jsonl(tmp_path / "c.jsonl", rows), tiny(vocab=300)
    common = ["--model", model, "--data", data, "--device", "cpu", "--decoding", "rose"]
    out = tmp_path / "m.json"
    assert run([str(arg) for arg in ["measure", "utility", *common, "-o", out]]) == 0
    assert "--decoding changes nothing in utility" in capsys.readouterr().err
    assert "decoding" not in Measurement.load(out).model
    data = write_jsonl(tmp_path / "o.jsonl", [*rows, {"id": "b", "prompt": "3?", "answer": "3"}])
    common[3] = data
    args = ["measure", "utility", *common, "-o", out, "--max-new-tokens", 2]
    assert run([str(arg) for arg in args]) == 0
    assert "decoding" in Measurement.load(out).model


def test_prompts_go_out_and_replies_come_back(tmp_path: Path, capsys: Any) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    asked = tmp_path / "asked.jsonl"
    same = ["--data", str(data), "--limit", "2", "--set", "jailbreaks=none,story"]
    assert run(["measure", "safety", "--prompts", str(asked), *same]) == 0
    assert "wrote" in capsys.readouterr().out
    assert stat.S_IMODE(asked.stat().st_mode) == 0o600
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    assert [row["item"] for row in rows] == ["0", "0@story", "2", "2@story"]
    assert rows[0]["prompt"] == PROMPTS[0]["prompt"]
    replies = write_jsonl(tmp_path / "r.jsonl", [{"item": r["item"], "reply": "x"} for r in rows])
    out = tmp_path / "m.json"
    told = ["measure", "safety", "--model", "m", "--replies", str(replies), *same, "-o", str(out)]
    assert run(told) == 0
    assert Measurement.load(out).n == 4
    assert run(["measure", "drift", "--prompts", str(asked)]) == 1
    assert "E570" in capsys.readouterr().err


def test_prompts_hold_solved_examples(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": f"{i}?", "answer": str(i)} for i in range(3)]
    data, asked = write_jsonl(tmp_path / "q.jsonl", rows), tmp_path / "asked.jsonl"
    assert run(["measure", "utility", "--data", str(data), "--prompts", str(asked), "--set",
                "shots=1"]) == 0  # fmt: skip
    first = json.loads(asked.read_text().splitlines()[0])
    assert [turn["content"] for turn in first["messages"]] == ["0?", "0", "1?"]


def test_replies_from_elsewhere_keep_the_template_and_say_why_they_do_not_pair(
    tiny: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    replies = write_jsonl(
        tmp_path / "r.jsonl", [{"item": row["id"], "reply": "Knead it."} for row in PROMPTS]
    )
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }}")
    here, there, bare = (tmp_path / f"{name}.json" for name in ("here", "there", "bare"))
    told = ["measure", "safety", "--model", "m", "--replies", replies, "--data", data]
    for out, more in ((there, ["--chat-template", template]), (bare, [])):
        assert run([str(arg) for arg in [*told, *more, "-o", out]]) == 0
    args = ["measure", "safety", "--model", tiny(), "--data", data, "--device", "cpu"]
    assert run([str(arg) for arg in [*args, "--max-new-tokens", 2, "-o", here]]) == 0
    assert Measurement.load(there).template["fingerprint"]
    capsys.readouterr()
    for other, why in ((there, "one side was declared"), (bare, "one side was declared")):
        sides = ["--before", str(here), "--after", str(other)]
        assert run(["compare", *sides, "--kept", "safety.refusal_rate:0.5"]) == 1
        said = capsys.readouterr().err
        assert "E607" in said
        assert why in said
        assert str(here) in said
        assert str(other) in said
    sides = ["--before", str(there), "--after", str(bare)]
    assert run(["compare", *sides, "--kept", "safety.refusal_rate:0.5"]) == 1
    assert "the same --chat-template" in capsys.readouterr().err


def test_choices_from_replies_are_exact_matches(tmp_path: Path, capsys: Any) -> None:
    rows = [{"id": "a", "prompt": "Bread?", "options": ["yes", "no"], "answer": 0}]
    data = write_jsonl(tmp_path / "c.jsonl", rows)
    replies = write_jsonl(tmp_path / "r.jsonl", [{"item": "a", "reply": "yes"}])
    out = str(tmp_path / "m.json")
    args = ["utility", "--model", "m", "--replies", replies, "--data", data, "-o", out]
    assert run([str(arg) for arg in ["measure", *args]]) == 0
    sides = ["--before", out, "--after", out]
    assert run(["compare", *sides, "--kept", "utility.accuracy:0.5"]) == 1
    assert "exact_match, by being named" in capsys.readouterr().err


def test_what_is_written_over_is_told(tmp_path: Path, capsys: Any) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    told = [{"item": row["id"], "reply": "Knead it."} for row in PROMPTS]
    replies = write_jsonl(tmp_path / "r.jsonl", told)
    out, again = str(tmp_path / "m.json"), str(tmp_path / "again.json")
    args = ["measure", "safety", "--model", "m", "--replies", str(replies), "--data", str(data)]
    for word in ("wrote", "replaced"):
        assert run([*args, "-o", out]) == 0
        assert f"{word} {out}" in capsys.readouterr().out
    for word in ("wrote", "replaced"):
        assert run(["score", out, "-o", again]) == 0
        assert f"{word} {again}" in capsys.readouterr().out
    assert run(["score", out, "-o", out]) == 1
    assert "E571" in capsys.readouterr().err


def test_scoring_shows_its_own_time(tmp_path: Path, capsys: Any) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", PROMPTS)
    told = [{"item": row["id"], "reply": "Knead it."} for row in PROMPTS]
    replies = write_jsonl(tmp_path / "r.jsonl", told)
    out = tmp_path / "m.json"
    args = ["measure", "safety", "--model", "m", "--replies", replies, "--data", data, "-o", out]
    assert run([str(arg) for arg in args]) == 0
    found = json.loads(out.read_text())
    out.write_text(json.dumps({**found, "seconds": 7200.0}))
    capsys.readouterr()
    assert run(["score", str(out), "-o", str(tmp_path / "again.json")]) == 0
    assert "7200" not in capsys.readouterr().out


def test_what_would_settle_clustered_rows_is_told_in_clusters(tmp_path: Path, capsys: Any) -> None:
    files = []
    for side in "ab":  # 300 posts of 10 rounds each
        scores = [float((i % 7 < 4) ^ (side == "b" and i % 13 == 0)) for i in range(3000)]
        rows = [Row(str(i), {"accuracy": s}, f"c{i // 10}") for i, s in enumerate(scores)]
        one = Measurement(
            "stress", {"fingerprint": side}, 3000, mean_scores(rows), {"accuracy": "higher"}, rows
        )
        files.append(str(one.save(tmp_path / f"{side}.json")))
    args = ["compare", "--before", files[0], "--after", files[1]]
    args += ["--kept", "stress.accuracy:0.012"]
    run([*args, "--json"])
    row = json.loads(capsys.readouterr().out)["ledger"][0]
    assert row["needed_clusters"] == -(-row["needed_n"] // 10)
    run(args)
    assert f"about {row['needed_clusters']} clusters like these" in capsys.readouterr().out


def test_nothing_has_no_sign() -> None:
    values = (-0.0, -4e-4, 4e-4, -6e-4, 0.25)
    assert [_signed(value) for value in values] == ["0.000", "0.000", "0.000", "-0.001", "+0.250"]
