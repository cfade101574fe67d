"""Whether the models given to SafePatching are what they are given as.

A patch made by `suture train` says how: its objective and a hash of its rows. Checkpoints and
adapters say nothing, so of them only a model that is given twice can be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from suture.data import rows_sha256
from suture.errors import SutureError
from suture.progress import note

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource
    from suture.data import Pair

_DESCENDS = ("next-token",)
_ASCENDS = ("gradient-ascent", "mismatch-ascent", "gradient-difference", "npo", "simnpo")


def check_sides(
    ascended: TensorSource,
    descended: TensorSource,
    names: Sequence[str],
    harmful: Sequence[Pair],
) -> None:
    """Refuse (E572) sides that are swapped or one model; note rows that are not the recorded ones.

    `names`: the matrices that are merged.
    """
    if all(ascended.tensor_hash(name) == descended.tensor_hash(name) for name in names):
        raise SutureError(
            "E572",
            "the ascended and the descended model are the same",
            where=str(getattr(ascended, "path", "")) or None,
            why="safety patch and over-safety patch would be one",
            fix="give --ascended the model of gradient ascent, --descended that of descent",
        )
    for side, source, wrong, done in (
        ("ascended", ascended, _DESCENDS, "descent"),
        ("descended", descended, _ASCENDS, "ascent"),
    ):
        made = _made(source)
        objective = made.get("config", {}).get("objective", {}).get("name")
        if objective in wrong:
            raise SutureError(
                "E572",
                f"the {side} model was trained by {done}: its objective was '{objective}'",
                where=_patch_path(source),
                why="with the sides swapped the merged model would be less safe",
                fix="swap --ascended and --descended",
            )
        recorded = made.get("rows_sha256")
        if harmful and recorded and recorded != rows_sha256(harmful):
            note(
                f"the harmful rows are not those that the {side} patch was trained on "
                f"({_patch_path(source)}): importance is measured on other rows"
            )


def _made(source: TensorSource) -> Mapping[str, Any]:
    """What the last patch on the model says of its training; empty where nothing is known."""
    patches = getattr(source, "patches", ())
    manifest: Mapping[str, Any] = patches[-1].manifest if patches else {}
    if manifest.get("method") != "train":
        return {}
    found: Mapping[str, Any] = manifest.get("provenance") or {}
    return found


def _patch_path(source: TensorSource) -> str:
    patches = getattr(source, "patches", ())
    return str(patches[-1].path if patches else source.path)
