"""Suites: one file per thing worth measuring; `measure` runs one, `rescore` scores it again."""

from suture.suites.finding import available, load_suite
from suture.suites.measuring import measure, measure_log
from suture.suites.rescoring import rescore
from suture.suites.rescoring import rescore as score

__all__ = ["available", "load_suite", "measure", "measure_log", "rescore", "score"]
