"""A tiny model with image input, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from helpers import tiny_llama

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def tiny_llava(home: Path) -> Path:
    """A random LLaVA: CLIP's tower before a small Llama."""
    text = transformers.AutoTokenizer.from_pretrained(tiny_llama(home / "text", vocab=300))
    text.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14, projection_dim=16,
    )  # fmt: skip
    words = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=len(text),
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision.to_dict(), text_config=words.to_dict(),
        image_token_index=text.convert_tokens_to_ids("<image>"), image_seq_length=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():  # so that the picture decides the reply
        torch.nn.init.normal_(parameter, std=0.15)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(8)
        model.get_input_embeddings().weight.mul_(0.02)
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.mul_(8)
    model.save_pretrained(home / "llava")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = transformers.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=text, patch_size=14, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    processor.save_pretrained(home / "llava")
    return home / "llava"
