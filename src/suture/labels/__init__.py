"""Annotators to labels: soft, hard and posterior, who can be trusted, and how far they agree."""

from __future__ import annotations

from suture.labels.agreement import agreement
from suture.labels.cleaning import Cleaning, clean, read_rules
from suture.labels.declared import declared
from suture.labels.em import EM
from suture.labels.estimate import Labels, against_stored, estimate, label_rows
from suture.labels.mislabels import MislabelRate, confidence, mislabel_rate
from suture.labels.peers import compare_estimators
from suture.labels.reliability import reliability
from suture.labels.scale import Scale, read_scales
from suture.labels.stability import Stability, stability
from suture.labels.stored import read_labels
from suture.labels.votes import Votes, read_votes

__all__ = [
    "EM",
    "Cleaning",
    "Labels",
    "MislabelRate",
    "Scale",
    "Stability",
    "Votes",
    "against_stored",
    "agreement",
    "clean",
    "compare_estimators",
    "confidence",
    "declared",
    "estimate",
    "label_rows",
    "mislabel_rate",
    "read_labels",
    "read_rules",
    "read_scales",
    "read_votes",
    "reliability",
    "stability",
]
