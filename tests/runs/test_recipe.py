"""Recipes: short forms, paths, overrides, and file:line with the nearest word for every slip."""

from __future__ import annotations

from pathlib import Path

import pytest

from suture.errors import SutureError
from suture.recipes import headline, recipe_path, shipped_recipes
from suture.runs import Recipe, read_recipe


def _refusal(workshop: Path, old: str, new: str) -> SutureError:
    path = workshop / "recipe.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(SutureError) as caught:
        read_recipe(path)
    return caught.value


def test_short_forms_and_relative_paths(workshop: Path) -> None:
    recipe = read_recipe(workshop / "recipe.yaml")
    assert recipe.models["aligned"].path == workshop / "aligned"
    assert recipe.models["tuned"].path == workshop / "tuned"
    assert recipe.data["calibration"].limit == 4
    assert recipe.suites["safety"].data == (workshop / "prompts.jsonl",)
    assert recipe.method_config().model_dump()["solver"] == "none"
    assert recipe.roles[1].against == "reference"


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "words"),
    [
        ("models:", "modles:", "E701", 2, "'models'"),
        ("{path: tuned}", "{paht: tuned}", "E701", 4, "'path'"),
        ("  solver:", "  slover:", "E701", 8, "'solver'"),
        ("name: irr", "name: ir", "E720", 7, "'irr'"),
        ("limit: 4", "limt: 4", "E701", 12, "'limit'"),
        ("limit: 4", "limit: 0", "E702", 12, "greater than"),
        ("  safety: {data", "  saftey: {suite: safety, data", "E702", None, "'saftey'"),
        ("  task: {data", "  task: {suite: tsak, data", "E520", 15, "'task'"),
        ("role: target", "rol: target", "E701", 17, "'role'"),
        ("safety.refusal_rate", "safety.refusal", "E722", 17, "'refusal_rate'"),
        ("margin: 0.05, ", "", "E702", 18, "needs a margin"),
        ("device: cpu", "reference: algined", "E702", None, "'aligned'"),
        ("aligned: aligned", "aligned: algined", "E721", 3, "aligned'"),
        ("data: prompts.jsonl", "data: prompt.jsonl", "E721", 14, "prompts.jsonl'"),
        ("removed: 1.0", "removed: 1.0\n  removed: 0.5", "E704", 10, "twice"),
        ("device: cpu", "device: [cpu", "E703", 20, "YAML"),
        ("removed: 1.0", "removed: lots", "E702", 9, "number"),
        ("name: tiny", "name: ../tiny", "E702", 1, "pattern"),
    ],
)
def test_slips_name_file_line_and_the_nearest_word(
    workshop: Path, old: str, new: str, code: str, line: int | None, words: str
) -> None:
    error = _refusal(workshop, old, new)
    assert error.code == code
    place = f"{workshop / 'recipe.yaml'}" + (f":{line}" if line else "")
    assert (error.where or "").startswith(place)
    assert words in str(error)


def test_missing_parts_are_named(workshop: Path) -> None:
    error = _refusal(workshop, "  name: irr\n", "")
    assert error.code == "E702"
    assert "method.name" in error.what
    path = workshop / "recipe.yaml"
    path.write_text(path.read_text().replace("method:", "method:\n  name: irr"))
    error = _refusal(workshop, "  unaligned: unaligned\n", "")
    assert (error.code, error.where) == ("E728", f"{path}:5")
    assert "needs unaligned" in error.what


def test_set_changes_values_and_its_paths_are_from_here(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workshop / "sub").mkdir()
    monkeypatch.chdir(workshop / "sub")
    path = workshop / "recipe.yaml"
    path.write_text(path.read_text().replace("suites:", "suites:\n  drift:"))
    changes = [
        "method.removed=0.5",
        "models.tuned=../aligned",
        "suites.task.data=../prompts.jsonl",
        "suites.task.limit=2",
        "data.safety=../calibration.jsonl",
        "suites.drift.limit=3",
    ]
    recipe = read_recipe(workshop / "recipe.yaml", changes)
    assert recipe.method_config().model_dump()["removed"] == 0.5
    assert recipe.models["tuned"].path.resolve() == workshop / "aligned"
    assert recipe.suites["task"].limit == 2
    assert recipe.data["safety"].file.resolve() == workshop / "calibration.jsonl"
    assert recipe.suites["drift"].limit == 3


