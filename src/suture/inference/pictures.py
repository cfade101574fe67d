"""Models that take pictures beside the text: LLaVA, Qwen-VL, Gemma 3 and whatever transformers has.

Weights come from the checked source like those of every model, patches included, and never from a
folder's own code; a tensor too many or too few is refused. The folder's processor says how a
picture becomes tokens (its Pillow form: torchvision is not needed). Pictures are read one
conversation at a time: their sizes differ, and padding pictures would change what is seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.errors import SutureError, some
from suture.inference.generation import Reply
from suture.inference.loading import Precision, model_config, placed, stops_of
from suture.inference.room import check_room
from suture.lazy import torch, transformers
from suture.progress import track

if TYPE_CHECKING:
    from suture.checkpoint import TensorSource

Turns = Sequence[Mapping[str, Any]]  # {"role", "content"} each, and "image", a path, if any


@dataclass(frozen=True)
class LookingModel:
    """A model that sees, in evaluation mode, with the processor of its folder."""

    model: Any
    processor: Any
    source: TensorSource
    device: torch.device
    dtype: torch.dtype
    sees: bool = True

    @property
    def fingerprint(self) -> str:
        """The content fingerprint of the source."""
        return self.source.fingerprint()

    def converse(self, conversations: Sequence[Turns], *, max_new_tokens: int) -> list[Reply]:
        """`look`, as everything that can be talked to offers it."""
        return look(self, conversations, max_new_tokens=max_new_tokens)

    @property
    def template(self) -> str:
        """SHA-256 of the chat template that the pictures stand in."""
        return hashlib.sha256(str(self.processor.chat_template).encode()).hexdigest()


def sees(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint with this config.json takes pictures; from the file alone."""
    return isinstance(config.get("vision_config"), dict) and "text_config" in config


def load_looking(
    source: TensorSource, *, device: str = "auto", dtype: Precision = "auto"
) -> LookingModel:
    """The model of `source` with its picture input.

    Raises SutureError E502 tensors that are missing or have no place, E505 no processor, E516 a
    model without eyes, E514 Pillow is not installed.
    """
    _pillow()
    config = model_config(source)
    # The mapping of configuration to class is not public; the public way would read the folder.
    known: Any = transformers.AutoModelForImageTextToText._model_mapping
    if type(config) not in known:
        raise SutureError(
            "E516",
            f"a {config.model_type} model takes no pictures",
            where=str(source.path / "config.json"),
            fix="give the pictures as captions, or a model with image input",
        )
    place, precision = placed(source, device, dtype)
    state = {name: source.read(name) for name in track(list(source.tensors), "load")}
    model, report = known[type(config)].from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, dtype=precision
    )
    trouble = {kind: sorted(map(str, report[kind])) for kind in _TROUBLE if report[kind]}
    if trouble:
        kind, names = next(iter(trouble.items()))
        raise SutureError(
            "E502",
            f"{len(names)} tensors {_TROUBLE[kind]}: {some(names)}",
            where=str(source.path),
            why="the model would not be the one that was saved",
            fix="fetch the checkpoint again; `suture inspect` lists what it holds",
        )
    model = model.to(place).eval().requires_grad_(False)
    return LookingModel(model, _processor(source.path), source, place, precision)


_TROUBLE = {
    "missing_keys": "of the model are not in the checkpoint",
    "unexpected_keys": "have no place in the model",
    "mismatched_keys": "have another shape than the configuration asks for",
}


def look(
    lm: LookingModel, conversations: Sequence[Turns], *, max_new_tokens: int = 64
) -> list[Reply]:
    """The greedy reply to each conversation; a turn's picture stands before its words.

    Raises SutureError E513 for a file that is no picture, TooLongError E506 for a conversation that
    does not fit the context.
    """
    return [
        _reply(lm, turns, place, max_new_tokens)
        for place, turns in enumerate(track(conversations, "look"))
    ]


def _reply(lm: LookingModel, turns: Turns, place: int, limit: int) -> Reply:
    told: list[dict[str, Any]] = []
    for turn in turns:
        shown = [{"type": "image", "image": _picture(turn["image"])}] if "image" in turn else []
        content = [*shown, {"type": "text", "text": turn["content"]}]
        told.append({"role": turn["role"], "content": content})
    inputs = lm.processor.apply_chat_template(
        told, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    inputs = {
        name: value.to(lm.device, lm.dtype) if value.is_floating_point() else value.to(lm.device)
        for name, value in inputs.items()
    }
    start = inputs["input_ids"].shape[1]
    config, folder = lm.model.config.get_text_config(), lm.source.path
    room = getattr(config, "max_position_embeddings", None)
    check_room([start], room, "the conversation", where=str(folder), extra=limit, of=[place])
    stops = stops_of(config, lm.processor.tokenizer, folder)
    asked = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=limit, eos_token_id=sorted(stops) or None, pad_token_id=0
    )
    with torch.no_grad():
        ids = lm.model.generate(**inputs, generation_config=asked)[0, start:].tolist()
    ended = bool(ids) and ids[-1] in stops
    ids = ids[:-1] if ended else ids
    text = lm.processor.tokenizer.decode(ids, skip_special_tokens=True)
    return Reply(str(text), len(ids), ended)


def _picture(file: Path) -> Any:
    """The picture in RGB; broken files, and files that unpack into gigabytes, are refused."""
    image = _pillow()
    try:
        with image.open(file) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise SutureError(
            "E513",
            f"not a picture that can be read: {error}",
            where=str(file),
            why="a reply without it would be about something else",
            fix="replace the file, or give a caption instead of the picture",
        ) from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise SutureError(
            "E514",
            "reading pictures needs Pillow, which is not installed",
            fix="pip install 'suture[images]'",
        ) from None
    return Image


def _processor(folder: Path) -> Any:
    """The folder's processor, without its code and without the network."""
    try:
        found = transformers.AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            folder, trust_remote_code=False, local_files_only=True, backend="pil"
        )
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SutureError(
            "E505",
            f"the processor cannot be loaded: {first}",
            where=str(folder),
            fix="copy processor_config.json or preprocessor_config.json of the original model here",
        ) from error
    if getattr(found, "chat_template", None) is None:
        raise SutureError(
            "E505",
            "the processor has no chat template",
            where=str(folder),
            fix="copy chat_template.jinja of the original model here",
        )
    return found
