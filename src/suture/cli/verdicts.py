"""The ledger as people read it in a terminal: one table for `run` and `compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suture.cli.terminal import table

if TYPE_CHECKING:
    from suture.ledger import Ledger, LedgerRow

_HEAD = ("verdict", "metric", "role", "n", "before", "after", "reference", "gain [95%]")


def ledger_text(ledger: Ledger) -> str:
    """The verdict of every role, what would settle the open ones, and what the ledger notes."""
    from suture.ledger import assumed

    lines = [table([_cells(row) for row in ledger.rows], _HEAD)]
    for row in ledger.rows:
        if row.needed_n is not None:
            lines.append(
                f"{row.suite}.{row.metric}: about {row.needed_n} items would settle it "
                f"4 times in 5, if {assumed(row.role)}"
            )
        if row.note:
            lines.append(f"{row.suite}.{row.metric}: {row.note}")
    return "\n".join([*lines, *ledger.notes])


def _cells(row: LedgerRow) -> tuple[str, ...]:
    low, high = row.ci95
    against = " of reference" if row.against == "reference" else ""
    return (
        row.verdict,
        f"{row.suite}.{row.metric}",
        row.role if row.margin is None else f"{row.role}, margin {row.margin:g}{against}",
        str(row.n) if row.clusters is None else f"{row.n} in {row.clusters} clusters",
        f"{row.before:.3f}",
        f"{row.after:.3f}",
        "-" if row.reference is None else f"{row.reference:.3f}",
        f"{row.difference:+.3f} [{low:+.3f}, {high:+.3f}]",
    )
