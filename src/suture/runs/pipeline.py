"""The stages of a run, in order; each is skipped when nothing it depends on has changed.

    check ─► before ─► patch ─► after ─► reference ─► ledger ─► report (─► edited checkpoint)

The edited model is measured through its patch, without being written. `write: true` writes it in
the end, with its model card.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.data import read_jsonl, sha256_file
from suture.methods.common import row_kind
from suture.progress import note
from suture.runs.binding import edits_of, is_donor
from suture.runs.folder import RunFolder
from suture.runs.measuring import beside, decides, take
from suture.runs.recipe import Recipe
from suture.runs.reporting import write_reports
from suture.versions import versions

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.inference import LoadedModel
    from suture.ledger import Ledger, Measurement

_BESIDE = (  # files of a model folder that change what its weights say
    "config.json generation_config.json chat_template.jinja tokenizer.json tokenizer_config.json "
    "special_tokens_map.json added_tokens.json vocab.json merges.txt tokenizer.model"
)


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `seconds`: by stage; `wall`: of this call alone."""

    folder: Path
    ledger: Ledger
    report: Path
    patch: dict[str, Any]
    seconds: dict[str, float]
    wall: float

    @property
    def exit_code(self) -> int:
        """0 proven, 2 broken, 3 not proven."""
        return self.ledger.exit_code

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "run": str(self.folder),
            "report": str(self.report),
            "patch": self.patch,
            "seconds": self.seconds,
            "wall": self.wall,
            **self.ledger.as_dict(),
        }


def run(
    recipe: Recipe, folder: str | Path, *, command: str | None = None, redact: bool = False
) -> Outcome:
    """Run the recipe in `folder`, or go on with it.

    `command`: shown in the report. `redact`: keep no harmful prompts or replies. Raises what the
    parts raise, E124 for a folder inside a model's, E724-E726 for what it holds, and
    KeyboardInterrupt after saying what was kept.
    """
    from suture.checkpoint.staging import refuse_inside

    began = time.monotonic()
    for model in recipe.models.values():
        for source in (model.path, *model.patches):
            refuse_inside(folder, source)
    home = RunFolder.open(folder)
    with home.lock():
        home.claim(recipe.model_dump(mode="json"), recipe.roles_sha256)
        try:
            stages = Stages(recipe, home, command, redact)
            ledger, report = stages.everything()
        except KeyboardInterrupt:
            kept = ", ".join(result.name for result in home.finished) or "none"
            note(f"\ninterrupted; finished stages kept in {home.path}: {kept}")
            raise
    wall = round(time.monotonic() - began, 3)
    return Outcome(home.path, ledger, report, stages.patch_info, home.seconds, wall)


