"""Prompts become the same ids as transformers makes; a stranger's template can do no harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from suture.data import ChatTemplate, encode
from suture.errors import SutureError

TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hi\n there "}]
LLAMA_STYLE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
<|system|>{{ system | default('none') }} {{ messages | tojson }}<|end|>
{%- for message in messages %}
    {%- if message.role not in ('user', 'assistant') %}{{ raise_exception('odd role') }}{% endif %}
    {%- if loop.first %}{% continue %}{% endif %}
    {%- generation %}{{ message.content | trim }}{% endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
"""


def _folder(tmp_path: Path, **settings: object) -> Path:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


@pytest.mark.parametrize("text", [None, LLAMA_STYLE])
@pytest.mark.parametrize("turns", [TURNS, TURNS[1:]])
def test_rendering_equals_transformers(
    tiny: Callable[..., Path], text: str | None, turns: list[dict[str, str]]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny())
    if text is not None:
        tokenizer.chat_template = text
        tokenizer.bos_token = "<|system|>"
    ours = ChatTemplate(tokenizer.chat_template, tokens={"bos_token": "<|system|>"})
    for generate in (True, False):
        expected = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generate
        )
        assert ours.render(turns, generate) == expected


def test_encode_puts_reply_and_end_token_after_the_prompt(tiny: Callable[..., Path]) -> None:
    from transformers import AutoTokenizer

    path = tiny()
    tokenizer, template = AutoTokenizer.from_pretrained(path), ChatTemplate.from_folder(path)
    asked = encode(tokenizer, template, "How do I bake?")
    both = encode(tokenizer, template, "How do I bake?", "the answer")
    assert asked.response_ids == []
    assert both.ids[: both.prompt_length] == asked.ids
    assert both.response_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(both.response_ids[:-1]) == "the answer"
    told = encode(tokenizer, template, "How do I bake?", system="no")
    assert tokenizer.decode(told.ids).startswith("<|system|>no<|end|><|user|>How")


def test_where_the_template_comes_from(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path,
        chat_template=[{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}],
        bos_token={"content": "<s>"},
        eos_token="</s>",
    )
    assert ChatTemplate.from_folder(folder).text == "D"
    assert ChatTemplate.from_folder(folder).tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "chat_template.jinja").write_text("J")
    assert ChatTemplate.from_folder(folder).text == "J"
    mine = tmp_path / "mine.jinja"
    mine.write_text("M")
    assert ChatTemplate.from_folder(folder, mine).text == "M"


def test_no_template_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(SutureError, match="--chat-template") as caught:
        ChatTemplate.from_folder(_folder(tmp_path))
    assert caught.value.code == "E320"
    with pytest.raises(SutureError, match="E321"):
        ChatTemplate.from_folder(tmp_path, tmp_path / "absent.jinja")


def test_fingerprint_follows_text_and_tokens() -> None:
    one = ChatTemplate("a", tokens={"eos_token": "x", "bos_token": "y"})
    same = ChatTemplate("a", origin="b", tokens={"bos_token": "y", "eos_token": "x"})
    assert one.fingerprint == same.fingerprint
    others = [ChatTemplate("b", tokens=one.tokens), ChatTemplate("a")]
    assert len({t.fingerprint for t in (one, *others)}) == 3


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
        "{{ unclosed",
    ],
)
def test_hostile_or_broken_templates_are_refused(text: str) -> None:
    with pytest.raises(SutureError, match="E321"):
        ChatTemplate(text).render(TURNS)


def test_the_date_never_moves() -> None:
    assert ChatTemplate("{{ strftime_now('%d %b %Y') }}").render(TURNS) == "26 Jul 2024"
