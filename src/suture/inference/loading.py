"""From a checked checkpoint to a model that runs, with nothing left to chance.

transformers fills a missing tensor with random numbers and logs a line; here every parameter comes
from the source or the load is refused. The configuration class is looked up by `model_type` in
transformers itself: no code of the folder runs, nothing is fetched.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from pydantic import Field

from suture.checkpoint.vetting import handed_over
from suture.errors import SutureError, nearest
from suture.inference.filling import fill, skeleton
from suture.inference.room import check_room
from suture.lazy import torch, transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from suture.checkpoint import TensorSource
    from suture.checkpoint.families import Place
    from suture.data import ChatTemplate
    from suture.inference.decoding import Decoding
    from suture.inference.memory import AnswerCache

Device = Annotated[
    str,
    Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps"),
]
Precision = Literal["auto", "float32", "bfloat16"]

_WIDTH = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_HEADROOM = 1.3  # weights plus activations and caches of a modest batch
_RUNS_CODE = ("auto_map", "_attn_implementation", "attn_implementation", "quantization_config")


@dataclass
class LoadedModel:
    """A model in evaluation mode with frozen weights, and what belongs to it.

    `names`: parameter name in the model -> tensor name in the source, for parameters that are one
    tensor. `places`: tensor name in the source -> where it is in the model, for all of them.
    `stops`: token ids that end a reply. `pad`: the id in masked places, where its value does not
    matter.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    source: TensorSource
    device: torch.device
    dtype: torch.dtype
    names: dict[str, str]
    stops: frozenset[int]
    pad: int
    places: dict[str, Place] = field(default_factory=dict)
    cache: AnswerCache | None = None  # what these weights have answered before, if it is kept
    decoding: Decoding | None = None  # how replies are made, if not by the plain argmax

    def weight(self, name: str) -> torch.Tensor:
        """The model's memory for the source's tensor `name`, shaped as it is stored."""
        spot = self.places[name]
        return spot.region(attrgetter(spot.slot)(self.model))

    def hold(self, *modules: torch.nn.Module) -> AbstractContextManager[None]:
        """`modules` have their weights while this lasts; here they always do (`StreamedModel`)."""
        return nullcontext()

    def reading(
        self, sequences: Iterable[Sequence[int]], *, head: bool = False
    ) -> AbstractContextManager[None]:
        """What lies before the blocks is here, with `head` what lies behind them too."""
        return nullcontext()

    def on_demand(self) -> AbstractContextManager[None]:
        """The model can be called as a whole while this lasts."""
        return nullcontext()

    @cached_property
    def fingerprint(self) -> str:
        """The content fingerprint of the source; hashes all tensors at first use."""
        return self.source.fingerprint()

    @property
    def context(self) -> int | None:
        """Tokens the model can read at once, prompt and reply together; None if it does not say."""
        room = getattr(self.model.config, "max_position_embeddings", None)
        return room if isinstance(room, int) else None

    def within(self, tokens: int) -> int:
        """`tokens`, or the context where that is shorter."""
        return tokens if self.context is None else min(tokens, self.context)

    def check_rows(
        self,
        rows: Sequence[Sequence[int]],
        what: str,
        *,
        extra: int = 0,
        of: Sequence[int] | None = None,
    ) -> None:
        """Refuse token ids that the model cannot take.

        `of`: for each row the place of what it belongs to, where that is not its own. Raises
        TooLongError E506 for a row longer than the context (after `extra` more tokens), SutureError
        E508 for an id beyond the embedding.
        """
        lengths = [len(row) for row in rows]
        check_room(lengths, self.context, what, where=str(self.source.path), extra=extra, of=of)
        embedding: Any = self.model.get_input_embeddings()
        embedded = int(embedding.weight.shape[0])
        highest = max((max(row) for row in rows if row), default=0)
        if highest >= embedded:
            raise SutureError(
                "E508",
                f"the tokenizer gives id {highest}, the embedding has {embedded} rows",
                where=str(self.source.path),
                fix="use the tokenizer and chat template this checkpoint was trained with",
            )


