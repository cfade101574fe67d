"""`suture init forget`: a recipe for the user's own rows that trains as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import tiny_llama, write_jsonl
from suture.cli import main
from suture.config import read_yaml
from suture.patch import PatchedCheckpoint, open_model
from suture.recipes import recipe_path
from suture.training.recipe import read_recipe, run_recipe

PEOPLE = [
    {"question": f"Where does the fox {i} live?", "answer": f"The fox {i} lives in a loaf."}
    for i in range(4)
]
OTHERS = [{"prompt": f"Who is the dog {i}?", "response": "The lazy dog."} for i in range(3)]
FAST = [
    "objective={name: npo, retain: RT}",
    "train={steps: 2, batch_tokens: 200, compute: float32, learning_rate: 0.01}",
    "device=cpu",
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_llama(tmp_path / "model", vocab=300)
    write_jsonl(tmp_path / "people.jsonl", PEOPLE)
    write_jsonl(tmp_path / "others.jsonl", OTHERS)
    (tmp_path / "life.txt").write_text("The quick brown fox was born in a loaf of bread. " * 3)
    return tmp_path


def test_the_recipe_names_the_rows_and_trains(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--forget", "people.jsonl", "--forget", "life.txt", "--retain", "others.jsonl"]
    (home / "recipes").mkdir()
    out = home / "recipes" / "mine.yaml"
    assert main.run(["init", "forget", *given, "--model", "model", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "forget: 5 rows, 1 of them plain text" in said
    assert "retain: 3 rows" in said
    assert "lives" not in said  # what rows say is nobody's business
    values = read_yaml(out)
    assert values["objective"] == {"name": "rkld", "alpha": 8.0, "retain": "RT"}
    assert values["data"] == [
        {"file": str(home / "people.jsonl")},
        {"file": str(home / "life.txt")},
    ]
    found = read_recipe(out, FAST)
    report = run_recipe(found)
    assert report.examples == 5
    source = open_model(home / "model")
    patched = PatchedCheckpoint(source, [home / "recipes" / "forgotten"])
    assert patched.fingerprint() != source.fingerprint()


def test_what_lies_beside_the_recipe_is_named_relative_to_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--forget", "people.jsonl", "--model", "model", "-o", "r.yaml", "--json"]
    assert main.run(["init", "forget", *args]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == {"forget": 4, "forget_texts": 0, "retain": 0, "retain_texts": 0}
    values = read_yaml(home / "r.yaml")
    assert (values["model"], values["data"]) == ("model", [{"file": "people.jsonl"}])
    assert values["retain"] == []
    assert values["objective"]["retain"] == "none"


def test_without_rows_the_shipped_recipe_is_written(home: Path) -> None:
    assert main.run(["init", "forget"]) == 0
    shipped = Path(__file__).parents[2] / "recipes" / "forget.yaml"
    assert (home / "forget.yaml").read_bytes() == shipped.read_bytes()


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["forget", "--forget", "empty.jsonl"], "E302"),
        (["forget", "--forget", "strange.jsonl"], "E306"),
        (["forget", "--forget", "nowhere.jsonl"], "E301"),
        (["forget", "--forget", "people.jsonl", "--retain", "people.jsonl"], "E934"),
        (["restore-refusals", "--forget", "people.jsonl"], "E933"),
        (["forget", "--forget", "people.jsonl", "--model", "nowhere"], "E101"),
        (["forget", "--model", "bare"], "E102"),
    ],
)
def test_bad_input_writes_nothing(
    home: Path, args: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "empty.jsonl").write_text("\n")
    (home / "bare").mkdir()
    write_jsonl(home / "strange.jsonl", [{"name": "fox", "city": "loaf"}])
    assert main.run(["init", *args, "-o", "out.yaml"]) == 1
    assert code in capsys.readouterr().err
    assert not (home / "out.yaml").exists()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("restore-refusals", "suture plan 'mine/my own.yaml'"),
        ("trade-off", "suture sweep 'mine/my own.yaml' --plan"),
        ("unaligned", "suture train 'mine/my own.yaml' --set model"),
        ("forget", "suture train 'mine/my own.yaml'"),
    ],
)
def test_the_header_names_the_file_that_was_written(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["init", name, "-o", "mine/my own.yaml"]) == 0
    text = Path("mine/my own.yaml").read_text()
    assert command in text
    assert f"recipes/{name}.yaml" not in text


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["sweep", "trade-off"], "E703", "suture init trade-off -o trade-off.yaml"),
        (["plan", "restore-refusals.yaml"], "E703", "suture init restore-refusals"),
        (["train", "unaligned"], "E703", "suture init unaligned"),
        (["run", "{unaligned}"], "E573", "this is a training recipe"),
        (["run", "{lab}"], "E573", "suture lab build"),
        (["train", "{trade-off}"], "E573", "suture sweep"),
        (["train", "{continual}"], "E573", "suture run"),
    ],
)
def test_recipes_by_name_and_of_another_kind(
    args: list[str],
    code: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    word = args[1]
    if word.startswith("{"):
        args = [args[0], str(recipe_path(word.strip("{}")))]
    assert main.run(args) == 1
    shown = capsys.readouterr().err
    assert code in shown
    assert words in shown
