"""Features: what a model's states have in common with another's, layer by layer.

Of a student and its teacher (TCD, arXiv 2403.01994, section 4 of its specification; which features
the paper looks at is not public, so these are inferred), on the same input, at the same sites of
the residual stream: m_0 behind the embedding, a_l behind layer l's attention, m_l behind its FFN.

    cka                    linear CKA (Kornblith et al., ICML 2019, arXiv 1905.00414): 1 up to
                           rotation and scale; with few positions never near 0
    relation_distance      D of TCD: mean squared difference of the cosines between positions
    effective_rank         exp of the entropy of the singular values' shares, 1 to the width (Roy &
                           Vetterli, EUSIPCO 2007), and of the teacher: effective_rank_teacher
    load_entropy           of a mixture, in nats: how evenly its experts are used; ln E: all
                           the same, 0: one alone
    router_entropy         of a mixture, in nats: how undecided its router is for a token

Rows are sites, and the mixtures of a model with experts; a metric is the mean over the layers, m_0
left out. `--data` and its options are those of `base-capability`, and:

    teacher  the model to compare with: one of our models with the same tokenizer and depth
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError
from suture.lazy import torch
from suture.ledger import Better, Row
from suture.progress import track
from suture.suites.passages import Domains, OfPassages, Passage, masking
from suture.training.objectives.tcd import distance

if TYPE_CHECKING:
    from suture.inference.reading import Reader
    from suture.models.outputs import SutureOutput

MEANINGS: Mapping[str, tuple[Better, str]] = {
    "cka": ("higher", "linear CKA with the teacher's states"),
    "relation_distance": ("lower", "squared difference of the cosines between positions"),
    "effective_rank": ("higher", "exp of the entropy of the singular values' shares"),
    "effective_rank_teacher": ("higher", "the same of the teacher"),
    "load_entropy": ("higher", "entropy of the experts' shares of the tokens, in nats"),
    "router_entropy": ("lower", "entropy of the router's distribution per token, in nats"),
}


class Asked(Domains):
    """Which text is read, and whose states the model's are compared with."""

    teacher: Path | None = None


