"""IRR: identify, remove, recalibrate (Wu, Lu, Zhao, Qin; Findings of ACL 2025, arXiv 2412.11041).

Re-aligns a fine-tuned chat model without training. With the aligned model θ_A, the fine-tuned θ_F
and an unaligned θ_U there are two directions per matrix,

    δ = θ_F − θ_A  (what fine-tuning did)      v = θ_A − θ_U  (where safety lies).

Identify: entries where δ fights v, among them those that matter most for the aligned model's
refusals (Fisher). Remove: they go back to θ_A. Recalibrate: the other entries of δ move so that
the layer's outputs stay what they should be (`recalibrate.py`). Layers are edited in order, each
behind the already edited ones. Embeddings, norms, biases and the head stay at θ_F.

The models are never whole in memory: both passes, for the importance at θ_A and for the inputs at
θ_F, go block by block through the checkpoints (`irr_passes.py`), the edits layer by layer
(`irr_edits.py`), within a layer matrix by matrix (`irr_matrix.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from suture.config import FrozenConfig
from suture.errors import SutureError
from suture.methods.cache import Cache
from suture.methods.common import MatrixScope, check_family, scoped_names
from suture.methods.identify import ZeroPolicy
from suture.methods.irr_edits import edits
from suture.methods.irr_matrix import MatrixReport, Triple
from suture.methods.irr_passes import importance_of, refusals_of
from suture.methods.ordering import in_order
from suture.methods.refusals import IsRefusal

if TYPE_CHECKING:
    import torch

    from suture.checkpoint import TensorEdit, TensorSource
    from suture.data import Pair
    from suture.inference import LoadedModel, Precision


class IRR(FrozenConfig):
    """Remove the fine-tuning entries that fight safety, and recalibrate the rest."""

    streamed: ClassVar[bool] = False  # it runs the models; edits are whole tensors
    edits_parts: ClassVar[bool] = True  # of a fused tensor only what is in scope changes

    removed: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the interfering entries removed, most important first",
    )
    block: int = Field(128, ge=1, description="input columns whose entries are ranked together")
    scope: MatrixScope = Field(
        "all", description="all: every weight matrix of the blocks; qv: query and value only"
    )
    solver: Literal["sequential", "joint", "balanced", "none"] = Field(
        "sequential",
        description="recalibrate on task inputs column by column (paper) or all at once (joint), "
        "on task and safety inputs (ours), or not",
    )
    variant: Literal["irr", "more", "no-sign", "random"] = Field(
        "irr",
        description="irr: the paper; more: IRR_more, agreeing entries too, least important first; "
        "no-sign: importance alone; random: neither; the last three remove that share of all",
    )
    inputs: Literal["exact", "frozen"] = Field(
        "exact",
        description="inputs of a layer behind the edited ones (paper), or those of the unedited "
        "tuned model",
    )
    balance: float = Field(
        0.1, ge=0, description="balanced: weight λ of the safety side; 0 = the paper's objective"
    )
    zero_policy: ZeroPolicy = Field(
        "code",
        description="zeros in the sign test; code: signs differ; paper: product <= 0; skip: never",
    )
    fisher_batch: int = Field(
        1, ge=1, description="samples per squared gradient; 1: the paper, 8: its published script"
    )
    damping: float = Field(0.01, ge=0, description="added to H, as a share of its mean diagonal")
    calibration_rows: int = Field(128, ge=1, description="first rows of the calibration data used")
    calibration_tokens: int = Field(512, ge=2, description="tokens a calibration row is cut to")
    mask_padding: bool = Field(
        True, description="leave padding out of H; off: pad to full length, as the published script"
    )
    safety_positions: Literal["all", "response"] = Field(
        "all", description="balanced: tokens of the refusals that enter the safety side"
    )
    safety_tokens: int = Field(1024, ge=2, description="tokens a refusal row is cut to")
    max_new_tokens: int = Field(512, ge=1, description="length limit of generated refusals")
    only_refusals: bool = Field(
        True, description="leave out safety rows whose generated reply is no refusal"
    )
    system: str | None = Field(None, description="system prompt of the safety rows")
    drop: float = Field(
        0.0, ge=0, lt=1, description="IRR_d: DARE rate on the delta beforehand (0.3 is usual)"
    )
    seed: int = Field(0, ge=0, description="of IRR_d's dropped entries; else nothing is random")

    @property
    def needs_importance(self) -> bool:
        """Whether entries are ranked at all: with none or all removed they need not be."""
        return 0 < self.removed < 1 and self.variant != "random"

    @property
    def needs_refusals(self) -> bool:
        """Whether the safety data are used: to rank, or for the safety side of `balanced`."""
        return self.needs_importance or (self.solver == "balanced" and self.balance > 0)

    def derive(
        self,
        *,
        aligned: TensorSource,
        tuned: TensorSource,
        unaligned: TensorSource,
        safety: Sequence[Pair] = (),
        calibration: Sequence[Pair] = (),
        device: str = "auto",
        dtype: Precision = "float32",
        chat_template: Path | None = None,
        importance: Mapping[str, torch.Tensor] | None = None,
        refusals: Sequence[Pair] | None = None,
        is_refusal: IsRefusal | None = None,
        report: list[MatrixReport] | None = None,
        cache: Path | None = None,
    ) -> Iterator[TensorEdit]:
        """Edits of `tuned`, in checkpoint order.

        `safety`: harmful prompts; a missing response is generated by the aligned model.
        `calibration`: rows of the fine-tuning task with responses. `importance` (from
        `aligned_importance`) and `refusals` (from `aligned_refusals`) make sweeps cheap. `report`
        receives one entry per matrix. `dtype` is that of the forward passes. `cache`: a folder that
        keeps refusals, importance and, with frozen inputs, second moments for other settings.

        Memory: one block, with the importance or the second moments of its matrices, and one batch
        of rows; hidden states and importance beyond 32 MiB each go to TMPDIR, or to `cache`.

        Raises SutureError E401 to E409, E437, and those of checkpoints, data and loading.
        """
        check_family(tuned, aligned, unaligned)
        names = scoped_names(tuned, self.scope, parts=True)
        if self.solver != "none" and not calibration:
            raise SutureError(
                "E408",
                f"solver '{self.solver}' needs calibration rows",
                fix="give --calibration FILE with rows of the fine-tuning task, or --solver none",
            )
        unranked = self.needs_importance and importance is None
        if self.needs_refusals and refusals is None and not safety:
            raise SutureError(
                "E408",
                "no safety rows",
                why="the importance of entries is measured on the aligned model's refusals",
                fix="give --safety FILE with harmful prompts",
            )
        if importance is not None and (absent := [n for n in names if n not in importance]):
            raise SutureError(
                "E409", f"the importance given lacks {len(absent)} matrices: {absent[0]}"
            )
        models = Triple(aligned, tuned, unaligned)
        options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "chat_template": chat_template,
        }
        shelf = None if cache is None else Cache(cache)

        def run() -> Iterator[TensorEdit]:
            F, rows = importance, refusals
            if self.needs_refusals and rows is None:
                rows = refusals_of(self, aligned, safety, is_refusal, options, shelf)
            if unranked:
                F = importance_of(self, aligned, names, rows or (), options, shelf)
            if not self.needs_importance:
                F = None
            results = edits(self, models, names, F, rows or (), calibration, options, report, shelf)
            yield from in_order(names, results, cache)

        return run()

    def aligned_refusals(
        self, lm: LoadedModel, safety: Sequence[Pair], *, is_refusal: IsRefusal | None = None
    ) -> list[Pair]:
        """The safety rows with the refusals of the aligned model `lm`; reusable in every sweep."""
        from suture.methods.refusals import safety_refusals

        return safety_refusals(
            lm,
            safety,
            max_new_tokens=self.max_new_tokens,
            system=self.system,
            only_refusals=self.only_refusals,
            is_refusal=is_refusal,
        )

    def aligned_importance(
        self, lm: LoadedModel, refusals: Sequence[Pair], names: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Fisher importance at the aligned model `lm`; reusable for every model tuned from it."""
        from suture.methods.fisher import fisher

        return fisher(
            lm,
            refusals,
            scoped_names(lm.source, self.scope, parts=True) if names is None else names,
            batch=self.fisher_batch,
            system=self.system,
            max_tokens=self.safety_tokens,
        )
