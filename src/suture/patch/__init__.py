"""Patches: the exact, reversible difference between two checkpoints, as a small folder."""

from __future__ import annotations

from suture.patch.format import FileRecord, Patch, PatchInfo, Record
from suture.patch.operations import (
    VerifyResult,
    apply,
    diff,
    drain,
    open_model,
    revert,
    verify,
)
from suture.patch.patched import PatchedCheckpoint
from suture.patch.writer import PatchWriter

__all__ = [
    "FileRecord",
    "Patch",
    "PatchInfo",
    "PatchWriter",
    "PatchedCheckpoint",
    "Record",
    "VerifyResult",
    "apply",
    "diff",
    "drain",
    "open_model",
    "revert",
    "verify",
]
