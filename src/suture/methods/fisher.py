"""Importance of weights for safety: the diagonal Fisher at the aligned model on its refusals.

    F_i = (1/N) Σ_x (∂ log p(y|x) / ∂θ_i)²,    y = the refusal of x      (IRR, arXiv 2412.11041)

A weight matrix's gradient for one sequence is Gᵀ X, with X its inputs and G the gradients of its
outputs. Both are caught by hooks in one batched pass, so per-sample gradients need no loop of
single backward passes, and no gradient of the size of the model is ever stored.

The pass goes block by block: forward, keeping what enters every block; then from the head back,
each block run again from its inputs. One block is in memory at a time, and its importance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from suture.errors import SutureError
from suture.inference.batching import plan_rows
from suture.inference.matrices import Matrix, matrices, opened, routed
from suture.lazy import torch
from suture.progress import track

if TYPE_CHECKING:
    from suture.data import Pair
    from suture.inference import BlockStream, LoadedModel
    from suture.inference.spool import Spool

_MAX_GRADIENTS = 2**24  # float32 values of per-group gradients held at once: 64 MiB
TOKENS_AT_ONCE = 1024  # of one batch; its activations in one block are held for the way back


def fisher(
    lm: LoadedModel,
    refusals: Sequence[Pair],
    names: Sequence[str],
    *,
    batch: int = 1,
    system: str | None = None,
    max_tokens: int = 1024,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> dict[str, torch.Tensor]:
    """Diagonal Fisher of the matrices `names` (tensor names of `lm.source`), float32 on the CPU.

    `batch` 1: squared gradient of each sample's log p(response | prompt), summed over its response
    tokens, averaged over samples: the paper's formula. `batch` b > 1: squared gradient of the mean
    token loss over b consecutive samples, averaged over batches: what the published script does
    with b = 8. Sequences are cut to `max_tokens` or the context. Only response tokens (the end
    token included) enter the loss. Raises SutureError E405 for rows without a response, E406 for
    names that are no linear layer.
    """
    found = dict(
        streamed_fisher(
            lm, refusals, names, batch=batch, system=system, max_tokens=max_tokens,
            tokens_at_once=tokens_at_once,
        )
    )  # fmt: skip
    return {name: found[name] for name in names}


def streamed_fisher(
    lm: LoadedModel,
    refusals: Sequence[Pair],
    names: Sequence[str],
    *,
    batch: int = 1,
    system: str | None = None,
    max_tokens: int = 1024,
    tokens_at_once: int = TOKENS_AT_ONCE,
    spool: Spool | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """`fisher` matrix by matrix, from the last block to the first: (name, importance).

    Memory: one block with its importance, and what `spool` holds of the hidden states.
    """
    from suture.inference import BlockStream
    from suture.inference.capture import decoder_layers

    ids, starts = encode_pairs(lm, refusals, system=system, max_tokens=max_tokens)
    inside = by_block(lm, names)
    if batch == 1:
        groups = plan_rows([len(s) for s in ids], max_rows=64, max_tokens=tokens_at_once)
    else:
        groups = [list(range(len(ids)))[i : i + batch] for i in range(0, len(ids), batch)]
    count = len(ids) if batch == 1 else len(groups)
    stack = decoder_layers(lm.model)[1]
    first = min(inside)  # blocks in front of it need no way back
    stream = BlockStream(lm, ids, groups=groups, spool=spool)
    for layer, block in enumerate(track(stack, "importance, forward")):
        with lm.hold(block):
            stream.advance(keep=layer >= first)
    with lm.reading(ids, head=True):
        for number in range(stream.batches):
            top = stream.entering(number).detach().requires_grad_()
            with torch.enable_grad():
                loss = _loss(stream, number, top, ids, starts, mean=batch > 1)
                (gradient,) = torch.autograd.grad(loss, top)
            stream.forget(number)
            stream.spool.put(("gradient", number), gradient)
    for layer in track(range(len(stack) - 1, first - 1, -1), "importance, backward"):
        stream.retreat()
        with lm.hold(stack[layer]):
            yield from _backward(stream, inside.get(layer, []), whole=batch > 1, count=count)


def _backward(
    stream: BlockStream, names: Sequence[str], *, whole: bool, count: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Once through the current block and back: importance of its matrices `names`."""
    lm = stream.lm
    found = linear_modules(lm, names)
    total = {
        name: torch.zeros(matrix.weight.shape, dtype=torch.float32, device=lm.device)
        for name, matrix in found.items()
    }
    for number in range(stream.batches):
        size = stream.batch(number).ids.shape
        tokens = size.numel() if whole else size[1]  # of one squared gradient
        hooks = [
            matrix.module.register_forward_hook(
                group_gradients(total[name], matrix, tokens, "square")
            )
            for name, matrix in found.items()
        ]
        entering = stream.entering(number).detach().requires_grad_()
        try:
            with torch.enable_grad(), opened(matrix.module for matrix in found.values()):
                out = stream.through(number, entering)
                (gradient,) = torch.autograd.grad(
                    out, entering, stream.spool.take(("gradient", number))
                )
        finally:
            for hook in hooks:
                hook.remove()
        del out
        stream.forget(number)
        stream.spool.put(("gradient", number), gradient)
    for name in list(total):
        yield name, found[name].turned(total.pop(name).div_(count)).contiguous().cpu()


