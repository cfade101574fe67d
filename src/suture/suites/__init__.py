"""Suites: one file per thing worth measuring; `measure` runs one, `rescore` scores it again."""

from suture.suites.run import available, load_suite, measure, measure_log, rescore
from suture.suites.run import rescore as score

__all__ = ["available", "load_suite", "measure", "measure_log", "rescore", "score"]
