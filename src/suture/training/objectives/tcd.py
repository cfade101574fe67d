"""TCD-style distillation: a vanilla teacher's relations between positions, for a mixture.

After arXiv 2403.01994 ("transfer capability distillation"), whose loss equations are not public:
what is matched, where, and with which weight is **inferred** throughout, so results are to be
called TCD-style. U the states of one sequence, N positions x d, of which padding does not count:

    R(U) = Û Ûᵀ,  Û = U / ‖U‖ by rows                                    cosine Gram, N x N
    D(U, V) = mean over i ≠ j of (R(U)_ij − R(V)_ij)²
    L = L_LM + router losses + w_t L_trunk + w_r L_inner + w_a L_attn

trunk: D of the states after each residual add; inner: D of what each branch adds; attn: per head
cos(q_i, k_j), squared difference. Each is a mean over layers. Gram matching needs no projection,
takes other widths, and fixes geometry up to rotation. The teacher is frozen, without dropout, and
reads the same masked input.

Controls for the same place: `logits` (KL of the predictions) and `hidden` (squared difference of
states). A random teacher, the third control, is a checkpoint like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.lazy import torch

if TYPE_CHECKING:
    from suture.models import SutureConfig
    from suture.models.outputs import SutureOutput

SITES = {"trunk": ("a", "m"), "inner": ("branch_a", "branch_m"), "attention": ("q", "k")}


class TCD(FrozenConfig):
    """What of a teacher a student is to match, and how strongly."""

    match: Literal["relations", "logits", "hidden"] = Field(
        "relations", description="TCD-style relations, or a control"
    )
    trunk: float = Field(1.0, ge=0, description="w_t, states after each residual add")
    inner: float = Field(1.0, ge=0, description="w_r, what each branch adds")
    attention: float = Field(1.0, ge=0, description="w_a, cosines of queries and keys per head")
    weight: float = Field(
        1.0, ge=0, description="of a control: KL of predictions, or hidden states"
    )
    positions: int | None = Field(
        None, ge=2, description="relations between this many positions, evenly spaced; default all"
    )

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        relations = self.match == "relations"
        if relations and not (self.trunk or self.inner or self.attention):
            raise ValueError("trunk, inner and attention are all 0: nothing is matched")
        idle = ("weight",) if relations else (*SITES, "positions")
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no part in match: {self.match}; leave it out")
        return self

    @property
    def capture(self) -> frozenset[str]:
        """Kinds of states that teacher and student must give (`suture.models.SITES`)."""
        if self.match == "logits":
            return frozenset()
        if self.match == "hidden":
            return frozenset(SITES["trunk"])
        return frozenset(
            kind for site, kinds in SITES.items() if getattr(self, site) for kind in kinds
        )

    def check(self, student: SutureConfig, teacher: SutureConfig, where: str = "teacher") -> None:
        """Refuse a pair that cannot be matched, before the first step. `where`: the teacher's
        folder.

        Errors: E977 another vocabulary, E978 another depth, E979 another number of heads (relations
        of attention), another width (`hidden`) or another kind of model.
        """
        one, other = student.architecture, teacher.architecture
        differ = [
            ("E979", "kinds of model", student.kind, teacher.kind, "use a teacher of one kind"),
            ("E977", "vocabularies", one.vocab_size, other.vocab_size,
             "train both with one tokenizer"),
            ("E978", "depths", one.num_hidden_layers, other.num_hidden_layers,
             "use models of as many layers: layer l is matched with layer l"),
        ]  # fmt: skip
        if self.match == "relations" and self.attention:
            differ.append(
                ("E979", "numbers of heads", one.num_attention_heads, other.num_attention_heads,
                 "set attention: 0, or use models of as many heads")
            )  # fmt: skip
        if self.match == "hidden":
            differ.append(
                ("E979", "hidden sizes", one.hidden_size, other.hidden_size,
                 "match relations, which take other widths")
            )  # fmt: skip
        for code, what, mine, theirs, fix in differ:
            if mine != theirs:
                raise SutureError(
                    code,
                    f"student and teacher have other {what}: {mine} and {theirs}",
                    where=where,
                    fix=fix,
                )

    def losses(
        self,
        student: SutureOutput,
        teacher: SutureOutput,
        labels: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Each term unweighted, by name; gradients reach the student alone.

        `keep`: batch x N, False at padding. `labels`: where predictions are compared (`logits`),
        by default wherever `keep` is.
        """
        if self.match == "logits":
            return {"logits": _predictions(student, teacher, labels, keep)}
        mine, theirs = student.sites or {}, teacher.sites or {}
        if self.match == "hidden":
            pairs = _pairs(mine, theirs, SITES["trunk"])
            return {"hidden": _mean(_pointwise(u, v, keep) for u, v in pairs)}
        step = _stride(self.positions, mine)
        keep = None if keep is None else keep[:, ::step]
        found = {}
        for site in ("trunk", "inner"):
            if getattr(self, site):
                pairs = _pairs(mine, theirs, SITES[site])
                found[site] = _mean(distance(u[:, ::step], v[:, ::step], keep) for u, v in pairs)
        if self.attention:
            both = zip(
                _of(mine, "q"), _of(mine, "k"), _of(theirs, "q"), _of(theirs, "k"), strict=True
            )
            found["attention"] = _mean(
                _between_cosines(
                    cosines(q[:, :, ::step], k[:, :, ::step]),
                    cosines(tq[:, :, ::step], tk[:, :, ::step]),
                    keep,
                )
                for q, k, tq, tk in both
            )
        return found

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor | float:
        """The terms by their weights: what is added to the loss of language modelling."""
        return sum(
            (getattr(self, name, self.weight) * value for name, value in losses.items()), 0.0
        )


