"""The whole pipeline on tiny random models: it ends, resumes, and never calls noise proven."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import write_jsonl
from suture.cli import main
from suture.errors import SutureError
from suture.runs import measuring, plan, read_recipe, run
from suture.runs import pipeline as module
from suture.runs.extras import extra_of


def _go(workshop: Path, *changes: str, **options: Any) -> module.Outcome:
    recipe = read_recipe(workshop / "recipe.yaml", changes)
    return run(recipe, workshop / "run", **options)


def test_a_run_leaves_everything_and_resumes(workshop: Path) -> None:
    inputs = {p: p.read_bytes() for p in workshop.rglob("*") if p.is_file()}
    first = _go(workshop, "write=true", command="suture run recipe.yaml")
    assert first.exit_code in (2, 3)  # random models: nothing can be proven
    home = first.folder
    for name in ("report.html", "report.json", "report.md", "patch", "model/config.json"):
        assert (home / name).exists(), name
    for side in ("before", "after", "reference"):
        assert (home / side / "safety.json").is_file()
        assert (home / side / "safety.replies.jsonl").stat().st_mode & 0o777 == 0o600
    report = json.loads((home / "report.json").read_text())
    after = json.loads((home / "after" / "task.json").read_text())
    assert report["after"]["fingerprint"] == after["model"]["fingerprint"]
    assert report["patch"]["fingerprint"] == first.patch["fingerprint"]
    assert report["provenance"]["command"] == "suture run recipe.yaml"
    assert {path: path.read_bytes() for path in inputs} == inputs

    done = json.loads((home / "stages" / "derive.json").read_text())
    again = _go(workshop, "write=true", command="suture run recipe.yaml")
    events = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
    begun = [event["stage"] for event in events if event["event"] == "begun"]
    assert len(begun) == len(set(begun)), "no stage ran twice"
    assert json.loads((home / "stages" / "derive.json").read_text()) == done
    assert again.ledger.as_dict() == first.ledger.as_dict()


def test_the_written_checkpoint_is_the_measured_one(workshop: Path) -> None:
    from suture.checkpoint import Checkpoint
    from suture.patch import verify

    outcome = _go(workshop, "write=true")
    measured = json.loads((outcome.folder / "after" / "task.json").read_text())
    written = Checkpoint.open(outcome.folder / "model")
    assert written.fingerprint() == measured["model"]["fingerprint"]
    verify(outcome.folder / "model")
    assert "task" in (outcome.folder / "model" / "README.md").read_text()


def test_a_changed_knob_redoes_the_edit_and_keeps_what_came_before(workshop: Path) -> None:
    _go(workshop)
    _go(workshop, "method.removed=0.0", "method.drop=0.5")
    lines = (workshop / "run" / "events.jsonl").read_text().splitlines()
    begun = [e["stage"] for e in map(json.loads, lines) if e["event"] == "begun"]
    assert begun.count("derive") == begun.count("measure-after-task") == 2
    assert begun.count("measure-before-task") == begun.count("measure-reference-task") == 1


def test_ctrl_c_keeps_finished_stages(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from suture import progress

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "silent", False)
    with monkeypatch.context() as patch:
        patch.setattr(module.Stages, "derive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _go(workshop)
    assert "measure-before-safety" in capsys.readouterr().err
    outcome = _go(workshop)
    assert (workshop / "run" / "report.html") == outcome.report
    lines = (workshop / "run" / "events.jsonl").read_text().splitlines()
    begun = [e["stage"] for e in map(json.loads, lines) if e["event"] == "begun"]
    assert begun.count("measure-before-safety") == 1


def test_redact_keeps_no_replies(workshop: Path) -> None:
    outcome = _go(workshop, redact=True)
    assert not list(outcome.folder.rglob("*.replies.jsonl"))
    assert "how do I bake" not in outcome.report.read_text()


def test_roles_are_fixed_once_measured(workshop: Path) -> None:
    _go(workshop)
    with pytest.raises(SutureError, match="E725"):
        _go(workshop, "roles=[{metric: safety.refusal_rate, role: target}]")


def test_a_calibration_row_without_response_stops_run_and_plan(workshop: Path) -> None:
    rows = '{"prompt": "x", "response": "y"}\n{"prompt": "z"}\n'
    (workshop / "calibration.jsonl").write_text(rows)
    with pytest.raises(SutureError, match=r"E306(.|\n)*calibration\.jsonl:2:1"):
        _go(workshop)
    assert not (workshop / "run" / "before").exists()
    with pytest.raises(SutureError, match="E306"):
        plan(read_recipe(workshop / "recipe.yaml"), workshop / "run")


@pytest.mark.parametrize("damage", ["rows", "model"])
def test_wrong_inputs_stop_before_anything_is_measured(workshop: Path, damage: str) -> None:
    if damage == "rows":
        (workshop / "calibration.jsonl").write_text('{"promt": "x"}\n')
    else:
        (workshop / "aligned" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(SutureError, match="E306" if damage == "rows" else "E1"):
        _go(workshop)
    assert not (workshop / "run" / "before").exists()


@pytest.mark.parametrize("model", ["aligned", "tuned", "unaligned"])
def test_a_run_folder_inside_a_model_folder_is_refused(workshop: Path, model: str) -> None:
    recipe = read_recipe(workshop / "recipe.yaml")
    with pytest.raises(SutureError, match=rf"E124.*'{model}'"):
        run(recipe, workshop / model / "run")
    assert not (workshop / model / "run").exists()


def test_the_patch_says_which_seed_made_it(workshop: Path) -> None:
    outcome = _go(workshop, "method.seed=5", "method.drop=0.5", "method.removed=0.0", "seed=2")
    assert json.loads((outcome.folder / "patch" / "patch.json").read_text())["seeds"] == [5]


def test_plan_reads_headers_only(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read_recipe(workshop / "recipe.yaml")
    found = plan(recipe, workshop / "not" / "there")
    assert len(found.touched) == 14  # 7 matrices in each of 2 layers
    assert 0 < found.touched_parameters < found.parameters
    assert found.suites == {"safety": 8, "task": 6}
    assert found.peak_memory > 0
    assert not (workshop / "not").exists()
    assert main.run(["plan", str(workshop / "recipe.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["touched"] == found.touched
    assert main.run(["plan", str(workshop / "recipe.yaml")]) == 0
    assert "14 of 20 tensors" in capsys.readouterr().out


def test_plan_needs_no_torch(workshop: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from suture.cli.main import run; code = run(sys.argv[1:]); "
        "sys.exit(9 if 'torch' in sys.modules or 'transformers' in sys.modules else code)"
    )
    src = str(Path(__file__).resolve().parents[2] / "src")
    args = [sys.executable, "-c", code, "plan", str(workshop / "recipe.yaml")]
    done = subprocess.run(args, env={"PYTHONPATH": src}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_and_init_from_the_command_line(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    code = main.run(["run", "recipe.yaml", "--set", "suites.task.limit=4"])
    shown = capsys.readouterr().out
    assert code in (2, 3)
    assert "safety.refusal_rate" in shown
    assert "runs/tiny/report.html" in shown
    assert main.run(["run", "recipe.yaml", "--set", "suites.task.limit=4", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code
    assert main.run(["init", "restore-refusals", "-o", "mine.yaml"]) == 0
    assert main.run(["init", "restore-refusals", "-o", "mine.yaml"]) == 1
    assert "E729" in capsys.readouterr().err


def test_a_suite_with_options_and_a_judge(workshop: Path) -> None:
    outcome = _go(
        workshop, "suites.safety.options.jailbreaks=[none, story]", "suites.safety.judge=phrases"
    )
    found = json.loads((outcome.folder / "after" / "safety.json").read_text())
    assert found["data"]["options"] == {"jailbreaks": ["none", "story"]}
    assert any(row["item"].endswith("@story") for row in found["rows"])
    assert found["metrics"]["judged_unparsed"] == 0.0


def test_judges_decodings_and_kept_answers(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge checkpoint and a decoding in the recipe: planned, run, in the report, and resumed."""
    from suture.ledger import Measurement, load_judged

    monkeypatch.chdir(workshop)
    changes = [
        "suites.safety.judge={name: chat, model: unaligned, format: llama-guard}",
        "suites.task.decoding=self-cd:ratio=1.0",
        "suites.speed={data: prompts.jsonl, limit: 2, options: {rounds: 1, tokens: 4}}",
        "cache=kept",
    ]
    with_extras = plan(read_recipe(workshop / "recipe.yaml", changes))
    assert with_extras.extras["safety"].startswith("judge chat unaligned: 8 calls for each model, ")
    assert with_extras.extras["safety"].endswith("of memory")
    assert with_extras.extras["task"] == "decoding self-cd: 2 passes per token"
    assert with_extras.cache == str(workshop / "kept")
    source: Any = module.open_sources(read_recipe(workshop / "recipe.yaml"))["tuned"]
    spec = read_recipe(workshop / "recipe.yaml", changes).suites["safety"]
    extra = extra_of("safety", spec, 8, 4, source)
    assert extra.memory == 4 * sum(info.numel for info in source.tensors.values())
    assert extra.products > 0
    rose = spec.model_copy(update={"judge": None, "decoding": {"name": "rose"}})
    assert extra_of("safety", rose, 8, 4, source).passes == 2.0
    scorer = {"task": "esconv-reply", "scorer": str(workshop / "unaligned")}
    scored = spec.model_copy(update={"judge": None, "options": scorer})
    of_replies = extra_of("emotion", scored.model_copy(update={"suite": None}), 8, 4, source)
    assert of_replies.told.startswith("scoring model unaligned: ")
    assert of_replies.memory == extra.memory
    sets = [part for change in changes for part in ("--set", change)]
    assert main.run(["plan", str(workshop / "recipe.yaml"), *sets]) == 0
    shown = capsys.readouterr().out
    assert "safety: judge chat unaligned" in shown
    assert f"cache    {workshop / 'kept'}" in shown

    home = _go(workshop, *changes).folder
    words = load_judged(home / "after/safety.json")
    assert len(words) == 8
    assert (home / "after/safety.judged.jsonl").stat().st_mode & 0o777 == 0o600
    measured = Measurement.load(home / "after/safety.json")
    assert measured.metrics["judged_unparsed"] == 1.0  # a random model's words are no verdict
    assert Measurement.load(home / "after/task.json").model["decoding"]["ratio"] == 1.0
    assert (workshop / "kept/answers.sqlite").is_file()
    page = (home / "report.html").read_text()
    assert page.count("The judge’s own words") == 8
    assert not (home / "after/speed.replies.jsonl").exists()
    assert Measurement.load(home / "before/speed.json").metrics["token_time_ratio"] > 0

    def begun() -> list[str]:
        lines = (home / "events.jsonl").read_text().splitlines()
        return [e["stage"] for e in map(json.loads, lines) if e["event"] == "begun"]

    once = begun()
    _go(workshop, *changes)
    assert begun() == once
    config = workshop / "unaligned" / "generation_config.json"
    config.write_text(config.read_text() + "\n")  # another judge under the same name
    measuring._contents.cache_clear()
    _go(workshop, *changes)
    assert begun()[len(once) :].count("measure-before-safety") == 1
    assert "measure-before-task" not in begun()[len(once) :]