class Stages:
    """One recipe in one folder. Sources are opened once; loaded models live for one side."""

    def __init__(
        self,
        recipe: Recipe,
        home: RunFolder,
        command: str | None,
        redact: bool,
        cache: Path | None = None,
    ) -> None:
        self.recipe, self.home, self.command, self.redact = recipe, home, command, redact
        self.cache = cache  # of the method
        self.sources: dict[str, TensorSource] = {}
        self.fingerprints: dict[str, str] = {}
        self.patch_info: dict[str, Any] = {}
        self.loaded: dict[str, LoadedModel] = {}
        self.libraries = versions()

    def share(self, other: Stages) -> None:
        """Go on with the models that `other` has opened, checked and loaded."""
        self.sources, self.fingerprints = other.sources, other.fingerprints
        self.loaded = other.loaded

    def everything(self) -> tuple[Ledger, Path]:
        """All stages; the ledger and the path of report.html."""
        recipe = self.recipe
        self.check()
        before = self.measure("before", self.sources[recipe.before])
        self.loaded.clear()  # the method loads what it needs, one model at a time
        self.derive()
        after = self.measure("after", self.edited())
        reference: list[Measurement] = []
        if recipe.reference is not None:
            reference = self.measure("reference", self.sources[recipe.reference])
        self.loaded.clear()
        ledger = self.ledger(before, after, reference)
        return ledger, self.report(ledger, before, after, reference)

    def check(self) -> None:
        """Open everything, compare layouts, look for NaN, read all rows, take fingerprints."""
        from suture.checkpoint import compare_layouts

        self.sources = open_sources(self.recipe)
        base = self.sources[self.recipe.before]
        again = False
        for name, source in self.sources.items():
            if source is not base:
                names = (self.recipe.before, name)
                compare_layouts(base, source, names=names, edited=names[0], again=again)
                again = True
        for name, data in self.recipe.data.items():
            read_jsonl(data.file, row_kind(name), limit=data.limit)
        self.fingerprints = {name: source.fingerprint() for name, source in self.sources.items()}
        self.home.stage(
            "check",
            inputs={"models": self.fingerprints},
            work=self._check_finite,
        )

    def measure(self, side: str, source: TensorSource) -> list[Measurement]:
        """All suites on one model: SIDE/SUITE.json, with the replies beside it."""
        from suture.report.folder import with_replies

        measured = []
        for label, spec in self.recipe.suites.items():
            file = f"{side}/{label}.json"
            self.home.stage(
                f"measure-{side}-{label}",
                inputs={
                    "model": source.fingerprint(),
                    "before": self.fingerprints[self.recipe.before],
                    **decides(label, spec),
                    "template": self._template(source),
                    "device": self.recipe.device,
                    "dtype": self.recipe.dtype,
                    "redact": self.redact,
                    "libraries": self.libraries,
                },
                outputs=(file,) if self.redact else (file, *beside(file)),
                work=self._measuring(label, source, self.home.path / file),
            )
            measured.append(with_replies(self.home.path / file))
        before = self.fingerprints[self.recipe.before]
        for key in self.loaded.keys() - {before}:
            del self.loaded[key]  # in place: stages of other folders may share it
        return measured

    def derive(self) -> None:
        """The method's edits, as a patch on `before`."""
        from suture.patch import PatchWriter, drain

        recipe, out = self.recipe, self.home.path
        method = recipe.method_config()
        provenance = {
            "method": recipe.method.name,
            "config": method.model_dump(mode="json"),
            **({"seeds": [method.seed]} if hasattr(method, "seed") else {}),
            "recipe": recipe.name,
            "models": self.fingerprints,
            "data": {name: sha256_file(spec.file) for name, spec in recipe.data.items()},
        }

        def work() -> None:
            edits = edits_of(method, *self._arguments())  # refuses before a folder is staged
            drain(edits, [PatchWriter(self.sources[recipe.before], out / "patch", provenance)])

        self.home.stage(
            "derive",
            inputs={
                **provenance,
                "limits": {name: spec.limit for name, spec in recipe.data.items()},
                "template": [self._template(source) for source in self.sources.values()],
                "device": recipe.device,
                "libraries": self.libraries,
            },
            outputs=("patch",),
            work=work,
        )

    def edited(self) -> TensorSource:
        """The model with the patch on it, unwritten."""
        from suture.patch import Patch, PatchedCheckpoint

        patch = self.home.path / "patch"
        self.patch_info = Patch.open(patch).info.as_dict()
        return PatchedCheckpoint(self.sources[self.recipe.before], [patch])

    def ledger(
        self,
        before: Sequence[Measurement],
        after: Sequence[Measurement],
        reference: Sequence[Measurement],
    ) -> Ledger:
        """Pair, judge, and say so."""
        from suture.ledger import compare

        began = time.monotonic()
        result = compare(before, after, reference, self.recipe.roles, seed=self.recipe.seed)
        self.home.event(
            "judged", "ledger", verdict=result.verdict, seconds=round(time.monotonic() - began, 3)
        )
        return result

    def report(
        self,
        ledger: Ledger,
        before: Sequence[Measurement],
        after: Sequence[Measurement],
        reference: Sequence[Measurement],
    ) -> Path:
        """report.html, report.json, report.md; with `write: true` the checkpoint with its card."""
        return write_reports(
            self.recipe,
            self.home,
            ledger=ledger,
            sides={"before": before, "after": after, "reference": reference},
            sources=self.sources,
            edited=self.edited(),
            patch=self.patch_info,
            libraries=self.libraries,
            command=self.command,
            redact=self.redact,
        )

    def _measuring(
        self, label: str, source: TensorSource, file: Path
    ) -> Callable[[], Mapping[str, Any]]:
        def work() -> Mapping[str, Any]:
            before = self._load(self.sources[self.recipe.before])
            spec, lm = self.recipe.suites[label], self._load(source)
            found = take(label, spec, lm, before=before, cache=self.recipe.cache)
            found.save(file, redact=self.redact)
            return {"n": found.n, "metrics": found.metrics}

        return work

    def _load(self, source: TensorSource) -> LoadedModel:
        """The model behind `source`, loaded once for all suites of a side."""
        from suture.inference import load

        key = source.fingerprint()
        if key not in self.loaded:
            recipe = self.recipe
            self.loaded[key] = load(
                source, device=recipe.device, dtype=recipe.dtype, chat_template=recipe.chat_template
            )
        return self.loaded[key]

    def _arguments(self) -> tuple[dict[str, TensorSource], dict[str, Any]]:
        """Models and rows that a method's `derive` may ask for by name. What is edited, `before`,
        is the base of a merge and the tuned model of a repair."""
        recipe = self.recipe
        rows = {n: read_jsonl(s.file, row_kind(n), limit=s.limit) for n, s in recipe.data.items()}
        others: dict[str, Any] = {
            **rows,
            "device": recipe.device,
            "chat_template": recipe.chat_template,
        }
        if self.cache is not None:
            others["cache"] = self.cache
        edited = self.sources[recipe.before]
        donors = {name: source for name, source in self.sources.items() if is_donor(name)}
        if donors:
            unaligned = {n: s for n, s in self.sources.items() if n == "unaligned"}
            return {"base": edited, **unaligned, **donors}, others
        return {**self.sources, "tuned": edited}, others

    def _check_finite(self) -> None:
        for source in self.sources.values():
            check = getattr(source, "check_finite", None)
            if check is not None:
                check()

    def _template(self, source: TensorSource) -> dict[str, str]:
        """Hashes of the files beside the weights, and of the template given instead."""
        files = [source.path / name for name in _BESIDE.split()]
        if self.recipe.chat_template:
            files.append(self.recipe.chat_template)
        return {file.name: sha256_file(file) for file in files if file.is_file()}


def open_sources(recipe: Recipe) -> dict[str, TensorSource]:
    """Every model of the recipe, headers checked; adapters sit on `aligned`, or on `base`."""
    from suture.patch import open_model

    found: dict[str, TensorSource] = {}
    for name in sorted(recipe.models, key=lambda name: name not in ("aligned", "base")):
        spec = recipe.models[name]
        base = found.get("aligned", found.get("base"))
        found[name] = open_model(spec.path, base=base, patches=spec.patches)
    return found