# --- relations ---


def cosines(U: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    """... N x d and ... M x d to the cosines ... N x M, in float32."""
    unit = torch.nn.functional.normalize
    with torch.autocast(U.device.type, enabled=False):  # it would make the product bfloat16
        return unit(U.float(), dim=-1) @ unit(V.float(), dim=-1).transpose(-1, -2)


def distance(U: torch.Tensor, V: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    """D(U, V), mean over sequences; U: batch x N x d, V: batch x N x any width."""
    n = U.shape[1]
    counted = ~torch.eye(n, dtype=torch.bool, device=U.device).expand(len(U), n, n)
    if keep is not None:
        counted = counted & keep[:, :, None] & keep[:, None, :]
    return _masked_mean((cosines(U, U) - cosines(V, V).detach()).square(), counted)


def _between_cosines(
    mine: torch.Tensor, theirs: torch.Tensor, keep: torch.Tensor | None
) -> torch.Tensor:
    """Mean squared difference over sequences, heads and pairs of positions."""
    counted = torch.ones_like(mine, dtype=torch.bool)
    if keep is not None:
        counted = counted & (keep[:, None, :, None] & keep[:, None, None, :])
    return _masked_mean((mine - theirs.detach()).square(), counted)


def _masked_mean(value: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean over what counts in each sequence, then over sequences."""
    dims = tuple(range(1, value.dim()))
    sums = (value * counted).sum(dims)
    return (sums / counted.sum(dims).clamp(min=1)).mean()


# --- controls ---


def _pointwise(u: torch.Tensor, v: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    squares = (u.float() - v.float().detach()).square().mean(-1)
    return squares.mean() if keep is None else squares[keep].mean()


def _predictions(
    student: SutureOutput,
    teacher: SutureOutput,
    labels: torch.Tensor | None,
    keep: torch.Tensor | None,
) -> torch.Tensor:
    """Mean KL(teacher ‖ student) where something is predicted."""
    assert student.logits is not None
    assert teacher.logits is not None
    mine, theirs = student.logits, teacher.logits.detach()
    where = keep if labels is None else labels != -100
    if where is not None:
        mine, theirs = mine[where], theirs[where]
    p = theirs.float().log_softmax(-1)
    q = mine.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


# --- states ---


def _of(sites: dict[str, Any], kind: str) -> Sequence[torch.Tensor]:
    """One state per layer; m_0, the embedding, is no layer's."""
    states = sites[kind]
    return states[1:] if kind == "m" else states  # type: ignore[no-any-return]


def _pairs(
    mine: dict[str, Any], theirs: dict[str, Any], kinds: Sequence[str]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Layer by layer; a branch that one of the two does not have is not matched."""
    return [
        pair
        for kind in kinds
        if kind in mine and kind in theirs
        for pair in zip(_of(mine, kind), _of(theirs, kind), strict=True)
    ]


def _stride(positions: int | None, sites: dict[str, Any]) -> int:
    """How far apart positions are, so that at most `positions` of them are left."""
    n = int(next(iter(sites.values()))[0].shape[-2])
    return 1 if positions is None else max(-(-n // positions), 1)


def _mean(values: Any) -> torch.Tensor:
    return torch.stack(list(values)).mean()
