"""Frozen, typed configuration that refuses unknown keys and names the nearest right one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from suture.errors import SutureError, nearest


class FrozenConfig(BaseModel):
    """Base of every config: immutable, no unknown keys, values checked before torch is imported."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def fingerprint(self) -> str:
        """SHA-256 over all values in canonical JSON, hex."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def load(
        cls,
        values: Mapping[str, Any],
        *,
        where: str | Path = "configuration",
        lines: Mapping[tuple[str | int, ...], int] | None = None,
    ) -> Self:
        """Validate `values`; a wrong key (E701) or value (E702) raises SutureError with the remedy.

        `lines`: the line of each key path in the file `where`, as `key_lines` gives it.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            errors = error.errors()
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        loc = _given_loc(values, first["loc"])
        key = ".".join(str(part) for part in loc)
        place = _place(where, loc, lines or {})
        if first["type"] == "extra_forbidden":
            known = _fields_at(cls, first["loc"][:-1])
            close = nearest(str(loc[-1]), known)
            raise SutureError(
                "E701",
                f"unknown key '{key}'",
                where=place,
                fix=f"did you mean '{close}'?" if close else f"known keys: {', '.join(known)}",
            )
        flag = f"--{key.partition('.')[0].replace('_', '-')}"
        name = f"'{flag}'" if key and str(where) == "command line" else f"'{key}'"
        message, fix = in_words(first, name if key else "this value")
        raise SutureError("E702", f"{name}: {message}" if key else message, where=place, fix=fix)


# pydantic's names of kinds, and ours
_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid dictionary": "a mapping of keys to values",
}
_SHOWN = 60  # characters of a wrong value


def in_words(error: Any, name: str, *, show: bool = True) -> tuple[str, str]:
    """What is wrong with a value, and what to do about it, in our words. `error`: of pydantic.
    `show`: quote the value; rows may hold what is not to be printed."""
    message, about = error["msg"].removeprefix("Value error, "), error.get("ctx", {})
    given = repr(error["input"])
    given = given if len(given) <= _SHOWN else f"{given[:_SHOWN]}..."
    given = given if show else "the value"
    kind = error["type"]
    if kind == "missing":
        return "it is missing", "add this key"
    if kind == "union_tag_not_found":
        label = str(about["discriminator"]).strip("'")
        return f"it has no '{label}'", f"write {label}: ... in it, which says what it is"
    if kind in ("union_tag_invalid", "literal_error", "enum"):
        known = re.findall(r"'([^']*)'", str(about.get("expected_tags", about.get("expected", ""))))
        word = str(about.get("tag", error["input"]))
        word = word if show else "the value"
        close = nearest(word, known)
        told = (
            "there is none of this name" if kind == "union_tag_invalid" else "it is none of these"
        )
        what = f"{word!r}: {told}: {', '.join(known)}" if known else f"{given}: {message}"
        return what, f"did you mean '{close}'?" if close else f"give {name} one of these values"
    if kind.startswith("path"):
        return f"{given} is not a path", f"give {name} the path of a file or folder"
    if kind == "too_short":
        least = about.get("min_length", 1)
        return f"has {about.get('actual_length', 0)}, needs at least {least}", f"add to {name}"
    if kind == "string_pattern_mismatch":
        return f"{given} does not fit the pattern {about['pattern']}", f"correct {name}"
    if message.startswith("Input should be "):
        must = message.removeprefix("Input should be ")
        must = must.partition(", unable to ")[0].partition(" or instance of ")[0]
        for theirs, ours in _WORDS.items():
            must = must.replace(theirs, ours)
        return f"{given} is not {must}", f"give {name} a value that is {must}"
    return message, f"correct {name}"


