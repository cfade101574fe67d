"""Suites as recipes ask for them: judge, decoding and kept answers included."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.data import sha256_file
from suture.runs.folder import digest
from suture.runs.named import named_paths
from suture.runs.recipe import SuiteSpec

if TYPE_CHECKING:
    from suture.inference import LoadedModel
    from suture.ledger import Measurement


def suite_files(label: str, spec: SuiteSpec) -> tuple[Path, ...]:
    """The data that the suite called `label` reads."""
    from suture.suites import load_suite

    return spec.data or tuple(load_suite(spec.suite or label, spec.options).default_data)


def decides(label: str, spec: SuiteSpec) -> dict[str, Any]:
    """All that decides a measurement besides the model, as JSON: a stage's inputs.

    Judges and experts count with their bytes, not with their names.
    """
    found: dict[str, Any] = {
        "suite": {"label": label, **spec.asked()},
        "data": _data(label, spec),
    }
    paths = named_paths(spec.judge, spec.decoding, spec.options)
    if there := [str(path) for path in paths if path.exists()]:
        found["named"] = {path: _contents(path) for path in there}
    return found


def _data(label: str, spec: SuiteSpec) -> list[str]:
    """Of files their bytes; of a folder of data sets, which may be large, what is asked of it."""
    from suture.suites.common import items_sha256

    files = suite_files(label, spec)
    if any(path.is_dir() for path in files):
        return [items_sha256(spec.items(label))]
    return [sha256_file(path) for path in files]


@cache
def _contents(path: str) -> str:
    """Of a file or folder; judges are large and asked for by every suite and side."""
    return digest(Path(path))


def take(
    label: str,
    spec: SuiteSpec,
    lm: LoadedModel,
    *,
    before: LoadedModel | None = None,
    cache: Path | None = None,
) -> Measurement:
    """One suite on one model. `before`, `cache`: as in `suture.suites.measure`."""
    from suture.inference.decoding import load_decoding
    from suture.suites import load_suite, measure
    from suture.suites.judges import load_judge
    from suture.suites.judging import asked_for

    suite = load_suite(spec.suite or label, spec.options)
    asks = asked_for(suite)
    found = measure(
        spec.suite or label,
        lm,
        data=spec.data,
        limit=spec.limit,
        part=spec.part,
        before=before,
        max_new_tokens=spec.max_new_tokens,
        options=spec.options,
        judge=None if spec.judge is None else load_judge(spec.judge, asks),
        decoding=None if spec.decoding is None else load_decoding(spec.decoding),
        cache=cache,
    )
    if found.suite != label:
        found = replace(found, suite=label, data={**found.data, "suite": found.suite})
    return found


def beside(file: str) -> tuple[str, str]:
    """The files that a measurement file may have beside it: replies and judge's words."""
    stem = file.removesuffix(".json")
    return f"{stem}.replies.jsonl", f"{stem}.judged.jsonl"
