"""The stages of a sweep. Every setting is derived once, and is a run folder of its own.

    RUN/selection/           models as they are, on the rows that settings are chosen by
    RUN/settings/KEY/patch   what the setting does; KEY follows from the method and all its knobs
    RUN/settings/KEY/selection/after/   measured for every setting
    RUN/baseline/            models as they are, on the rows of the report
    RUN/settings/KEY/        for chosen settings the ordinary run on those rows: after/, report.html
    RUN/cache/               what settings share
    RUN/sweep.json, report.html, report.json, report.md

Killed anywhere, the same command goes on. Several processes may run it at once: one derives at a
time (they share the cache), and each measures settings that no other one is measuring.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from suture.checkpoint.jsonfile import write_json
from suture.errors import SutureError
from suture.ledger import compare
from suture.ledger.junk import degenerate_suites
from suture.progress import note
from suture.runs.folder import RunFolder
from suture.runs.pipeline import Stages
from suture.runs.sweep.facts import Facts, SettingFacts
from suture.runs.sweep.outcome import (
    against_picked,
    facts_of,
    failed_setting,
    measured_setting,
    reported,
    scores_of,
    settle,
)
from suture.runs.sweep.page import write_page
from suture.runs.sweep.recipe import Setting, SweepRecipe

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.ledger import Measurement

# what one setting may do that others do not: change nothing, overflow, not be solvable
_OWN_FAILURES = ("E208", "E403", "E407")


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep came to: its folder, the content of sweep.json, the page. `error`: why the
    constraints chose nothing, if there are any."""

    folder: Path
    facts: Facts
    report: Path
    error: SutureError | None
    wall: float

    @property
    def exit_code(self) -> int:
        """That of the chosen setting on the report split; 0 where none was to be chosen."""
        if self.error is not None:
            return 1
        told = [s["report"] for s in self.facts["settings"] if s["key"] == self.facts["picked"]]
        return int(told[0]["exit_code"]) if told and told[0] else 0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        error = None if self.error is None else self.error.as_dict()
        told = {"run": str(self.folder), "report": str(self.report), "wall": self.wall}
        return {**told, "exit_code": self.exit_code, "error": error, **self.facts}


def run_sweep(
    sweep: SweepRecipe, folder: str | Path, *, command: str | None = None, redact: bool = False
) -> SweepOutcome:
    """Run the sweep in `folder`, or go on with it.

    Raises what `suture.runs.run` raises, and E741 when no setting could be derived. Constraints
    that choose nothing do not stop it: they are the outcome's `error`, with everything measured.
    """
    from suture.checkpoint.staging import refuse_inside

    began = time.monotonic()
    for model in sweep.report.models.values():
        for source in (model.path, *model.patches):
            refuse_inside(folder, source)
    home = RunFolder.open(folder)
    work = _Work(sweep, home, command, redact)
    try:
        work.baseline()
        work.derive()
        work.measure()
        facts, error = work.report()
    except KeyboardInterrupt:
        note(f"\ninterrupted; what is finished is kept in {home.path}")
        raise
    wall = round(time.monotonic() - began, 3)
    return SweepOutcome(home.path, facts, home.path / "report.html", error, wall)


