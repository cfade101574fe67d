"""SNIP: which weights a loss hangs on (Lee et al. 2019; per sample as Wei et al., ICML 2024, do).

    I = |W| ⊙ Σ_x |∂L(x) / ∂W|,    L(x) the mean token loss of one sample

Absolute values are taken sample by sample, so gradients that point in different directions do not
cancel. A matrix's gradient for one sample is Gᵀ X of its inputs X and the gradients G of its
outputs; both are caught in one batched pass, as in `fisher.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from suture.errors import SutureError
from suture.inference.batching import pad_left, plan_rows
from suture.inference.matrices import opened
from suture.lazy import torch
from suture.methods.fisher import encode_pairs, group_gradients, linear_modules
from suture.progress import track

if TYPE_CHECKING:
    from suture.data import Pair
    from suture.inference import LoadedModel

SnipText = Literal["question", "answer"]

_MAX_LOGITS = 2**25  # float32 values of a batch's logits: 128 MiB


def sensitivity(
    lm: LoadedModel,
    rows: Sequence[Pair],
    names: Sequence[str],
    *,
    text: SnipText = "question",
    system: str | None = None,
    max_tokens: int = 512,
) -> dict[str, torch.Tensor]:
    """Σ_x |∂L(x) / ∂W| of the matrices `names`: float32 on the CPU, shaped as they are stored.

    `text` question: L is the language-model loss of the prompt as the chat template writes it;
    answer: of the response given the prompt. Rows are cut to `max_tokens` or the context. Multiply
    by |W| for SNIP. Raises SutureError E405 for rows without the text, E406 for names that are no
    linear layer, E408 without rows.
    """
    if not rows:
        raise SutureError(
            "E408",
            "no harmful rows",
            why="the importance of entries is measured on them",
            fix="give --harmful FILE with the rows that the patches were trained on",
        )
    ids, scored = _texts(lm, rows, text, system, max_tokens)
    found = linear_modules(lm, names)
    total = {
        name: torch.zeros(matrix.weight.shape, dtype=torch.float32, device=lm.device)
        for name, matrix in found.items()
    }
    vocabulary = max(1, int(lm.model.config.vocab_size))
    tokens_at_once = max(1, min(4096, _MAX_LOGITS // vocabulary))
    plan = plan_rows([len(row) for row in ids], max_rows=64, max_tokens=tokens_at_once)
    for chosen in track(plan, "sensitivity"):
        width = max(len(ids[i]) for i in chosen)
        hooks = [_differentiable(lm)] + [
            matrix.module.register_forward_hook(
                group_gradients(total[name], matrix, width, "magnitude")
            )
            for name, matrix in found.items()
        ]
        try:
            with torch.enable_grad(), opened(matrix.module for matrix in found.values()):
                _loss(lm, ids, scored, chosen).backward()  # type: ignore[no-untyped-call]
        finally:
            for hook in hooks:
                hook.remove()
    return {name: found[name].turned(value).contiguous().cpu() for name, value in total.items()}


def _texts(
    lm: LoadedModel, rows: Sequence[Pair], text: SnipText, system: str | None, max_tokens: int
) -> tuple[list[list[int]], list[int]]:
    """Ids per row, and how many of the last tokens the loss is over."""
    from suture.data import encode

    if text == "answer":
        ids, starts = encode_pairs(lm, rows, system=system, max_tokens=max_tokens)
        return ids, [len(row) - start for row, start in zip(ids, starts, strict=True)]
    limit = lm.within(max_tokens)
    ids = [encode(lm.tokenizer, lm.template, row.prompt, system=system).ids[:limit] for row in rows]
    ids = [row for row in ids if len(row) > 1]
    if not ids:
        raise SutureError("E405", "no row has a prompt of two tokens or more")
    lm.check_rows(ids, "the longest row")
    return ids, [len(row) - 1 for row in ids]


def _loss(
    lm: LoadedModel, ids: list[list[int]], scored: list[int], rows: list[int]
) -> torch.Tensor:
    """Σ over `rows` of the mean −log p of their scored tokens."""
    batch = pad_left(ids, rows, pad=lm.pad, device=lm.device)
    lengths = torch.tensor([scored[i] for i in rows], device=lm.device)
    width = int(lengths.max())
    logits = lm.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits[:, :-1]
    targets = batch.ids[:, -width:]
    counts = torch.arange(width, device=lm.device) >= width - lengths.unsqueeze(1)
    nll = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    ).view_as(targets)
    means: torch.Tensor = (nll * counts).sum(1) / lengths
    return means.sum()


def _differentiable(lm: LoadedModel) -> Any:
    """Make the embedding's output the leaf of the graph; the weights stay frozen."""

    def hook(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_()

    return lm.model.get_input_embeddings().register_forward_hook(hook)