def _given_loc(values: Any, loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """`loc` as the values have it: pydantic puts the member of a union between two keys."""
    found: list[str | int] = []
    for place, part in enumerate(loc):
        if isinstance(values, Mapping):
            inside = part in values
            values = values[part] if inside else values
            if inside or place == len(loc) - 1:
                found.append(part)
        elif isinstance(values, list | tuple) and isinstance(part, int):
            found.append(part)
            values = values[part] if part < len(values) else None
    return tuple(found)


def _place(
    where: str | Path, loc: tuple[str | int, ...], lines: Mapping[tuple[str | int, ...], int]
) -> str:
    """`where`, with the line of the longest known beginning of `loc`."""
    for length in range(len(loc), 0, -1):
        if loc[:length] in lines:
            return f"{where}:{lines[loc[:length]]}"
    return str(where)


def _fields_at(cls: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Names of the fields of the model that `loc` leads to, through lists, dicts and unions."""
    members: list[type[BaseModel]] = []
    for part in loc:
        tagged = [m for m in members if "name" in m.model_fields]
        chosen = [m for m in tagged if m.model_fields["name"].default == part]
        if chosen:
            cls, members = chosen[0], []
        elif field := cls.model_fields.get(str(part)):
            members = [found for found in _models(field.annotation) if found is not cls]
            cls = members[0] if members else cls
    return list(cls.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def key_lines(path: str | Path) -> dict[tuple[str | int, ...], int]:
    """The line (from 1) of every key and list item of a YAML file, by its path."""
    import yaml

    lines: dict[tuple[str | int, ...], int] = {}

    def walk(node: yaml.Node, at: tuple[str | int, ...]) -> None:
        lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = (*at, str(key.value))
                lines[below] = key.start_mark.line + 1
                walk(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, (*at, index))

    root = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
    if root is not None:
        walk(root, ())
    return lines


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file.

    Errors: E703 unreadable or not YAML (file:line), E704 not a mapping or a key given twice.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        """SafeLoader that refuses a key given twice instead of keeping the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for place, key in enumerate(keys):
                if key in keys[:place]:
                    line = node.value[place][0].start_mark.line + 1
                    raise SutureError(
                        "E704", f"key '{key}' stands twice", where=f"{path}:{line}",
                        fix="keep one of the two",
                    )  # fmt: skip
            return super().construct_mapping(node, deep)

    try:
        text = Path(path).read_text(encoding="utf-8")
        value = yaml.load(text, Strict)
    except (OSError, UnicodeDecodeError) as error:
        raise SutureError(
            "E703",
            "cannot read the file",
            where=f"{path}: {error}",
            fix="check the path; `suture list recipes` names recipes that `suture init` writes",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SutureError(
            "E703",
            f"not YAML: {getattr(error, 'problem', error)}",
            where=f"{path}{line}",
            fix="correct this line: keys and values as `key: value`, lists as `- item` or [a, b]",
        ) from None
    if not isinstance(value, dict):
        raise SutureError("E704", "the file must hold keys and values", where=str(path))
    return value


def override(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """`values` with `--set a.b=VALUE` changes put in place; a VALUE is read as YAML.

    Error E705: a change without `=`, or below something that is no mapping.
    """
    import yaml

    for change in changes:
        name, equals, text = change.partition("=")
        *above, leaf = name.strip().split(".")
        place = values
        for key in above:
            if place.get(key) is None:
                place[key] = {}  # absent, or a key with nothing after the colon
            place = place[key]
            if not isinstance(place, dict):
                equals = ""
                break
        if not equals or not leaf:
            raise SutureError("E705", f"cannot set '{change}'", fix="write --set key.subkey=value")
        place[leaf] = yaml.safe_load(text)
    return values


def one_or_many(value: Any) -> Any:
    """For `BeforeValidator`: one path, text or mapping where a list of them may stand."""
    return [value] if isinstance(value, str | Path | dict) else value


def named_options(text: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A name with options: `name`, `name:key=value,key=value`, a YAML file, or a mapping.

    Values are read as YAML; file and mapping hold `name` beside the keys. Error E706: neither.
    """
    import yaml

    if isinstance(text, Mapping) or text.endswith((".yaml", ".yml")):
        values = dict(text) if isinstance(text, Mapping) else read_yaml(text)
        name = values.pop("name", None)
        if isinstance(name, str):
            return name, values
        where = None if isinstance(text, Mapping) else text
        raise SutureError("E706", "nothing is named", where=where, fix="add `name: ...`")
    name, colon, rest = text.partition(":")
    found: dict[str, Any] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise SutureError(
                "E706",
                f"cannot read '{text}'",
                fix="write NAME, NAME:KEY=VALUE,KEY=VALUE or a YAML file",
            )
        found[key.strip()] = yaml.safe_load(value)
    return name.strip(), found