class _Work:
    """One sweep in one folder. Models are opened once; `before` stays loaded while measuring."""

    def __init__(
        self, sweep: SweepRecipe, home: RunFolder, command: str | None, redact: bool
    ) -> None:
        self.sweep, self.home, self.command, self.redact = sweep, home, command, redact
        self.cache = sweep.sweep.cache or home.path / "cache"
        self.chosen_by = self._stages(sweep.selection, "selection")
        self.before: list[Measurement] = []
        self.reference: list[Measurement] = []
        self.runs: dict[str, _SettingRun] = {}
        self.failed: dict[str, SutureError] = {}
        self.measured: dict[str, SettingFacts] = {}

    def baseline(self) -> None:
        """The models as they are, on the selection split."""
        recipe, stages = self.sweep.selection, self.chosen_by
        with self.home.lock(wait=True):
            roles = recipe.roles_sha256
            section = self.sweep.sweep.model_dump(mode="json")
            told = self.sweep.report.model_dump(mode="json")
            stages.home.claim(recipe.model_dump(mode="json"), roles)
            self.home.claim({**told, "sweep": section}, roles)
            stages.check()
            self.before = stages.measure("before", stages.sources[recipe.before])
            if recipe.reference is not None:
                self.reference = stages.measure("reference", stages.sources[recipe.reference])
        stages.loaded.clear()  # methods load what they need, one model at a time

    def derive(self) -> None:
        """The patch of every setting. What is one setting's own fault does not stop the others."""
        settings = self.sweep.settings
        clock = _Clock("derived", len(settings))
        for setting in settings:
            note(f"setting {setting.number} of {len(settings)}: {_name(setting)}")
            run = self._run_of(setting)
            self.runs[setting.key] = run
            try:
                with self.home.lock("deriving", wait=True), run.home.lock(wait=True):
                    run.derive()
                clock.done(not run.home.finished[-1].reused)
            except SutureError as error:
                if error.code not in _OWN_FAILURES:
                    raise
                note(f"setting {setting.number} is left out: {error.code}: {error.what}")
                self.failed[setting.key] = error
        if len(self.failed) == len(settings):
            first = self.failed[settings[0].key]
            raise SutureError(
                "E741",
                f"none of {len(settings)} settings could be derived; the first: {first.what}",
                where=first.where,
                why=first.why,
                fix=first.fix,
            )

    def measure(self) -> None:
        """Every derived setting on the selection split; busy ones are another process's for now."""
        waiting = [s for s in self.sweep.settings if s.key not in self.failed]
        clock = _Clock("measured", len(waiting))
        for wait in (False, True):
            left, waiting = waiting, []
            for setting in left:
                try:
                    with self.runs[setting.key].home.lock("measuring", wait=wait):
                        fresh = self._measure(setting)
                except SutureError as error:
                    if error.code != "E726" or wait:
                        raise
                    waiting.append(setting)
                    continue
                clock.done(fresh)
        self.chosen_by.loaded.clear()

    def _measure(self, setting: Setting) -> bool:
        """One setting on the selection split; whether any of it was not there before."""
        run, recipe = self.runs[setting.key], self.sweep.selection
        stages = self._stages(recipe, f"settings/{setting.key}/selection")
        stages.share(self.chosen_by)
        after = stages.measure("after", run.edited())
        ledger = compare(self.before, after, self.reference, recipe.roles, seed=recipe.seed)
        found = measured_setting(
            setting,
            self.sweep,
            self.before,
            after,
            verdict=ledger.verdict,
            junk=degenerate_suites(ledger.junk),
            patch=run.patch_info,
            seconds={**run.home.seconds, **stages.home.seconds},
        )
        self.measured[setting.key] = found
        scores = scores_of(after)
        shown = ", ".join(f"{metric} {scores[metric]:.3f}" for metric in self.sweep.axes)
        note(f"setting {setting.number} ({_name(setting)}): {shown}")
        return not all(stage.reused for stage in stages.home.finished)

    def report(self) -> tuple[Facts, SutureError | None]:
        """Choose; measure what is on the front, or chosen, on the report split; write the page."""
        rows = [
            failed_setting(s, self.failed[s.key]) if s.key in self.failed else self.measured[s.key]
            for s in self.sweep.settings
        ]
        facts = facts_of(self.sweep, rows, self.before, self.reference, self.command)
        error = settle(facts)
        against_picked(self.home.path, facts)
        wanted = [row for row in facts["settings"] if self._is_reported(row, facts["picked"])]
        with self.home.lock(wait=True):
            if wanted:
                note("on the report split: the models as they are")
                shared = self._report_baseline()
                clock = _Clock("reported", len(wanted))
                for row in wanted:
                    run = self.runs[row["key"]]
                    note(f"on the report split: setting {row['number']} ({row['label']})")
                    run.shared = shared
                    run.home.finished.clear()
                    with run.home.lock(wait=True):
                        ledger, _page = run.everything()
                    row["report"] = reported(
                        run.home.path, self.sweep.axes, ledger, run.recipe.seed
                    )
                    clock.done(not all(stage.reused for stage in run.home.finished))
            write_json(self.home.path / "sweep.json", facts)
            write_page(self.home.path, redact=self.redact)
        return facts, error

    def _is_reported(self, row: SettingFacts, picked: str | None) -> bool:
        return row["key"] == picked or (bool(row["front"]) and self.sweep.reports_front)

    def _report_baseline(self) -> dict[tuple[str, str], Path]:
        """(fingerprint, suite) to the measurement of a model as it is, on the report split."""
        recipe = self.sweep.report
        stages = self._stages(recipe, "baseline")
        stages.share(self.chosen_by)
        found = {}
        for side, model in (("before", recipe.before), ("reference", recipe.reference)):
            if model is not None:
                stages.measure(side, stages.sources[model])
                for label in recipe.suites:
                    place = stages.home.path / side / f"{label}.json"
                    found[stages.fingerprints[model], label] = place
        stages.loaded.clear()
        return found

    def _run_of(self, setting: Setting) -> _SettingRun:
        recipe = setting.recipe.model_copy(update={"write": False})
        home = RunFolder.open(self.home.path / "settings" / setting.key)
        home.claim(recipe.model_dump(mode="json"), recipe.roles_sha256)
        run = _SettingRun(recipe, home, self.command, self.redact, self.cache)
        run.sources, run.fingerprints = self.chosen_by.sources, self.chosen_by.fingerprints
        return run

    def _stages(self, recipe: Any, name: str) -> Stages:
        home = RunFolder.open(self.home.path / name)
        return Stages(recipe, home, self.command, self.redact)


class _SettingRun(Stages):
    """The ordinary run of one setting, on models that are open and checked already.

    `shared`: (fingerprint, suite) to what was measured for all settings.
    """

    shared: Mapping[tuple[str, str], Path] = MappingProxyType({})

    def check(self) -> None:
        self.home.stage("check", inputs={"models": self.fingerprints}, work=lambda: None)

    def _measuring(
        self, label: str, source: TensorSource, file: Path
    ) -> Callable[[], Mapping[str, Any]]:
        """What was measured for all settings is copied."""
        from suture.report.folder import with_replies

        place = self.shared.get((source.fingerprint(), label))
        if place is None:
            return super()._measuring(label, source, file)

        def work() -> Mapping[str, Any]:
            found = with_replies(place)
            found.save(file, redact=self.redact)
            return {"n": found.n, "metrics": found.metrics}

        return work


class _Clock:
    """Says how many are done and how long the rest may take."""

    def __init__(self, verb: str, total: int) -> None:
        self.verb, self.total, self.count, self.fresh = verb, total, 0, 0
        self.last, self.spent = time.monotonic(), 0.0

    def done(self, fresh: bool) -> None:
        """One more; `fresh`: it was not there before, so its time tells of the next ones'."""
        now = time.monotonic()
        self.count += 1
        if fresh:
            self.fresh += 1
            self.spent += now - self.last
        self.last = now
        left = self.total - self.count
        if left and self.fresh:
            seconds = self.spent / self.fresh * left
            note(f"{self.count} of {self.total} {self.verb}, ETA {_duration(seconds)}")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


def _name(setting: Setting) -> str:
    return (
        setting.label if setting.label == setting.method else f"{setting.method}, {setting.label}"
    )