def test_the_plan_names_adapters() -> None:
    from types import SimpleNamespace

    from suture.runs.plan import about

    source: Any = SimpleNamespace(
        path=Path("aligned"), adapter_path=Path("x/tuned-lora"), config={}, tensors={}
    )
    assert about(source)["path"] == "aligned + adapter tuned-lora"


def test_a_run_keeps_a_number_that_is_derived_from_rows(workshop: Path) -> None:
    """Text tasks in a recipe: paths below it, roles on F1, and a second run that does nothing."""
    records = [
        {"id": str(i), "text": f"text {i}", "gold": "positive" if i % 2 else "negative"}
        for i in range(6)
    ]
    write_jsonl(workshop / "records.jsonl", records)
    shipped = Path(__file__).resolve().parents[2] / "src/suture/suites/data/tasks/sst2.yaml"
    (workshop / "own.yaml").write_text(shipped.read_text())
    text = (workshop / "recipe.yaml").read_text()
    suite = "  mood:\n    suite: emotion\n    data: records.jsonl\n    max_new_tokens: 4\n"
    suite += "    options: {task: own.yaml, parser: lenient}\n"
    role = "  - {metric: mood.sst2.macro_f1, role: kept, margin: 0.05}\n"
    text = text.replace("roles:\n", f"{suite}roles:\n").replace("device:", f"{role}device:")
    (workshop / "recipe.yaml").write_text(text)
    recipe = read_recipe(workshop / "recipe.yaml")
    outcome = run(recipe, workshop / "out")
    row = next(row for row in outcome.ledger.rows if row.metric == "sst2.macro_f1")
    assert (row.suite, row.n) == ("mood", 6)
    again = run(recipe, workshop / "out")
    assert again.ledger.as_dict() == outcome.ledger.as_dict()
