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
                f"{row.suite}.{row.metric}: about {_needed(row)} would settle it "
                f"4 times in 5, if {assumed(row.role)}"
            )
        if row.note:
            lines.append(f"{row.suite}.{row.metric}: {row.note}")
    return "\n".join([*lines, *ledger.notes])


def _needed(row: LedgerRow) -> str:
    """Items, or clusters with as many items each as these: more of the same clusters add little."""
    if row.clusters is None:
        return f"{row.needed_n} items"
    return f"{row.needed_clusters} clusters like these"


def _signed(value: float, sign: str = "+") -> str:
    """With its sign, which is left out of what rounds to nothing."""
    shown = f"{value:{sign}.3f}"
    return shown if float(shown) else "0.000"


def _cells(row: LedgerRow) -> tuple[str, ...]:
    low, high = row.ci95
    against = " of reference" if row.against == "reference" else ""
    return (
        row.verdict,
        f"{row.suite}.{row.metric}",
        row.role if row.margin is None else f"{row.role}, margin {row.margin:g}{against}",
        str(row.n) if row.clusters is None else f"{row.n} in {row.clusters} clusters",
        _signed(row.before, "-"),
        _signed(row.after, "-"),
        "-" if row.reference is None else _signed(row.reference, "-"),
        f"{_signed(row.difference)} [{_signed(low)}, {_signed(high)}]",
    )
