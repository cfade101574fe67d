"""SafePatching: one patch for safety, one against over-refusal (Zhao et al., arXiv 2405.13820).

    P_SE  = θ_GA − θ    θ_GA: θ after gradient ascent on harmful rows D_h
    P_OSM = θ_GD − θ    θ_GD: θ after gradient descent on the same rows
    S, O  = top a of I_SE, top b of I_OSM, matrix by matrix;  I = SNIP on D_h
    θ*    = θ + α · K_SE ⊙ P_SE + β · K_OSM ⊙ P_OSM

K_SE keeps S ∖ O and K_OSM keeps O ∖ S, so the patches meet nowhere where either is important.
The accounts of the paper leave open how the random retention of rate p goes with the sets
(no official code is known, so both are inferred):

    reading B (default)  p is the share kept in all: the difference set, and entries important to
                         neither patch, at random, until the share is p
    reading A            of the difference set a share p, at random, is kept

The two models come from `suture train`, as checkpoints or as patches on θ; every p, a, b, α, β
after that is a merge and no training. Matrices of the blocks are merged, one at a time; embeddings,
norms and the head stay those of θ (inferred: SNIP ranks linear layers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from suture.checkpoint import TensorEdit
from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.lazy import torch
from suture.methods.cache import Cache, Under, identity
from suture.methods.common import MatrixScope, check_finite, scoped_names
from suture.methods.patching_sides import check_sides
from suture.methods.snip import SnipText
from suture.methods.thresholds import Selection, select, share_of
from suture.progress import note
from suture.rng import attained, bernoulli

if TYPE_CHECKING:
    from suture.checkpoint import Edit, TensorSource
    from suture.data import Pair
    from suture.inference import LoadedModel, Precision

_SIDES = ("safety", "over-safety")
Importance = Mapping[str, "torch.Tensor"]  # matrix → one number per entry, shaped as stored


@dataclass(frozen=True)
class PatchingReport:
    """One matrix: its entries, those merged from either patch, those important to both.

    `taken`: from one patch or the other. `rounded`: of these, steps that are lost when the result
    is rounded to the matrix's dtype.
    """

    name: str
    entries: int
    safety: int
    over_safety: int
    shared: int
    taken: int
    rounded: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class SafePatching(FrozenConfig):
    """Merge what is important to one patch and not to the other: safer, and refusing less."""

    streamed: ClassVar[bool] = False  # it runs the models; edits are whole matrices

    retain: float = Field(0.3, ge=0, le=1, description="p: share of a patch that is kept")
    top_safety: float = Field(0.03, ge=0, le=1, description="a: share important to safety")
    top_over_safety: float = Field(
        0.02, ge=0, le=1, description="b: share important against over-refusal"
    )
    safety_scale: float = Field(1.0, description="α: factor on the safety patch")
    over_safety_scale: float = Field(0.2, description="β: factor on the over-safety patch")
    reading: Literal["A", "B"] = Field(
        "B", description="p is of the difference set (A), or the share kept in all (B)"
    )
    patches: Literal["both", "safety", "over-safety"] = Field(
        "both", description="what is merged: both patches, or one alone"
    )
    merge: Literal["difference", "intersection", "task-arithmetic", "ties"] = Field(
        "difference",
        description="sets kept: S∖O and O∖S, or S∩O; or no sets: the whole patches, or TIES",
    )
    rescale: bool = Field(False, description="kept entries grow by 1/p, as in DARE")
    snip_weight: Literal["full", "patch"] = Field(
        "full", description="W in |W ∂L/∂W|: the weight, or the patch's entry"
    )
    snip_loss: SnipText = Field("question", description="L: of the prompt, or of the response")
    snip_model: Literal["own", "base"] = Field(
        "own", description="where gradients are taken: θ_GA and θ_GD, or θ for both"
    )
    snip_rows: int = Field(128, ge=1, description="first harmful rows used for importance")
    snip_tokens: int = Field(512, ge=2, description="tokens a row is cut to")
    scope: MatrixScope = Field(
        "all", description="all: every weight matrix of the blocks; qv: query and value only"
    )
    seed: int = Field(0, ge=0, description="of the entries kept at random")

    @property
    def importance_maps(self) -> int:
        """Numbers per entry in scope that are held at once: for `plan`."""
        return 0 if self.merge in ("task-arithmetic", "ties") else 2

    def derive(
        self,
        *,
        base: TensorSource,
        ascended: TensorSource,
        descended: TensorSource,
        harmful: Sequence[Pair] = (),
        device: str = "auto",
        dtype: Precision = "float32",
        chat_template: Path | None = None,
        importance: tuple[Importance, Importance] | None = None,
        report: list[PatchingReport] | None = None,
        cache: Path | None = None,
    ) -> Iterator[Edit]:
        """Edits of `base`, in checkpoint order.

        `harmful`: the rows the patches were trained on. `importance` (from `importances`) makes
        sweeps cheap. `report` receives one entry per matrix. `cache`: a folder that keeps the
        importances for other settings.

        Memory: one model at a time, and two float32 numbers per entry in scope.

        Raises SutureError E408 without rows, E409 for importance that lacks matrices, E413 for
        models that `base` does not differ from, E572 for sides that are swapped or the same, and
        those of layouts, data and loading.
        """
        from suture.checkpoint import compare_layouts

        for name, model in (("ascended", ascended), ("descended", descended)):
            compare_layouts(base, model, names=("base", name))
        names = scoped_names(base, self.scope)
        if self.patches == "both":
            check_sides(ascended, descended, names, harmful)
        if self.merge in ("task-arithmetic", "ties"):
            return self._whole(base, [ascended, descended])
        self._note_rates()
        if importance is None and not harmful:
            raise SutureError(
                "E408",
                "no harmful rows",
                why="the importance of entries is measured on them",
                fix="give --harmful FILE with the rows that the patches were trained on",
            )
        if importance is not None:
            absent = [n for n in names if any(n not in found for found in importance)]
            if absent:
                raise SutureError(
                    "E409", f"the importance given lacks {len(absent)} matrices: {absent[0]}"
                )

        options = {"device": device, "dtype": dtype, "chat_template": chat_template}

        def run() -> Iterator[TensorEdit]:
            found = importance or self._importances(
                base, ascended, descended, harmful, None if cache is None else Cache(cache), options
            )
            changed = [0, 0]
            for name in names:
                theta, *models = (s.read(name) for s in (base, ascended, descended))
                safety, over_safety = (m.float() - theta.float() for m in models)
                changed[0] += int(safety.count_nonzero())
                changed[1] += int(over_safety.count_nonzero())
                step, row = self.combine(
                    safety, over_safety, found[0][name], found[1][name], key=name
                )
                result = theta.float().add_(step).to(theta.dtype)
                check_finite(name, result)
                if report is not None:
                    lost = int(((step != 0) & (result == theta)).sum())
                    report.append(replace(row, rounded=lost))
                yield TensorEdit(name, result)
            self._check_changed(changed)

        return run()

    def combine(
        self,
        safety: torch.Tensor,
        over_safety: torch.Tensor,
        safety_importance: torch.Tensor,
        over_safety_importance: torch.Tensor,
        *,
        key: str,
    ) -> tuple[torch.Tensor, PatchingReport]:
        """α · K_SE ⊙ P_SE + β · K_OSM ⊙ P_OSM of one matrix, float32; a function of its arguments.

        `key`: the matrix's name, which with the seed decides the draws.
        """
        S = top_share(safety_importance, self.top_safety)
        O = top_share(over_safety_importance, self.top_over_safety)
        kept = [self._kept(S, O, f"{key}\0safety"), self._kept(O, S, f"{key}\0over-safety")]
        scales = [self.safety_scale, self.over_safety_scale]
        step = torch.zeros_like(safety, dtype=torch.float32)
        grown = 1.0 / attained(self.retain) if self.rescale and self.retain else 1.0
        for index, (side, patch) in enumerate(zip(_SIDES, (safety, over_safety), strict=True)):
            if self.patches not in ("both", side):
                kept[index] = torch.zeros_like(S)
            step += (patch.float() * kept[index]).mul_(scales[index] * grown)
        counts = [int(mask.sum()) for mask in (*kept, S & O, kept[0] | kept[1])]
        return step, PatchingReport(key, S.numel(), *counts)

    def _kept(self, own: torch.Tensor, other: torch.Tensor, key: str) -> torch.Tensor:
        """K: the set, and what the random retention of rate p makes of it."""
        chosen = own & other if self.merge == "intersection" else own & ~other
        if self.reading == "A":
            return chosen & _drawn(self.seed, key, self.retain, chosen)
        rest = ~own & ~other
        free = int(rest.sum())
        wanted = self.retain * own.numel() - int(chosen.sum())
        rate = min(1.0, max(0.0, wanted / free)) if free else 0.0
        return chosen | (rest & _drawn(self.seed, key, rate, rest))

    def importances(
        self,
        base: TensorSource,
        ascended: TensorSource,
        descended: TensorSource,
        harmful: Sequence[Pair],
        *,
        device: str = "auto",
        dtype: Precision = "float32",
        chat_template: Path | None = None,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """I_SE and I_OSM: they depend on the `snip_` knobs and the scope, and on no other."""
        from suture.inference import load

        names = scoped_names(base, self.scope)
        found: list[dict[str, torch.Tensor]] = []
        gradients: dict[str, torch.Tensor] = {}
        for model in (ascended, descended):
            place = base if self.snip_model == "base" else model
            if not gradients or place is model:
                lm = load(place, device=device, dtype=dtype, chat_template=chat_template)
                gradients = self._sensitivity(lm, harmful, names)
                del lm
            weights = ((name, self._weight(name, base, model, place)) for name in names)
            found.append({name: gradients[name] * weight.abs() for name, weight in weights})
        return found[0], found[1]

    def _importances(
        self,
        base: TensorSource,
        ascended: TensorSource,
        descended: TensorSource,
        harmful: Sequence[Pair],
        cache: Cache | None,
        options: dict[str, Any],
    ) -> tuple[Importance, Importance]:
        """The importances, from the cache where they are in it."""
        models = (base, ascended, descended)
        if cache is None:
            return self.importances(*models, harmful, **options)
        made_from = {
            **identity(base, list(harmful)[: self.snip_rows], options),
            "models": [model.fingerprint() for model in models[1:]],
            "settings": [self.snip_weight, self.snip_loss, self.snip_model, self.snip_tokens],
            "names": scoped_names(base, self.scope),
        }
        stored = cache.find("sensitivity", made_from)
        if stored is None:
            found = self.importances(*models, harmful, **options)
            named = {
                f"{side}/{name}": value
                for side, own in zip(_SIDES, found, strict=True)
                for name, value in own.items()
            }
            stored = cache.keep("sensitivity", made_from, iter(named.items()))
        return Under(stored, _SIDES[0]), Under(stored, _SIDES[1])

    def _weight(
        self, name: str, base: TensorSource, model: TensorSource, place: TensorSource
    ) -> torch.Tensor:
        """W of SNIP, float32: the weight where gradients are taken, or the patch's entry."""
        if self.snip_weight == "full":
            return place.read(name).float()
        return model.read(name).float() - base.read(name).float()

    def _sensitivity(
        self, lm: LoadedModel, harmful: Sequence[Pair], names: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        from suture.methods.snip import sensitivity

        rows = list(harmful)[: self.snip_rows]
        return sensitivity(lm, rows, names, text=self.snip_loss, max_tokens=self.snip_tokens)

    def _note_rates(self) -> None:
        """Say where a knob decides nothing."""
        most = max(self.top_safety, self.top_over_safety)
        if self.reading == "B" and self.merge == "difference" and self.retain < most:
            note(
                f"retain {self.retain:g} is below the share important to a patch ({most:g}): "
                "more than p is kept, nothing of it at random; raise retain, or lower the shares"
            )

    def _check_changed(self, changed: Sequence[int]) -> None:
        """E413 where a model that is merged has the base's matrices."""
        for name, part, count in zip(("ascended", "descended"), _SIDES, changed, strict=True):
            if not count and self.patches in ("both", part):
                raise SutureError(
                    "E413",
                    f"the {name} model has the base's matrices",
                    why="its patch is empty, so there is nothing to merge",
                    fix="train it with a higher rate or for more steps, in scope all or model",
                )

    def _whole(self, base: TensorSource, models: Sequence[TensorSource]) -> Iterator[Edit]:
        """The ablations without sets: the patches whole, or trimmed to p and elected by sign."""
        from suture.methods.task_arithmetic import TaskArithmetic
        from suture.methods.ties import TIES

        scales = [self.safety_scale, self.over_safety_scale]
        if self.patches != "both":
            place = _SIDES.index(self.patches)
            models, scales = [models[place]], [scales[place]]
        weight = tuple(scales)
        if self.merge == "task-arithmetic":
            return TaskArithmetic(weight=weight, scope=self.scope).derive(base=base, donors=models)
        ties = TIES(
            density=self.retain,
            trim_scope="tensor",
            weight=weight,
            normalize=False,
            scope=self.scope,
        )
        return ties.derive(base=base, donors=models)


def top_share(importance: torch.Tensor, share: float) -> torch.Tensor:
    """Boolean, shaped as `importance`: its ⌊share · n⌋ largest entries over the whole matrix.

    Of equal ones the first in row-major order. Entries of no importance are never in, so there may
    be fewer.
    """
    flat = importance.float().contiguous().flatten()
    total = flat.numel()
    [threshold] = select(
        [Selection(share_of(share, total), total)], lambda _names: [("", 0, [flat])]
    )
    kept = torch.from_numpy(threshold.keeps("", 0, flat))
    return (kept & (flat > 0)).view(importance.shape)


def _drawn(seed: int, key: str, rate: float, like: torch.Tensor) -> torch.Tensor:
    """Bernoulli(rate) per entry, keyed by (seed, key, place)."""
    return torch.from_numpy(bernoulli(seed, key, 0, like.numel(), rate)).view(like.shape)