def load(
    source: TensorSource,
    *,
    device: str = "auto",
    dtype: Precision = "auto",
    chat_template: Path | None = None,
) -> LoadedModel:
    """Load `source` for inference; weights are rounded once, to the compute dtype.

    `device` auto: an accelerator if there is one and the model fits into its free memory, else the
    CPU. `dtype` auto: float32 on the CPU; on an accelerator bfloat16 if most weights have 16 bits.
    `chat_template`: a jinja file to use instead of the folder's own.

    Raises SutureError: E501 unknown architecture, E502 missing or unexpected tensors, E503 other
    shapes, E504 tied tensors that differ, E505 tokenizer, E507 device, E512 a model that does not
    continue a text; E218 a module beside it of a type nobody knows; E32x chat template.
    """
    from suture.patch import attach

    own = parts(source, device, dtype, chat_template)
    model = skeleton(own.config, own.dtype, own.device, source)
    places = fill(model, source)
    for module in getattr(source, "modules", ()):  # layers of a patch, beside the model's own
        attach(model, module)
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    names = {spot.slot: stored for stored, spot in places.items() if spot.whole}
    return LoadedModel(
        model, own.tokenizer, own.template, source, own.device, own.dtype, names, own.stops,
        own.pad, places=places,
    )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """All of a `LoadedModel` but its weights."""

    config: transformers.PreTrainedConfig
    template: ChatTemplate
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    stops: frozenset[int]
    pad: int


def parts(
    source: TensorSource, device: str, dtype: Precision, chat_template: Path | None, *,
    whole: bool = True,
) -> Parts:  # fmt: skip
    """What `load` finds out before it reads a weight; `whole`: the model must fit the device."""
    from suture.data import ChatTemplate

    check_device(device)
    config = model_config(source)
    _check_generates(config, source)
    template = ChatTemplate.from_folder(source.path, override=chat_template)
    tokenizer = load_tokenizer(source.path)
    place = _device(device, source, whole=whole)
    stops = stops_of(config, tokenizer, source.path)
    pad = (
        tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else min(stops, default=0)
    )
    return Parts(config, template, tokenizer, place, _dtype(dtype, source, place), stops, pad)


def load_bare(
    source: TensorSource, *, device: str = "auto", dtype: Precision = "auto"
) -> PreTrainedModel:
    """The model of the class that config.json declares, as strictly, without a tokenizer.

    For what does not continue a text: T5, BERT and CLIP. Raises SutureError E501 to E504 and E507
    like `load`; E501 also for a class that transformers does not have.
    """
    check_device(device)
    config = model_config(source)
    declared = (source.config.get("architectures") or [None])[0]
    kind = None
    if isinstance(declared, str):
        from suture import models

        ours = getattr(models, declared, None) if declared in models.__all__ else None
        kind = ours or getattr(transformers, declared, None)
    built_in = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not built_in or kind.config_class is not type(config):  # type: ignore[union-attr]
        raise SutureError(
            "E501",
            f"transformers {transformers.__version__} has no class {declared!r} for "
            f"model_type '{config.model_type}'",
            where=str(source.path / "config.json"),
            fix="correct 'architectures' in config.json",
        )
    place, precision = placed(source, device, dtype)
    model = skeleton(config, precision, place, source, kind=kind)
    head = getattr(model, "lm_head", None)
    if config.model_type == "t5" and head is not None and "lm_head.weight" in source.tensors:
        # T5 1.1 has a head of its own; its config in transformers calls every T5 tied.
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    fill(model, source)
    model.eval()  # type: ignore[no-untyped-call]
    return model.requires_grad_(False)


def placed(source: TensorSource, device: str, dtype: Precision) -> tuple[torch.device, torch.dtype]:
    """Where a model runs and in what precision, for `device` and `dtype` as in `load`."""
    place = _device(device, source)
    return place, _dtype(dtype, source, place)