class Features(OfPassages[Asked]):
    """Items: `Passage`, as of base-capability."""

    name = "features"
    metrics: Mapping[str, Better] = {name: better for name, (better, _) in MEANINGS.items()}
    options = Asked
    what = "features"
    why = "they are read off the states inside two models"
    usage = "--data DOMAINS.yaml --set teacher=DIR"

    def read(self, files: Sequence[Path], limit: int | None) -> list[Passage]:
        if self.asked.teacher is None:
            raise SutureError(
                "E562",
                "features need a second model to compare with",
                where="options of the suite features",
                fix="add --set teacher=DIR, a checkpoint of the same depth and tokenizer",
            )
        return super().read(files, limit)

    def rows(self, lm: Any, items: list[Passage]) -> list[Row]:
        from suture.training.pretrain_loss import Distillation

        # widths and heads may differ: states are compared by what lies near what
        lesson = Distillation(teacher=self.asked.teacher, attention=0)
        teacher = lesson.open_teacher(lm.model, lm.source.path)
        return rows_of(lm, teacher, [item.prompt for item in items])

    def derived(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """Means over the layers; a model without experts has no entropies."""
        found = {}
        for name, (better, definition) in MEANINGS.items():
            values = [row.scores[name] for row in rows if name in row.scores and row.item != "m0"]
            if values:
                found[name] = {
                    "value": sum(values) / len(values),
                    "definition": f"{definition}, mean over the layers",
                    "direction": better,
                    "n": len(values),
                }
        return found


def rows_of(reader: Reader, teacher: Any, texts: Sequence[str]) -> list[Row]:
    """A row per site and per mixture, over all of the texts' positions; sums alone are held."""
    from suture.inference.text_loss import batches, inputs, windows

    sites: dict[str, Site] = {}
    mixtures: list[Mixture] = []
    for batch in track(batches(windows(reader, texts, masking(reader)), reader), "features"):
        keep = torch.zeros(len(batch), max(len(w.ids) for w in batch), dtype=torch.bool)
        for row, window in enumerate(batch):
            keep[row, : len(window.ids)] = True
        given, keep = inputs(reader, batch), keep.to(reader.device)
        with torch.no_grad():
            mine = reader.model(**given, capture={"a", "m"})
            theirs = teacher(**given, capture={"a", "m"})
        for name, (u, v) in paired(mine, theirs).items():
            sites.setdefault(name, Site()).add(u, v, keep)
        for at, one in enumerate(mine.routing or ()):
            if at == len(mixtures):
                mixtures.append(Mixture())
            mixtures[at].add(one.load, one.entropy, int(keep.sum()))
    found = [Row(name, site.scores()) for name, site in sites.items()]
    return found + [Row(f"mixture{at}", one.scores()) for at, one in enumerate(mixtures, 1)]


def paired(
    student: SutureOutput, teacher: SutureOutput
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Both models' states (batch x N x d) at m0, a1, m1, a2, ..."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for kind, first in (("m", 0), ("a", 1)):
        both = zip((student.sites or {})[kind], (teacher.sites or {})[kind], strict=True)
        found |= {f"{kind}{layer}": pair for layer, pair in enumerate(both, first)}
    return dict(sorted(found.items(), key=lambda one: (int(one[0][1:]), one[0][0])))


@dataclass
class Moments:
    """Sums over positions of two sets of states, n x d and n x e, in float64."""

    n: int = 0
    u: Any = 0.0
    v: Any = 0.0
    uu: Any = 0.0
    vv: Any = 0.0
    vu: Any = 0.0

    def add(self, u: torch.Tensor, v: torch.Tensor) -> None:
        """Take n more positions in."""
        u, v = u.double(), v.double()
        self.n += len(u)
        self.u, self.v = self.u + u.sum(0), self.v + v.sum(0)
        self.uu, self.vv, self.vu = self.uu + u.T @ u, self.vv + v.T @ v, self.vu + v.T @ u

    def centred(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """UᵀU, VᵀV and VᵀU with the columns' means taken away."""
        return (
            self.uu - torch.outer(self.u, self.u) / self.n,
            self.vv - torch.outer(self.v, self.v) / self.n,
            self.vu - torch.outer(self.v, self.u) / self.n,
        )

    def cka(self) -> float:
        """‖VᵀU‖² / (‖UᵀU‖ ‖VᵀV‖); 0 where one side does not vary."""
        uu, vv, vu = self.centred()
        if _flat(uu, self.uu) or _flat(vv, self.vv):
            return 0.0
        return float((vu.norm() ** 2 / (uu.norm() * vv.norm())).item())

    def effective_ranks(self) -> tuple[float, float]:
        """Of U and of V; 0 for states that do not vary."""
        uu, vv, _ = self.centred()
        return _effective_rank(uu, self.uu), _effective_rank(vv, self.vv)


@dataclass
class Site:
    """What has been read at one place of the residual stream."""

    moments: Moments = field(default_factory=Moments)
    apart: float = 0.0
    sequences: int = 0

    def add(self, u: torch.Tensor, v: torch.Tensor, keep: torch.Tensor) -> None:
        """Sequences batch x N x d and batch x N x e, `keep` False at padding."""
        self.moments.add(u[keep], v[keep])
        self.apart += float(distance(u, v, keep).item()) * len(u)
        self.sequences += len(u)

    def scores(self) -> dict[str, float]:
        mine, theirs = self.moments.effective_ranks()
        return {
            "cka": self.moments.cka(),
            "relation_distance": self.apart / self.sequences,
            "effective_rank": mine,
            "effective_rank_teacher": theirs,
        }


@dataclass
class Mixture:
    """How one mixture has distributed its tokens."""

    load: Any = 0.0
    entropy: float = 0.0
    tokens: int = 0

    def add(self, load: torch.Tensor, entropy: torch.Tensor, tokens: int) -> None:
        """A batch's share per expert (E) and mean entropy, over `tokens`."""
        self.load = self.load + load.double().cpu() * tokens
        self.entropy += float(entropy.item()) * tokens
        self.tokens += tokens

    def scores(self) -> dict[str, float]:
        from suture.models.outputs import load_entropy

        return {
            "load_entropy": float(load_entropy(self.load / self.tokens).item()),
            "router_entropy": self.entropy / self.tokens,
        }


def _effective_rank(centred: torch.Tensor, whole: torch.Tensor) -> float:
    """From the columns' centred products: their eigenvalues are the squared singular values."""
    if _flat(centred, whole):
        return 0.0
    squares = torch.linalg.eigvalsh(centred)
    # what rounding leaves of a direction that is not there would count by its root
    values = squares.where(squares > squares[-1] * 1e-12, 0.0).sqrt()
    return float(torch.special.entr(values / values.sum()).sum().exp().item())


def _flat(centred: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether states do not vary, but for rounding."""
    return bool(centred.trace() <= 1e-12 * whole.trace())


SUITE = Features()
