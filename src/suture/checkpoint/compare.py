"""Do two models line up tensor by tensor and token by token? Asked before any work begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from suture.checkpoint import folder
from suture.checkpoint.jsonfile import read_json
from suture.checkpoint.names import role, split_layer
from suture.checkpoint.source import TensorSource, blake2b
from suture.errors import SutureError
from suture.progress import note

_TOKENIZER_CAP = 128 << 20


def compare_layouts(
    a: TensorSource, b: TensorSource, *, names: tuple[str, str] = ("aligned", "tuned")
) -> None:
    """Raise unless the two models have the same tensors, shapes and vocabulary.

    Dtypes may differ (arithmetic is in float32). `names` are used in messages. Errors: E122 other
    layers, tensors or shapes; E123 another vocabulary: rows of the embedding, tokens or merges.
    A different chat template is only noted.
    """
    where = f"{names[0]}: {a.path}, {names[1]}: {b.path}"
    _compare_tensors(a, b, names, where)
    _compare_tokenizers(a.path, b.path, names, where)


def _compare_tensors(a: TensorSource, b: TensorSource, names: tuple[str, str], where: str) -> None:
    if a.config.get("model_type") != b.config.get("model_type"):
        raise _layout(
            f"{names[0]} is a {a.config.get('model_type')} model, "
            f"{names[1]} a {b.config.get('model_type')} model",
            where,
        )
    depths = [
        1 + max((p[1] for n in s.tensors if (p := split_layer(n))), default=-1) for s in (a, b)
    ]
    if depths[0] != depths[1]:
        raise _layout(
            f"{names[0]} has {depths[0]} layers, {names[1]} {depths[1]}",
            where,
        )
    ties = {**getattr(a, "ties", {}), **getattr(b, "ties", {})}
    for first, second, label in ((a, b, names[1]), (b, a, names[0])):
        lacking = [n for n in first.tensors if n not in second.tensors]
        if lacking:
            tied = any(n in ties for n in lacking)
            raise _layout(
                f"{label} lacks {len(lacking)} tensors: {', '.join(lacking[:6])}"
                + (" (one model ties it to the embedding, the other does not)" if tied else ""),
                where,
            )
    for name, info in a.tensors.items():
        other = b.tensors[name]
        if info.shape == other.shape:
            continue
        if role(name).matrix in ("embed", "lm_head") and info.shape[1:] == other.shape[1:]:
            raise _vocabulary(
                f"'{name}' has {info.shape[0]} rows in {names[0]}, {other.shape[0]} in {names[1]}",
                where,
            )
        raise _layout(
            f"'{name}' is {list(info.shape)} in {names[0]} and {list(other.shape)} in {names[1]}",
            where,
        )


def _compare_tokenizers(a: Path, b: Path, names: tuple[str, str], where: str) -> None:
    if a == b:
        return
    if (a / "tokenizer.json").is_file() and (b / "tokenizer.json").is_file():
        first, second = _tokenizer(a), _tokenizer(b)
        for part in ("tokens", "merges", "added tokens"):
            if first[part] != second[part]:
                raise _vocabulary(
                    f"tokenizers differ in their {part}: {_difference(first[part], second[part])}",
                    where,
                )
    else:
        for name in ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"):
            both = [folder.inside(path, name) for path in (a, b)]
            if all(path.is_file() for path in both) and len({_digest(p) for p in both}) > 1:
                raise _vocabulary(f"tokenizers differ: '{name}' is another file", where)
    templates = [_chat_template(path) for path in (a, b)]
    if None not in templates and templates[0] != templates[1]:
        note(f"note: {names[0]} and {names[1]} have different chat templates")


def _tokenizer(path: Path) -> dict[str, Any]:
    """Tokens with ids, merges and added tokens of tokenizer.json, in one form for all versions."""
    raw = read_json(folder.inside(path, "tokenizer.json"), cap=_TOKENIZER_CAP)
    model = raw.get("model")
    model = model if isinstance(model, dict) else {}
    vocab = model.get("vocab") or {}
    if isinstance(vocab, list):  # unigram: pairs of token and score
        vocab = {json.dumps(item): index for index, item in enumerate(vocab)}
    merges = [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)
        for merge in model.get("merges") or []
    ]
    added = {
        str(item.get("content")): item.get("id")
        for item in raw.get("added_tokens") or []
        if isinstance(item, dict)
    }
    return {"tokens": {**vocab, **added}, "merges": merges, "added tokens": added}


def _difference(a: Any, b: Any) -> str:
    if isinstance(a, dict):
        only = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        shown = ", ".join(repr(key) for key in only[:4])
        return f"{len(a)} against {len(b)} entries, first differences {shown}"
    return f"{len(a)} against {len(b)} entries"


def _digest(path: Path) -> str:
    return blake2b(path.read_bytes())


def _chat_template(path: Path) -> str | None:
    if (path / "chat_template.jinja").is_file():
        return folder.inside(path, "chat_template.jinja").read_text(encoding="utf-8")
    if (path / "tokenizer_config.json").is_file():
        found = read_json(folder.inside(path, "tokenizer_config.json"), cap=16 << 20)
        return json.dumps(found["chat_template"]) if "chat_template" in found else None
    return None


def _layout(what: str, where: str) -> SutureError:
    return SutureError(
        "E122",
        f"the models do not line up: {what}",
        where=where,
        why="edits are taken tensor by tensor",
        fix="give models of one family: the same architecture and sizes",
    )


def _vocabulary(what: str, where: str) -> SutureError:
    return SutureError(
        "E123",
        f"the models have different vocabularies: {what}",
        where=where,
        why="the same token id would mean different words in the two models",
        fix="resize and retrain one to the other's tokenizer, or give models that share one",
    )