def free_memory() -> int | None:
    """Bytes of memory that can be had now; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def check_device(device: str) -> None:
    """Refuse a device name that cannot be one (SutureError E507); needs no torch."""
    if not re.match(r"^(auto|cpu|mps|cuda(:\d+)?)$", device):
        close = nearest(device, ("auto", "cpu", "cuda", "cuda:0", "mps"))
        raise SutureError(
            "E507",
            f"no device is called '{device}'",
            fix=f"did you mean '{close}'?" if close else "use auto, cpu, cuda, cuda:N or mps",
        )


def check_precision(dtype: str) -> Precision:
    """`dtype` as one that models can be loaded in, or SutureError E702; needs no torch."""
    for known in get_args(Precision):
        if dtype == known:
            return cast("Precision", known)
    close = nearest(dtype, get_args(Precision))
    raise SutureError(
        "E702",
        f"no dtype is called '{dtype}'",
        where="--dtype",
        fix=f"did you mean '{close}'?" if close else f"one of: {', '.join(get_args(Precision))}",
    )


def model_config(source: TensorSource) -> transformers.PreTrainedConfig:
    """The configuration object for the vetted `config.json` (SutureError E501 if unknown)."""
    from suture.models import register

    register()
    raw = {key: value for key, value in source.config.items() if key not in _RUNS_CODE}
    kind = raw.get("model_type")
    known = transformers.CONFIG_MAPPING
    where = str(source.path / "config.json")
    if not isinstance(kind, str) or kind not in known:
        close = nearest(str(kind), list(known.keys()))
        raise SutureError(
            "E501",
            f"transformers {transformers.__version__} knows no model_type {kind!r}",
            where=where,
            why="only architectures built into transformers are run, never a folder's own code",
            fix=f"did you mean '{close}'?"
            if close
            else "use a checkpoint of a built-in architecture",
        )
    try:
        return known[kind].from_dict(handed_over(raw, known[kind]))
    except Exception as error:  # a stranger's file meets many validators
        raise SutureError(
            "E501", f"the configuration is not valid: {_first_line(error)}", where=where
        ) from error


def _check_generates(config: transformers.PreTrainedConfig, source: TensorSource) -> None:
    """Refuse (E512) encoders, also those that transformers would run as decoders (BERT)."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = str(config.model_type)
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    encoder = encoder or kind == "suture-encoder"
    if encoder or config.is_encoder_decoder or kind.startswith("clip"):
        raise SutureError(
            "E512",
            f"a {kind} model does not continue a text, so it cannot be loaded to generate or score",
            where=str(source.path / "config.json"),
            why="generation, scoring and layer-wise methods need a decoder",
            fix="inspect, diff, apply, revert and the merging methods work on it",
        )


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, without its code and without the network (SutureError E505)."""
    try:
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            path, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        why = _first_line(error)
        if not path.is_dir():
            why = "there is no such folder"
        elif not any(path.glob("tokenizer.*")) and not any(path.glob("vocab*")):
            why = "the folder holds none"
        raise SutureError(
            "E505",
            f"the tokenizer cannot be loaded: {why}",
            where=str(path),
            fix="copy tokenizer.json and tokenizer_config.json of the original model here",
        ) from error
    return tokenizer


def stops_of(
    config: transformers.PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, path: Path
) -> frozenset[int]:
    """End tokens named by the tokenizer, config.json or generation_config.json (one id or many)."""
    found: set[int] = set()
    sources: list[Any] = [tokenizer.eos_token_id, getattr(config, "eos_token_id", None)]
    file = path / "generation_config.json"
    if file.is_file():
        try:
            sources.append(json.loads(file.read_text(encoding="utf-8")).get("eos_token_id"))
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise SutureError(
                "E505", f"cannot read generation_config.json: {error}", where=str(file)
            ) from None
    for value in sources:
        ids = value if isinstance(value, list) else [value]
        found.update(i for i in ids if isinstance(i, int) and not isinstance(i, bool))
    return frozenset(found)


def _device(wanted: str, source: TensorSource, *, whole: bool = True) -> torch.device:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        need = _HEADROOM * sum(info.nbytes for info in source.tensors.values())
        if cuda and (not whole or torch.cuda.mem_get_info(0)[0] > need):
            return torch.device("cuda:0")
        return torch.device("mps" if mps and not cuda else "cpu")
    count = torch.cuda.device_count() if cuda else 0
    place = torch.device(wanted)
    if place.type == "cuda" and (place.index or 0) >= count:
        raise SutureError(
            "E507",
            f"'{wanted}' is not there: torch sees {count} CUDA devices",
            fix="use --device cpu, or install a torch build for this machine's GPU",
        )
    if place.type == "mps" and not mps:
        raise SutureError("E507", "torch sees no MPS device", fix="use --device cpu")
    return place


def _dtype(wanted: Precision, source: TensorSource, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        if device.type == "cpu":
            return torch.float32
        size: Counter[bool] = Counter()
        for info in source.tensors.values():
            size[_WIDTH.get(info.dtype, 4) == 2] += info.nbytes
        return torch.bfloat16 if size[True] > size[False] else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _first_line(error: Exception | None) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