@pytest.mark.parametrize("change", ["method.removd=0.5", "removed", "name.x=1"])
def test_wrong_set_is_refused(workshop: Path, change: str) -> None:
    with pytest.raises(SutureError, match=r"E70[15]"):
        read_recipe(workshop / "recipe.yaml", [change])


def test_lab_names_are_resolved_by_section(workshop: Path) -> None:
    path = workshop / "recipe.yaml"
    text = path.read_text().replace("aligned: aligned", "aligned: lab:one")
    path.write_text(text.replace("safety: safety.jsonl", "safety: lab:two"))
    asked = []

    def resolve(section: str, name: str) -> object:
        asked.append((section, name))
        if section == "models":
            return {"path": str(workshop / "aligned"), "patches": []}
        return str(workshop / "safety.jsonl")

    recipe = read_recipe(path, resolve=resolve)
    assert asked == [("models", "one"), ("data", "two")]
    assert recipe.models["aligned"].path == workshop / "aligned"


def test_fingerprints_follow_what_they_name(workshop: Path) -> None:
    path = workshop / "recipe.yaml"
    one, same = read_recipe(path), read_recipe(path)
    margin = read_recipe(path, ["roles=[{metric: safety.refusal_rate, role: target}]"])
    knob = read_recipe(path, ["method.removed=0.3"])
    assert one.fingerprint() == same.fingerprint()
    assert one.roles_sha256 == knob.roles_sha256 != margin.roles_sha256
    assert len({r.fingerprint() for r in (one, margin, knob)}) == 3


def test_shipped_recipes() -> None:
    names = shipped_recipes()
    assert {"restore-refusals", "demo"} <= names.keys()
    for path in names.values():
        text = path.read_text(encoding="utf-8")
        assert headline(path)
        assert "suture " in text.split("\n\n")[0], "the header holds the exact command"
    with pytest.raises(SutureError, match="'restore-refusals'"):
        recipe_path("restore-refusal")


def test_the_shipped_recipe_is_valid(tmp_path: Path) -> None:
    text = recipe_path("restore-refusals").read_text(encoding="utf-8")
    for folder in ("aligned", "tuned", "unaligned"):
        (tmp_path / folder).mkdir()
    for file in ("safety", "calibration", "task"):
        (tmp_path / f"{file}.jsonl").write_text("{}")
    (tmp_path / "r.yaml").write_text(text)
    recipe = read_recipe(tmp_path / "r.yaml")
    assert isinstance(recipe, Recipe)
    assert {role.role for role in recipe.roles} == {"target", "kept"}


def test_options_judge_and_decoding_of_a_suite(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workshop / "recipe.yaml"
    plain = read_recipe(path).suites["safety"]
    assert set(plain.asked()) == {"suite", "limit", "max_new_tokens"}
    assert plain.options is None
    for name in ("t.json", "guard.json"):
        (workshop / name).write_text("{}")
    monkeypatch.chdir(workshop / "aligned")
    with pytest.raises(SutureError, match="no file") as caught:  # --set is from where one stands
        read_recipe(path, ["suites.safety.options.templates=t.json"])
    assert caught.value.code == "E721"
    monkeypatch.chdir(workshop)
    changes = ["suites.safety.options.templates=t.json", "suites.safety.judge=phrases"]
    found = read_recipe(path, changes).suites["safety"]
    assert found.options == {"templates": str(workshop / "t.json")}
    assert found.asked()["judge"] == {"name": "phrases"}
    changes = ["suites.task.decoding=safe-decoding:expert=aligned", "cache=kept"]
    recipe = read_recipe(path, changes)
    expert = str(workshop / "aligned")
    assert recipe.suites["task"].decoding == {"name": "safe-decoding", "expert": expert}
    assert recipe.cache == workshop / "kept"
    text = path.read_text().replace("  task:", "  safety-2: {suite: safety, judge: {name: chat, "
        "model: aligned, format: plain}}\n  task:")  # fmt: skip
    assert text != path.read_text()
    (workshop / "judged.yaml").write_text(text)
    monkeypatch.chdir("/")
    judged = read_recipe(workshop / "judged.yaml").suites["safety-2"].judge
    assert judged == {"name": "chat", "model": expert, "format": "plain"}
    monkeypatch.chdir(workshop)


def test_a_scoring_model_and_a_judge_of_empathy(workshop: Path) -> None:
    path = workshop / "expression.yaml"
    more = (
        "  emotion: {data: notes.jsonl, options: {task: esconv-reply, scorer: SCORER}, "
        "judge: {name: chat, model: aligned}}\n"
    )
    (workshop / "notes.jsonl").write_text("{}")
    text = (workshop / "recipe.yaml").read_text().replace("  task:", f"{more}  task:")
    path.write_text(text.replace("SCORER", "aligned"))
    found = read_recipe(path).suites["emotion"]
    assert found.options == {"task": "esconv-reply", "scorer": str(workshop / "aligned")}
    assert found.judge == {"name": "chat", "model": str(workshop / "aligned")}
    path.write_text(text.replace("SCORER", "nowhere"))
    with pytest.raises(SutureError) as caught:
        read_recipe(path)
    assert caught.value.code == "E721"
    for gone, code in (("", "E591"), (", scorer: SCORER", "E537")):
        path.write_text(text.replace(gone, "").replace("SCORER", "aligned").replace(
            "esconv-reply", "sst2"))  # fmt: skip
        with pytest.raises(SutureError) as caught:
            read_recipe(path)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("safety.judge=phrase", "E537"),
        ("safety.judge=chat:model=nothing", "E721"),
        ("safety.judge={name: chat, model: aligned, format: mt-bench}", "E539"),
        ("task.judge=phrases", "E537"),
        ("task.decoding=rise", "E532"),
        ("task.decoding=rose:alfa=1", "E701"),
        ("task.decoding={alpha: 1}", "E706"),
    ],
)
def test_judges_and_decodings_are_checked_before_anything_runs(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, change: str, code: str
) -> None:
    monkeypatch.chdir(workshop)
    with pytest.raises(SutureError) as caught:
        read_recipe(workshop / "recipe.yaml", [f"suites.{change}"])
    assert caught.value.code == code


