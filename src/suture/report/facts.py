"""Everything a report says, as one frozen value; the renderers add nothing to it.

`build_facts` collects it from what a run holds: measurements with their replies, the ledger and,
for the heat map, the two checkpoints. Every field is plain data, so facts can be made by hand too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from suture.report.answers import AnswerPair, answer_pairs
from suture.report.heatmap import HeatMap, heat_map
from suture.report.scatter import Point

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.ledger import Ledger, Measurement

LEDGER_KEYS = (
    "suite",
    "metric",
    "role",
    "better",
    "n",
    "before",
    "after",
    "reference",
    "difference",
    "ci95",
    "margin",
    "verdict",
    "test",
)
_MORE_KEYS = ("p_value", "needed_n", "against", "min_gain", "note")
JUNK_KEYS = ("suite", "column", "against", "n", "baseline", "after", "difference", "ci95", "worse")
PATCH_KEYS = ("tensors", "elements", "bytes", "fingerprint")
MODEL_KEYS = ("fingerprint", "path", "name")


@dataclass(frozen=True)
class Tradeoff:
    """A sweep's points in one plane, with axis labels, directions and levels asked for."""

    points: tuple[Point, ...]
    x_label: str
    y_label: str
    better_x: Literal["higher", "lower"] = "higher"
    better_y: Literal["higher", "lower"] = "higher"
    as_percent: bool = True
    x_limit: float | None = None
    y_limit: float | None = None


@dataclass(frozen=True)
class SweptSetting:
    """One setting of a sweep.

    `selection`, `reported`: ledger-like rows by metric (metric, before, after, and the level's
    `ends`), on the rows it was chosen by and on others; the second only where it was measured.
    `against`: by metric the paired difference from the chosen setting, as in a ledger's row.
    `mark`: picked, front, or nothing. `note`: why it cannot be chosen. `page`: of its own report.
    """

    number: int
    label: str
    series: str
    mark: Literal["picked", "front", ""]
    selection: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reported: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    verdict: str | None = None
    note: str = ""
    page: str | None = None
    against: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepFacts:
    """A sweep: its settings, the planes they are drawn in, and what chose among them.

    `metrics`: (SUITE.METRIC, direction) of the columns. `landmarks`: rows like settings, of the
    models as they are. `by`: what chose, or why nothing did. `n`: rows by metric on either split.
    """

    settings: tuple[SweptSetting, ...]
    plots: tuple[Tradeoff, ...] = ()
    metrics: tuple[tuple[str, str], ...] = ()
    landmarks: tuple[SweptSetting, ...] = ()
    by: str = ""
    n: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from.

    `measurements`: one mapping per file: role, suite, file, sha256, n, model fingerprint, data
    name and sha256, template, decoding, scorer. `data`: further inputs (name, sha256, n), such as
    the prompts an edit was derived from. `licences`: notes on models and data.
    """

    recipe: str | None = None
    command: str | None = None
    method: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    data: Sequence[Mapping[str, Any]] = ()
    measurements: Sequence[Mapping[str, Any]] = ()
    template: Mapping[str, Any] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    roles_sha256: str | None = None
    licences: Sequence[str] = ()


@dataclass(frozen=True)
class ReportFacts:
    """The facts of one report.

    `verdict`: proven, broken, not proven, or not measured. `ledger`: rows with the keys of
    `report.json` (suite, metric, role, better, n, before, after, reference, difference, ci95,
    margin, verdict, test, and optionally p_value, needed_n, against, note). `patch`: tensors,
    elements, bytes, fingerprint, or None. `before`, `after`, `reference`: fingerprint, path, name,
    or None for the reference. `junk`: checks, one mapping each.
    `derived`: numbers about all rows of a suite (`derived_rows`). `seconds`: by stage.
    `notes`: the ledger's remarks. `missing`: what the report could not show and why. `redact`:
    leave harmful prompts and their replies out altogether.
    """

    title: str
    verdict: str
    ledger: Sequence[Mapping[str, Any]] = ()
    patch: Mapping[str, Any] | None = None
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] | None = None
    junk: Sequence[Mapping[str, Any]] = ()
    derived: Sequence[Mapping[str, Any]] = ()
    heatmap: HeatMap | None = None
    answers: Sequence[AnswerPair] = ()
    provenance: Provenance = field(default_factory=Provenance)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    exit_code: int | None = None
    sweep: SweepFacts | None = None
    missing: Sequence[str] = ()
    redact: bool = False

    def __post_init__(self) -> None:
        """Give every mapping its keys, None where unknown: renderers then need no guesses."""

        def fill(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        rows = dict.fromkeys((*LEDGER_KEYS, *_MORE_KEYS))
        fill("ledger", tuple({**rows, **row} for row in self.ledger))
        fill("junk", tuple({**dict.fromkeys(JUNK_KEYS), **check} for check in self.junk))
        if self.patch is not None:
            fill("patch", {**dict.fromkeys((*PATCH_KEYS, "path")), **self.patch})
        for name in ("before", "after", "reference"):
            model = getattr(self, name)
            if model is not None:
                fill(name, {**dict.fromkeys((*MODEL_KEYS, "patches")), **model})

    @property
    def targets(self) -> list[Mapping[str, Any]]:
        return [row for row in self.ledger if row.get("role") == "target"]

    @property
    def kept(self) -> list[Mapping[str, Any]]:
        return [row for row in self.ledger if row.get("role") != "target"]


def build_facts(
    *,
    title: str,
    ledger: Ledger | None,
    before: Sequence[Measurement],
    after: Sequence[Measurement],
    reference: Sequence[Measurement] = (),
    patch: Mapping[str, Any] | None = None,
    before_source: TensorSource | None = None,
    after_source: TensorSource | None = None,
    heatmap: HeatMap | None = None,
    provenance: Provenance | None = None,
    seconds: Mapping[str, float] | None = None,
    files: Mapping[str, Mapping[str, Any]] | None = None,
    names: Mapping[str, str] | None = None,
    missing: Sequence[str] = (),
    redact: bool = False,
) -> ReportFacts:
    """Facts from measurements (with their `replies`), the ledger and two checkpoints.

    The heat map is read from `before_source` and `after_source` unless `heatmap` is given.
    `provenance` may leave out versions, template, decoding and measurements: they are filled in
    from the measurements. `files`: what is known of measurement files ("file", "sha256"), keyed by
    "role/suite/data name". `names`: what to call the models (see `model_names`); default: folders.
    """
    names = names or {}
    if heatmap is None and before_source is not None and after_source is not None:
        heatmap = heat_map(before_source, after_source)
    judged = ledger.as_dict() if ledger is not None else {}
    by_role = {"before": before, "after": after, "reference": reference}
    return ReportFacts(
        title=title,
        verdict=str(judged.get("verdict", "not measured")),
        exit_code=judged.get("exit_code"),
        ledger=tuple(judged.get("ledger", ())),
        patch=patch,
        before=model_facts(before, before_source, names.get("before")),
        after=model_facts(after, after_source, names.get("after")),
        reference=model_facts(reference, None, names.get("reference")) if reference else None,
        junk=tuple(judged.get("junk", ())),
        derived=tuple(derived_rows(by_role)),
        heatmap=heatmap,
        answers=answer_pairs(before, after, reference),
        provenance=_complete(
            provenance or Provenance(), by_role, files or {}, judged.get("roles_sha256")
        ),
        seconds=dict(seconds or {}),
        notes=tuple(judged.get("notes", ())),
        missing=tuple(missing),
        redact=redact,
    )


def derived_rows(by_role: Mapping[str, Sequence[Measurement]]) -> list[dict[str, Any]]:
    """Numbers about all rows of a suite, which the ledger cannot pair: one mapping per metric.

    suite, metric, direction, best, definition, n, and by role a value and an interval if known.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for role, group in by_role.items():
        for measured in group:
            columns = {name for row in measured.rows for name in row.scores}
            for name, about in measured.derived.items():
                if name in columns:
                    continue
                row = found.setdefault(
                    (measured.suite, name),
                    {
                        "suite": measured.suite,
                        "metric": name,
                        **{key: about.get(key) for key in ("direction", "best", "definition", "n")},
                    },
                )
                row[role] = about.get("value")
                row[f"{role}_interval"] = about.get("interval")
                row.setdefault("refers_to", about.get("reference"))
    return list(found.values())