def by_block(lm: LoadedModel, names: Sequence[str]) -> dict[int, list[str]]:
    """Number of a block -> those of the matrices `names` that lie in it; the rest is left out.

    Raises SutureError E406 for a name that is no linear layer.
    """
    from suture.inference.capture import decoder_layers

    linear_modules(lm, names)
    stack, blocks = decoder_layers(lm.model)
    found: dict[int, list[str]] = {}
    for name in names:
        slot = lm.places[name].slot
        if slot.startswith(f"{stack}."):
            number = int(slot[len(stack) + 1 :].partition(".")[0])
            if number < len(blocks):
                found.setdefault(number, []).append(name)
    return found


def linear_modules(lm: LoadedModel, names: Sequence[str]) -> dict[str, Matrix]:
    """Tensor name -> the linear layer whose weight it is (SutureError E406 if it is none)."""
    found = matrices(lm, names)
    strange = [name for name in names if name not in found]
    if strange:
        raise SutureError(
            "E406",
            f"{len(strange)} tensors are not the weight of a linear layer: {strange[0]}",
            where=str(lm.source.path),
            why="this method needs the inputs of each matrix it edits",
            fix="use --scope qv, or a method that works on any tensor (resta, task-arithmetic)",
        )
    return found


def encode_pairs(
    lm: LoadedModel, pairs: Sequence[Pair], *, system: str | None, max_tokens: int
) -> tuple[list[list[int]], list[int]]:
    """Ids of prompt, response and end token, and where each response starts.

    Rows are cut to `max_tokens`, or to the model's context where that is shorter; rows that the cut
    leaves without a response token are dropped. Raises SutureError E405 for a row without a
    response, or when no row is left.
    """
    from suture.data import encode

    limit = lm.within(max_tokens)
    ids, starts = [], []
    for pair in pairs:
        if pair.response is None:
            raise SutureError(
                "E405", "a row has no response", where=f"id {pair.id}", fix='add a "response"'
            )
        row = encode(lm.tokenizer, lm.template, pair.prompt, pair.response, system=system)
        if row.prompt_length < limit:
            ids.append(row.ids[:limit])
            starts.append(row.prompt_length)
    if not ids:
        raise SutureError(
            "E405",
            f"no row has a response within {limit} tokens",
            fix="give shorter rows, or more of them",
        )
    lm.check_rows(ids, "the longest row")
    return ids, starts


def _loss(
    stream: BlockStream,
    number: int,
    top: torch.Tensor,
    ids: list[list[int]],
    starts: list[int],
    *,
    mean: bool,
) -> torch.Tensor:
    """Negative log-likelihood of the responses in one batch, from what leaves the last block:
    summed, or the mean over their tokens."""
    batch = stream.batch(number)
    device = batch.ids.device
    lengths = torch.tensor([len(ids[i]) - starts[i] for i in batch.rows], device=device)
    width = int(lengths.max())
    logits = stream.logits(number, top, width + 1)[:, :-1]
    targets = batch.ids[:, -width:].clone()
    targets[torch.arange(width, device=device) < width - lengths.unsqueeze(1)] = -100
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
    )
    return loss / lengths.sum() if mean else loss


def group_gradients(
    total: torch.Tensor, matrix: Matrix, group: int, size: Literal["square", "magnitude"]
) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
    """A forward hook that adds Σ_groups (Gᵀ X)², or |Gᵀ X|, to `total` in the backward pass;
    `group` tokens in a row form one."""
    measured = torch.Tensor.square_ if size == "square" else torch.Tensor.abs_

    def forward(
        module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
        tokens = routed(module)

        def backward(gradient: torch.Tensor) -> None:
            G = gradient.reshape(len(x), -1)[:, matrix.outputs].float()
            if tokens is not None:
                owner = tokens // group
                for number in sorted(set(owner.tolist())):
                    own = owner == number
                    total.add_(measured(G[own].T @ x[own].float()))
                return
            X = x.reshape(-1, group, x.shape[-1]).float()
            G = G.reshape(len(X), group, -1)
            step = max(1, _MAX_GRADIENTS // total.numel())
            for at in range(0, len(X), step):
                per_group = G[at : at + step].transpose(1, 2) @ X[at : at + step]
                total.add_(measured(per_group).sum(0))

        output.register_hook(backward)  # type: ignore[no-untyped-call]

    return forward
