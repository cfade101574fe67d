"""Suites are found by their modules: `over-refusal` is `suture.suites.over_refusal`.

A new suite is a new file with a `SUITE`; nothing else has to be told.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.errors import SutureError, nearest
from suture.suites.common import Suite


def available() -> list[str]:
    """The names of all suites."""
    folder = Path(__file__).parent
    modules = (path for path in folder.glob("*.py") if "\nSUITE = " in path.read_text("utf-8"))
    return sorted(path.stem.replace("_", "-") for path in modules)


def load_suite(name: str, options: Mapping[str, Any] | None = None) -> Suite:
    """The suite called `name` (E520: none is), with its options if it takes any (E529)."""
    known = available()
    if name.replace("_", "-") not in known:
        close = nearest(name, known)
        raise SutureError(
            "E520",
            f"no suite is called '{name}'",
            fix=f"did you mean '{close}'?" if close else f"there are: {', '.join(known)}",
        )
    suite: Suite = importlib.import_module(f"suture.suites.{name.replace('-', '_')}").SUITE
    return _configured(suite, options)


def _configured(suite: Suite, options: Mapping[str, Any] | None) -> Suite:
    """The suite with its options, where it takes any (E529)."""
    if not options:
        return suite
    configure = getattr(suite, "configure", None)
    if configure is None:
        raise SutureError(
            "E529",
            f"the suite {suite.name} takes no options",
            where=", ".join(options),
            fix="leave --set out",
        )
    found: Suite = configure(options)
    return found
