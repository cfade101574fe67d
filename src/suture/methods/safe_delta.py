"""Safe Delta (Lu et al., ICML 2025, arXiv 2505.12038): as much of a fine-tuning as safety affords.

Start at the aligned θ_A and add entries of δ = θ_F − θ_A within a budget of harm. With H the second
moment of a layer's inputs on *safe* texts (the aligned model's refusals) and RᵀR = H⁻¹, R upper:

    rule      code (as released)                          paper (*secondary*)
    harm      δ² p_j,  p_j = 1 / R_jj²                    δ² p_j,  p_j = 1 / (2 [H⁻¹]_jj)
    order     columns by rising p_j, rows in theirs: both have one utility, δ², per harm, 1 / p_j
    until     Σ harm ≤ mean(p) · s/2 · rows/4096          Σ harm ≤ mean(p) · s · rows/4096
    within    every `block` columns; the `never` share    the matrix; nothing is kept back
              of highest p is not taken

What is taken moves to θ_F exactly; the other entries to the right are moved so that the layer's
outputs on safe texts change least (optimal brain surgeon): `code` compensates `group` columns at a
time and sees δ from where compensation has left the weights, `paper` column by column.

H comes from θ_A's own activations, in every layer: nothing is propagated through edited layers.
Tensors outside the blocks' matrices go back to θ_A (`rest`). IRR compensates the *removed* delta on
*task* texts; here it is the *kept* delta, on safe ones.

Inferred: the paper's budget in a form free of scale (the code's, with the paper's price), the order
of rows within a column (the code sorts unstably), the aligned weights of an expert that no safe
text reaches. The released runner passes blocks of 2048 columns, its function's default is 1024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from suture.checkpoint.families import is_transposed
from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.lazy import torch
from suture.methods.common import MatrixScope, check_family, check_finite, edits, scoped_names
from suture.methods.ordering import in_order as _in_order
from suture.methods.recalibrate import Problem, SecondMoment, factor, sweep
from suture.methods.refusals import IsRefusal, safety_refusals
from suture.progress import note, track

if TYPE_CHECKING:
    from suture.checkpoint import Edit, TensorEdit, TensorSource
    from suture.data import Pair
    from suture.inference import LoadedModel, Precision

_ROWS = 4096.0  # rows of the matrices that the published budget was tuned on


@dataclass(frozen=True)
class TakenReport:
    """What happened to one matrix: entries taken, the harm they do and its limit, damping."""

    name: str
    entries: int
    taken: int
    harm: float
    limit: float
    damping: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class SafeDelta(FrozenConfig):
    """Take entries of the fine-tuning within a budget of harm, and compensate for them."""

    streamed: ClassVar[bool] = False  # edits are whole matrices

    rule: Literal["code", "paper"] = Field("code", description="price and order: see above")
    budget: float = Field(0.1, ge=0, description="s: how much harm; 0 is the aligned model")
    block: int = Field(1024, ge=1, description="code: columns that share a budget")
    group: int = Field(4, ge=1, description="code: columns compensated together")
    never: float = Field(0.15, ge=0, lt=1, description="code: share of highest price not taken")
    damping: float = Field(0.01, ge=0, description="added to H, as a share of its mean diagonal")
    safety_rows: int = Field(128, ge=1, description="first safety rows used")
    safety_tokens: int = Field(512, ge=2, description="tokens a safety row is cut to")
    max_new_tokens: int = Field(512, ge=1, description="length limit of generated refusals")
    only_refusals: bool = Field(
        True, description="leave out safety rows whose generated reply is no refusal"
    )
    system: str | None = Field(None, description="system prompt of the safety rows")
    rest: Literal["aligned", "tuned"] = Field(
        "aligned", description="what tensors other than these matrices become"
    )
    scope: MatrixScope = Field(
        "all", description="all: every weight matrix of the blocks; qv: query and value only"
    )

    @property
    def needs_refusals(self) -> bool:
        """The safety rows are always used."""
        return True

    def derive(
        self,
        *,
        aligned: TensorSource,
        tuned: TensorSource,
        safety: Sequence[Pair] = (),
        device: str = "auto",
        dtype: Precision = "float32",
        chat_template: Path | None = None,
        refusals: Sequence[Pair] | None = None,
        is_refusal: IsRefusal | None = None,
        report: list[TakenReport] | None = None,
    ) -> Iterator[Edit]:
        """Edits of `tuned`, in checkpoint order.

        `safety`: harmful prompts; a missing response is generated by the aligned model. `refusals`:
        rows with responses, instead. `report` receives one entry per matrix: entries taken, harm
        and its limit. Arithmetic on weights is float64, rounded once.

        Memory: the aligned model, hidden states of the safety rows, one matrix in float64.
        Raises SutureError E404 to E408, and those of checkpoints, data and loading.
        """
        check_family(tuned, aligned)
        names = scoped_names(tuned, self.scope, matrices=True)
        if refusals is None and not safety:
            raise SutureError(
                "E408",
                "no safety rows",
                why="harm is measured on the aligned model's refusals",
                fix="give --safety FILE with harmful prompts",
            )

        def run() -> Iterator[Edit]:
            from suture.inference import load

            lm = load(aligned, device=device, dtype=dtype, chat_template=chat_template)
            rows = refusals
            if rows is None:
                rows = safety_refusals(
                    lm,
                    list(safety)[: self.safety_rows],
                    max_new_tokens=self.max_new_tokens,
                    system=self.system,
                    only_refusals=self.only_refusals,
                    is_refusal=is_refusal,
                )
            made = _in_order(names, self._matrices(lm, names, rows, tuned, report))
            here = set(names)
            for name in scoped_names(tuned, "model"):
                if name in here:
                    yield next(made)
                elif self.rest == "aligned":
                    yield from edits(tuned, [name], [aligned], lambda _key, _start, tiles: tiles[0])

        return run()

    def _matrices(
        self,
        lm: LoadedModel,
        names: Sequence[str],
        refusals: Sequence[Pair],
        tuned: TensorSource,
        report: list[TakenReport] | None,
    ) -> Iterator[TensorEdit]:
        """Layer by layer; `lm` is the aligned model and stays as it is."""
        from suture.inference import BlockStream
        from suture.inference.capture import decoder_layers
        from suture.methods.fisher import encode_pairs, linear_modules

        exact = torch.device("cpu") if lm.device.type == "mps" else lm.device  # mps has no float64
        found = linear_modules(lm, names)
        rows = list(refusals)[: self.safety_rows]
        ids, _ = encode_pairs(lm, rows, system=self.system, max_tokens=self.safety_tokens)
        stream = BlockStream(lm, ids)
        for block in track(decoder_layers(lm.model)[1], "Safe Delta"):
            inside = {id(module) for module in block.modules()}
            here = {name: matrix for name, matrix in found.items() if id(matrix.home) in inside}
            moment = SecondMoment(exact)
            stream.look({name: matrix.module for name, matrix in here.items()}, moment.add)
            H = moment.result(stream.sequences)
            for name in here:
                yield self._edit(name, H, lm.source, tuned, exact, report)
            stream.advance()

    def _edit(
        self,
        name: str,
        moments: Mapping[str, torch.Tensor],
        aligned: TensorSource,
        tuned: TensorSource,
        device: torch.device,
        report: list[TakenReport] | None,
    ) -> TensorEdit:
        from suture.checkpoint import TensorEdit

        own, target = aligned.read(name), tuned.read(name)
        if name not in moments:
            note(f"{name}: no safe text reaches this matrix; it stays aligned")
            return TensorEdit(name, own.to(target.dtype))
        turned = is_transposed(name, tuned.config)
        start, end = ((x.T if turned else x).to(device).double() for x in (own, target))
        moved, row = self.take(end - start, moments[name], name=name)
        value = start + moved
        result = (value.T if turned else value).to("cpu", target.dtype).contiguous()
        check_finite(name, result)
        if report is not None:
            report.append(row)
        return TensorEdit(name, result)

    def take(
        self, delta: torch.Tensor, H: torch.Tensor, *, name: str = ""
    ) -> tuple[torch.Tensor, TakenReport]:
        """What of `delta` (rows x d, float64) to add to the aligned weights, compensation included.

        `H`: d x d. Columns that no safe text uses have H_jj = 1 before damping, as in the released
        code; in `paper` they have the damping alone.
        """
        dead = H.diagonal() == 0
        H = H + torch.diag(dead.to(H.dtype)) if self.rule == "code" else H
        mean, one = H.diagonal().mean(), torch.eye(len(H), dtype=H.dtype, device=H.device)
        R, damping = factor(lambda share: H + share * mean * one, self.damping, name)
        budget = self.budget * len(delta) / _ROWS
        taken, harm, limit = 0, 0.0, 0.0

        def spend(values: torch.Tensor, price: torch.Tensor, most: float) -> torch.Tensor:
            nonlocal taken, harm, limit
            cost = values.square() * price
            mask = affordable(cost, price, most, self.never if self.rule == "code" else 0.0)
            taken, harm, limit = (
                taken + int(mask.sum()),
                harm + float(cost[mask].sum()),
                limit + most,
            )
            return mask

        # Moving an entry to θ_F is removing it from θ − θ_F, which starts at −δ.
        problem = Problem(-delta, None, R, dead, damping)
        if self.rule == "code":
            price = R.diagonal().pow(-2)

            def choose(values: torch.Tensor, columns: slice) -> torch.Tensor:
                here = price[columns]
                return spend(values, here, float(here.mean()) * budget / 2)

            left = sweep(problem, choose, block=self.block, group=self.group)
        else:
            price = 0.5 / R.square().sum(0)  # diag(RᵀR) = diag(H⁻¹)
            mask = spend(delta, price, float(price.mean()) * budget)
            left = sweep(problem, lambda _values, columns: mask[:, columns], block=128)
        return left + delta, TakenReport(name, delta.numel(), taken, harm, limit, damping)


def affordable(cost: torch.Tensor, price: torch.Tensor, limit: float, never: float) -> torch.Tensor:
    """Mask of the entries taken: columns by rising `price`, while the sum of `cost` is at most
    `limit`, without the share `never` of all entries that has the highest price."""
    order = torch.sort(price, stable=True).indices
    ranked = cost.T[order].flatten()
    taken = ranked.cumsum(0) <= limit
    taken[len(taken) - int(never * len(taken)) :] = False
    mask = torch.empty_like(cost.T, dtype=torch.bool)
    mask[order] = taken.view(len(price), -1)
    return mask.T
