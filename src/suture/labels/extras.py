"""Libraries of the extra `labels`, imported when something needs them."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from suture.errors import SutureError

_PACKAGES = {"sklearn": "scikit-learn", "crowdkit": "crowd-kit"}


def need(module: str) -> Any:
    """The module, imported. E391 where its package is missing, with what installs it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about their own dependencies
            return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        raise SutureError(
            "E391",
            f"the package {_PACKAGES.get(top, top)} cannot be imported: {error}",
            why="agreement and the comparison with other estimators come from libraries",
            fix="pip install 'suture[labels]'",
        ) from None
