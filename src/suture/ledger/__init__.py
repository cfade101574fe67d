"""Paired statistics and verdicts: what may be concluded when two models answered the same items."""

from suture.ledger.compare import Ledger, LedgerRow, compare
from suture.ledger.intervals import Bootstrap, bca, bca_mean, mcnemar_midp, tango, tango_score
from suture.ledger.junk import TOLERANCES, JunkCheck, check_junk
from suture.ledger.kinds import counted
from suture.ledger.measurement import (
    Better,
    JudgedRow,
    Measurement,
    ReplyRow,
    Row,
    judged_path,
    load_judged,
    load_replies,
    mean_scores,
    replies_path,
    replies_sha256,
    save_replies,
)
from suture.ledger.pairing import Estimate, estimate_difference
from suture.ledger.pareto import dominates, front
from suture.ledger.statistics import NONE, Statistic, derive, without_interval
from suture.ledger.summary import interval_of, is_trivial, stands_on
from suture.ledger.verdicts import (
    EXIT_CODES,
    Role,
    RunVerdict,
    Verdict,
    assumed,
    holm,
    judge,
    needed_n,
    roles_hash,
    run_verdict,
)

__all__ = [
    "EXIT_CODES",
    "NONE",
    "TOLERANCES",
    "Better",
    "Bootstrap",
    "Estimate",
    "JudgedRow",
    "JunkCheck",
    "Ledger",
    "LedgerRow",
    "Measurement",
    "ReplyRow",
    "Role",
    "Row",
    "RunVerdict",
    "Statistic",
    "Verdict",
    "assumed",
    "bca",
    "bca_mean",
    "check_junk",
    "compare",
    "counted",
    "derive",
    "dominates",
    "estimate_difference",
    "front",
    "holm",
    "interval_of",
    "is_trivial",
    "judge",
    "judged_path",
    "load_judged",
    "load_replies",
    "mcnemar_midp",
    "mean_scores",
    "needed_n",
    "replies_path",
    "replies_sha256",
    "roles_hash",
    "run_verdict",
    "save_replies",
    "stands_on",
    "tango",
    "tango_score",
    "without_interval",
]
