"""One thread, no network, no chatter: the same tests on every machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "100"
os.environ["NO_COLOR"] = "1"

settings.register_profile(
    "suture", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suture")


@pytest.fixture(autouse=True)
def _quiet_progress() -> Iterator[None]:
    """Progress lines stay out of captured output unless a test asks for them."""
    from suture import progress

    before, progress.silent = progress.silent, True
    yield
    progress.silent = before


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny(**options)` gives a cached `tiny_llama` folder: copy it before changing it."""
    from helpers import tiny_llama

    made: dict[tuple[tuple[str, object], ...], Path] = {}

    def build(**options: object) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = tiny_llama(tmp_path_factory.mktemp("llama") / "model", **options)  # type: ignore[arg-type]
        return made[key]

    return build