def model_names(before: str, reference: str | None) -> dict[str, str]:
    """The names a recipe gives its models, for `build_facts`."""
    names = {"before": before, "after": f"{before}, patched"}
    return names | ({"reference": reference} if reference else {})


def model_facts(
    measured: Sequence[Measurement], source: TensorSource | None, name: str | None = None
) -> dict[str, Any]:
    """Fingerprint, path, name, patches and identity of a measured model."""
    model = dict(measured[0].model) if measured else {}
    if source is not None:
        model.setdefault("path", str(source.path))
        model["fingerprint"] = model.get("fingerprint") or source.fingerprint()
    model.setdefault("fingerprint", None)
    if name or not model.get("name"):
        model["name"] = name or PurePath(str(model.get("path", ""))).name
    return model


def _complete(
    given: Provenance,
    by_role: Mapping[str, Sequence[Measurement]],
    files: Mapping[str, Mapping[str, Any]],
    roles_sha256: str | None,
) -> Provenance:
    everything = [(role, m) for role, group in by_role.items() for m in group]
    versions: dict[str, str] = {}
    for _, measured in everything:
        versions.update(measured.versions)
    listed = [
        {
            "role": role,
            "suite": m.suite,
            "n": m.n,
            "fingerprint": m.model.get("fingerprint"),
            "identity": m.model.get("identity"),
            "data": dict(m.data),
            "template": dict(m.template),
            "decoding": dict(m.decoding),
            "scorer": dict(m.scorer),
            **files.get(f"{role}/{m.suite}/{m.data.get('name', '')}", {}),
        }
        for role, m in everything
    ]
    last = everything[-1][1] if everything else None
    return replace(
        given,
        versions={**versions, **given.versions},
        measurements=tuple(given.measurements) or tuple(listed),
        template=given.template or (dict(last.template) if last else {}),
        decoding=given.decoding or (dict(last.decoding) if last else {}),
        roles_sha256=given.roles_sha256 or roles_sha256,
    )
