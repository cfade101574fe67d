"""Which measurements are seeds of one model: said by the caller, or by the models' folders.

`LABEL=FILE` says it. Else a model is called by its folder; folders that differ only in a seed at
their end (`irr-seed0`, `irr_s1`, `irr/seed2`) are seeds of one. Two other models of one name are
not guessed about.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suture.errors import SutureError
from suture.ledger import Measurement

_SEED = re.compile(r"(?:^|[-_.])(?:seed|s)[-_.]?(\d+)$|(?:seed)(\d+)$", re.IGNORECASE)


def named_files(words: Sequence[str]) -> list[tuple[str | None, Path]]:
    """`LABEL=FILE` and `FILE` as pairs; a file whose name has a `=` may stand as it is.

    FILE may hold * and ?, which a shell does not expand behind `LABEL=`.
    """
    found: list[tuple[str | None, Path]] = []
    for word in words:
        label, equals, file = word.partition("=")
        if not equals or not label or Path(word).exists():
            label, file = "", word
        files = [file] if Path(file).exists() else sorted(glob.glob(file)) or [file]
        found += [(label or None, Path(one)) for one in files]
    return found


def grouped(files: Sequence[tuple[str | None, Path]]) -> dict[str, list[Measurement]]:
    """The measurements by label, in the order of the files.

    Errors: those of `Measurement.load`; E630 models of one name that nothing calls seeds, or one
    measurement twice; E631 one label for measurements with other options, or for two baselines.
    """
    loaded = [(label, Measurement.load(file)) for label, file in files]
    differing = _differing([one for label, one in loaded if label is None])
    groups: dict[str, list[Measurement]] = {}
    said: dict[str, bool] = {}
    for label, one in loaded:
        name = label or _model(one) + _told(one, differing)
        said[name] = label is not None
        groups.setdefault(name, []).append(one)
    for name, group in groups.items():
        _check(name, group, said=said[name])
    return groups


def _model(one: Measurement) -> str:
    """The folder without its seed, and the patches on it."""
    path = Path(_path(one))
    name = _SEED.sub("", path.name) or path.parent.name or path.name
    return name + "".join(f"+{str(patch)[:8]}" for patch in one.model.get("patches") or ())


def _path(one: Measurement) -> str:
    return str(one.model.get("path", "model"))


def _seed(one: Measurement) -> str | None:
    """What says which seed a measurement is of: the folder's end, the suite's option, or, of a
    baseline, the model itself."""
    match = _SEED.search(Path(str(one.model.get("path", ""))).name)
    own = one.data.get("options", {}).get("seed", one.model.get("seed"))
    return str(own) if own is not None else match and (match[1] or match[2])


def _asked(one: Measurement) -> dict[str, Any]:
    options = one.data.get("options", {})
    return {key: value for key, value in options.items() if key != "seed"}


def _baseline(one: Measurement) -> dict[str, Any]:
    """Which baseline answered, seed aside; empty for a model."""
    if not _path(one).startswith("baseline:"):
        return {}
    return {key: value for key, value in one.model.items() if key != "seed"}


def _differing(measurements: Sequence[Measurement]) -> dict[str, set[str]]:
    """By suite the options that are not the same in all of its measurements."""
    by_suite: dict[str, list[dict[str, Any]]] = {}
    for one in measurements:
        by_suite.setdefault(one.suite, []).append(_asked(one))
    return {
        suite: {
            key
            for options in group
            for key in options
            if any(other.get(key) != options[key] for other in group)
        }
        for suite, group in by_suite.items()
    }


def _told(one: Measurement, differing: Mapping[str, set[str]]) -> str:
    """The options that tell rows of one model apart, in brackets."""
    asked = _asked(one)
    told = [f"{key}={asked[key]}" for key in sorted(differing[one.suite]) if key in asked]
    return f" ({', '.join(told)})" if told else ""


def _check(name: str, group: Sequence[Measurement], *, said: bool) -> None:
    for place, one in enumerate(group):
        for other in group[:place]:
            if other.suite != one.suite:
                continue
            where = f"{other.file} and {one.file}"
            same = other.model == one.model and _seed(other) == _seed(one)
            if same and other.rows == one.rows:
                raise SutureError(
                    "E630",
                    f"'{name}': one measurement of {one.suite} twice",
                    where=where,
                    why="it would count as two seeds that agree perfectly",
                    fix="give every file once",
                )
            if not said and not same and _seed(one) == _seed(other):
                raise SutureError(
                    "E630",
                    f"two models are called '{name}', and nothing says that they are seeds",
                    where=where,
                    fix=f"call seeds of one model alike, {name}={one.file}; else give other labels",
                )
            if _baseline(other) != _baseline(one):
                raise SutureError(
                    "E631",
                    f"'{name}': {one.suite} was measured of {_path(other)} and of {_path(one)}",
                    where=where,
                    why="no seed makes the one of the other, and their mean would be nobody's",
                    fix="give them two labels",
                )
            if _asked(other) != _asked(one):
                raise SutureError(
                    "E631",
                    f"'{name}': the {one.suite} measurements were made with other options",
                    where=where,
                    why="seeds of one model must be asked in the same way",
                    fix="give them two labels",
                )
