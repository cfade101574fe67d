"""How far labels hang on who happened to be asked about: the estimate on resampled items.

Each draw takes as many items as there are, with replacement, and estimates anew; every item of the
data, drawn or not, gets the label that the new tables give its votes (inferred: the benchmark has
no intervals). Without smoothing they may leave an item that was not drawn no pole: it has no label
in that draw, and the others do not mind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.labels.em import EM, fit
from suture.labels.estimate import Labels, Soft
from suture.labels.spreading import spread
from suture.lazy import np
from suture.progress import track
from suture.rng import generator

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Stability:
    """Of one dimension: `low`, `high` (n,), the 95% interval of each soft label; NaN without votes.
    `kept` (n,): share of draws in which the posterior is on the side of the item's hard label, be
    that a majority's (`released`) or the posterior's own. `failed`: of the `draws`, those without
    an estimate. `partly` (n,): some draws leave the item without a label, and the others count."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    kept: NDArray[np.float64]
    draws: int
    failed: int
    partly: NDArray[np.bool_]

    def facts(self) -> dict[str, Any]:
        """For reports: mean width of the intervals, and the share of items with a hard label whose
        posterior is on its side in 95% of the draws (None: no item has one)."""
        labelled, decided = np.isfinite(self.low), np.isfinite(self.kept)
        settled = float((self.kept[decided] >= 0.95).mean()) if decided.any() else None
        return {
            "draws": self.draws,
            "failed": self.failed,
            "partly": int(self.partly.sum()),
            "mean_width": float((self.high - self.low)[labelled].mean()),
            "settled": settled,
        }


def stability(
    labels: Labels, em: EM, *, soft: Soft | None = None, draws: int = 200, seed: int = 0
) -> Stability:
    """The labels of one dimension with two poles, from `draws` resamplings of its items.

    `em`, `soft`: as the labels were made.

    Errors: E390 with more than two poles, E702 fewer than 20 draws, E389 where no draw has an
    estimate.
    """
    scale, distinct = labels.ballot.scale, labels.fit.patterns
    if len(scale.poles) > 2:
        raise SutureError(
            "E390",
            f"'{scale.name}' has {len(scale.poles)} poles, intervals need two",
            why="they are of a label between two ends",
            fix="leave --draws out, or name the others with --dimension",
        )
    if draws < 20:
        raise SutureError("E702", f"draws is {draws}", where="--draws", fix="give at least 20")
    draw = generator(seed, f"stability.{scale.name}")
    items = int(distinct.count.sum())
    counts = draw.multinomial(items, distinct.count / items, size=draws).astype(np.float64)
    values, first = [], []
    for count in track(counts, f"resamplings of {scale.name}"):
        drawn = replace(distinct, count=count)
        try:
            posterior = fit(drawn, scale, em).posterior[:, 0]
        except SutureError:
            continue
        as_it_is = soft == "posterior"
        values.append(1 - posterior if as_it_is else spread(posterior, drawn, scale.symbols))
        first.append(posterior)
    if not values:
        raise SutureError(
            "E389",
            f"no resampling of '{scale.name}' has an estimate",
            why="without smoothing, votes that are rare leave items without any possible pole",
            fix="use --mode converged, which smooths",
        )
    found = np.array(values)
    known = np.isfinite(found)
    on_first = (np.array(first) > 0.5).sum(axis=0).astype(np.float64)
    low, high = _ends(found, known)
    times: NDArray[np.float64] = known.sum(axis=0).astype(np.float64)
    with np.errstate(invalid="ignore"):  # in no draw: NaN
        is_first = distinct.spread(on_first / times)
    kept = np.where(labels.hard == 0, is_first, 1 - is_first)
    kept[labels.hard < 0] = np.nan
    partly = distinct.spread(len(values) - times) > 0
    failed = draws - len(values)
    return Stability(distinct.spread(low), distinct.spread(high), kept, draws, failed, partly)


def _ends(
    values: NDArray[np.float64], known: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95% of the draws that are known, by pattern; NaN where none is."""
    ends = np.quantile(values, [0.025, 0.975], axis=0)
    for place in np.flatnonzero(~known.all(axis=0) & known.any(axis=0)):
        ends[:, place] = np.quantile(values[known[:, place], place], [0.025, 0.975])
    return ends[0], ends[1]
