from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from report.runfolder import ITEMS, make_run
from report.schema import violations
from suture.cli.main import run as suture
from suture.errors import SutureError
from suture.report import folder as module
from suture.report.folder import facts_from_run, with_replies


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), tiny)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_everything_comes_from_the_files(run: Path) -> None:
    facts = facts_from_run(run)
    assert facts.verdict == "proven"
    assert facts.title == "Refusals restored"
    assert [row["verdict"] for row in facts.ledger] == ["improved", "held"]
    assert facts.ledger[0]["before"] == 0.25
    assert facts.heatmap is not None
    assert facts.heatmap.tensors_changed > 0
    assert facts.patch is not None
    assert facts.patch["elements"] == pytest.approx(facts.heatmap.changed * facts.heatmap.entries)
    assert facts.provenance.roles_sha256 == "5" * 64
    assert facts.provenance.config == {"removed": 0.5}
    assert facts.seconds == {"derive": 1.5}
    assert {m["file"] for m in facts.provenance.measurements} >= {"before/safety.json"}
    assert facts.missing == ()
    safety = [pair for pair in facts.answers if pair.suite == "safety"]
    assert sum(pair.kind == "refuses now" for pair in safety) == ITEMS * 9 // 10 - ITEMS // 4
    assert all(pair.harmful for pair in safety)
    assert not any(pair.harmful for pair in facts.answers if pair.suite == "task")


def test_command_writes_the_three_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert suture(["report", str(run)]) == 0
    assert "proven" in capsys.readouterr().out
    assert violations(json.loads((run / "report.json").read_text())) == []
    assert suture(["report", str(run), "--json", "--redact", "-o", str(run / "again")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "proven"
    assert "of safety" not in Path(told["files"]["html"]).read_text()
    assert "of safety" in (run / "report.html").read_text()


def test_heat_map_of_the_same_models_is_read_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert suture(["report", str(run), "--json"]) == 0
    first = facts_from_run(run).heatmap

    def refuse(*_: object) -> None:
        raise AssertionError("the checkpoints were read again")

    monkeypatch.setattr(module, "heat_map", refuse)
    assert facts_from_run(run).heatmap == first
    report = json.loads((run / "report.json").read_text())
    report["after"]["fingerprint"] = "another"
    (run / "report.json").write_text(json.dumps(report))
    with pytest.raises(AssertionError):
        facts_from_run(run)


def test_what_is_missing_is_said(run: Path) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["recipe"]["roles"] = []
    recipe["recipe"]["models"]["tuned"]["path"] = str(run / "gone")
    (run / "recipe.json").write_text(json.dumps(recipe))
    shutil.rmtree(run / "patch")
    for replies in run.glob("*/*.replies.jsonl"):
        replies.unlink()
    facts = facts_from_run(run)
    assert facts.verdict == "not measured"
    told = " ".join(facts.missing)
    for word in ("answers", "verdicts", "patch", "heat map"):
        assert word in told
    assert suture(["report", str(run)]) == 0


def test_a_folder_without_measurements_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SutureError) as caught:
        facts_from_run(tmp_path)
    assert caught.value.code == "E762"
    assert suture(["report", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []


def test_damaged_measurement_is_named(run: Path) -> None:
    (run / "after" / "safety.json").write_text("{")
    with pytest.raises(SutureError) as caught:
        facts_from_run(run)
    assert caught.value.code == "E602"


def test_with_replies(run: Path) -> None:
    assert len(with_replies(run / "before" / "safety.json").replies) == ITEMS