def test_options_of_suites_are_checked(workshop: Path) -> None:
    path = workshop / "recipe.yaml"
    for change, code in (("safety.options.jailbreak=all", "E701"), ("task.options.x=1", "E529")):
        with pytest.raises(SutureError) as caught:
            read_recipe(path, [f"suites.{change}"])
        assert caught.value.code == code


def test_an_unlearning_suite_in_a_recipe(workshop: Path) -> None:
    path = workshop / "recipe.yaml"
    people = "{suite: unlearning, data: people.jsonl, options: {retain: keep.jsonl}}"
    (workshop / "people.jsonl").write_text('{"question": "Who?", "answer": "nobody"}\n')
    (workshop / "keep.jsonl").write_text('{"question": "What?", "answer": "bread"}\n')
    text = path.read_text().replace(
        "  safety: {data: prompts", f"  people: {people}\n  safety: {{data: prompts"
    )
    path.write_text(text)
    spec = read_recipe(path).suites["people"]
    assert spec.options == {"retain": str(workshop / "keep.jsonl")}
    assert [item.id for item in spec.items("people")] == ["forget/0", "retain/0"]
    error = _refusal(workshop, "{metric: safety.refusal_rate", "{metric: people.forget_quality")
    assert error.code == "E722"
    assert "one number about all rows" in str(error)
    assert "forget_probability" in str(error)


def test_an_option_that_stands_beside_options_is_told_its_place(workshop: Path) -> None:
    with pytest.raises(SutureError) as caught:
        read_recipe(workshop / "recipe.yaml", ["suites.safety.jailbreaks=all"])
    assert "suites.safety.options.jailbreaks" in str(caught.value)
    with pytest.raises(SutureError, match="E701"):
        read_recipe(workshop / "recipe.yaml", ["suites.safety.jailbrakes=all"])


def test_a_limit_holds_for_every_suite(workshop: Path) -> None:
    found = read_recipe(workshop / "recipe.yaml", limit=3).suites
    assert {name: spec.limit for name, spec in found.items()} == {"safety": 3, "task": 3}
    assert read_recipe(workshop / "recipe.yaml", limit=7).suites["task"].limit == 6
    with pytest.raises(SutureError, match="at least 1"):
        read_recipe(workshop / "recipe.yaml", limit=0)


def test_a_suite_that_only_set_names_is_told_as_such(workshop: Path) -> None:
    with pytest.raises(SutureError) as caught:
        read_recipe(workshop / "recipe.yaml", ["suites.saftey.limit=3"])
    assert caught.value.code == "E520"
    assert caught.value.where == "--set suites.saftey"
    assert caught.value.fix == "did you mean 'suites.safety'?"
    folder = workshop / "gone"
    with pytest.raises(SutureError) as caught:
        read_recipe(workshop / "recipe.yaml", [f"models.tuned={folder}"])
    assert caught.value.code == "E721"
    assert "yaml" not in str(caught.value.fix)
