from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import write_shards, write_tokenizer
from suture.checkpoint import Checkpoint
from suture.inference import BlockStream, LoadedModel, load

SEQUENCES = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21, 22, 23, 24], [3, 4, 30]]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 4},
}


def family(path: Path, kind: str) -> Path:
    """A tiny random checkpoint of the architecture `kind`."""
    import transformers

    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        **KINDS[kind],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    path.mkdir()
    write_tokenizer(path)
    values = json.loads(config.to_json_string(use_diff=False))
    values = {k: v for k, v in values.items() if not k.startswith("_")}
    values["architectures"] = [type(model).__name__]
    (path / "config.json").write_text(json.dumps(values))
    state = {k: v.contiguous() * 3 for k, v in model.state_dict().items() if k != "lm_head.weight"}
    write_shards(path, state)
    return path


@pytest.fixture(scope="module", params=list(KINDS))
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = family(tmp_path_factory.mktemp(request.param) / "model", request.param)
    return load(Checkpoint.open(folder))


def linears(lm: LoadedModel, layer: int) -> dict[str, torch.nn.Module]:
    block = lm.model.model.layers[layer]
    return {n: m for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}


def whole_forward(lm: LoadedModel, layer: int) -> dict[str, torch.Tensor]:
    """Inputs of one layer's matrices from plain forwards of single sequences, float64 sums."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _m, x, name=name: seen.setdefault(name, []).append(x[0].detach()[0])
        )
        for name, module in linears(lm, layer).items()
    ]
    with torch.no_grad():
        for sequence in SEQUENCES:
            lm.model(torch.tensor([sequence]))
    for hook in hooks:
        hook.remove()
    return {name: moment(torch.cat(xs)) for name, xs in seen.items()}


def moment(x: torch.Tensor) -> torch.Tensor:
    return x.double().T @ x.double()


def streamed(stream: BlockStream, lm: LoadedModel, layer: int) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}

    def visit(names: tuple[str, ...], x: torch.Tensor) -> None:
        for name in names:
            total[name] = total.get(name, 0) + moment(x)

    stream.look(linears(lm, layer), visit)
    return total


@pytest.mark.parametrize("max_tokens", [4096, 12])
def test_block_by_block_sees_what_whole_forwards_see(lm: LoadedModel, max_tokens: int) -> None:
    stream = BlockStream(lm, SEQUENCES, max_tokens=max_tokens)
    for layer in range(3):
        expected, ours = whole_forward(lm, layer), streamed(stream, lm, layer)
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-4)
        stream.advance()


def test_later_layers_see_the_edited_prefix(lm: LoadedModel) -> None:
    stream = BlockStream(lm, SEQUENCES)
    before = streamed(stream, lm, 0)
    weight = lm.model.model.layers[0].self_attn.v_proj.weight
    original = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(-2.0)
        stream.advance()
        expected = whole_forward(lm, 1)
        for name, value in streamed(stream, lm, 1).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)
    finally:
        with torch.no_grad():
            weight.copy_(original)
    assert before  # the first layer was looked at before the edit


def test_q_k_and_v_share_one_input(lm: LoadedModel) -> None:
    groups: list[tuple[str, ...]] = []
    stream = BlockStream(lm, SEQUENCES)
    stream.look(linears(lm, 0), lambda names, x: groups.append(names))
    assert ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj") in groups
    assert ("mlp.gate_proj", "mlp.up_proj") in groups


def test_starts_leave_out_the_prompt(tiny: Callable[..., Path]) -> None:
    lm = load(Checkpoint.open(tiny()))
    counts: list[int] = []
    stream = BlockStream(lm, SEQUENCES, starts=[1, 4, 0, 2])
    modules = {"v": lm.model.model.layers[0].self_attn.v_proj}
    stream.look(modules, lambda _names, x: counts.append(len(x)))
    assert sum(counts) == (3 - 1) + (9 - 4) + 5 + (3 - 2)


def test_padding_counts_only_when_asked(tiny: Callable[..., Path]) -> None:
    lm = load(Checkpoint.open(tiny()))
    modules = {"v": lm.model.model.layers[0].self_attn.v_proj}

    def tokens(**options: Any) -> int:
        counts: list[int] = []
        BlockStream(lm, SEQUENCES, **options).look(modules, lambda _n, x: counts.append(len(x)))
        return sum(counts)

    assert tokens() == sum(map(len, SEQUENCES))
    assert tokens(width=16) == sum(map(len, SEQUENCES))
    assert tokens(width=16, count_padding=True) == 16 * len(SEQUENCES)


def test_the_model_is_whole_again_after_recording(lm: LoadedModel) -> None:
    ids = torch.tensor([SEQUENCES[1]])
    with torch.no_grad():
        before = lm.model(ids).logits
        BlockStream(lm, SEQUENCES)
        assert torch.equal(lm.model(ids).logits, before)
