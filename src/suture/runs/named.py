"""Files and folders that recipes name inside the options of judges, decodings and suites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from suture.config import FrozenConfig, named_options

Named = str | dict[str, Any]  # KIND:KEY=VALUE,..., a YAML file, or a mapping with `name`
_OF_SUITES = frozenset(
    "examples templates references against reference retain holdout other scorer".split()
)
_PERHAPS = frozenset({"task", "train"})  # names, unless they end as files do
_FILES = (".yaml", ".yml", ".jsonl", ".jsonl.gz")
_NO_FILE = ("before", "none", None)  # against: before, reference: none


def rooted(given: Named, kind_of: Callable[[str], Any], root: Path) -> dict[str, Any]:
    """A judge or decoding as a mapping, the files and folders in it below `root`."""
    if isinstance(given, str) and given.endswith((".yaml", ".yml")):
        file = root / Path(given).expanduser()
        root, given = file.parent, str(file)
    name, options = named_options(given)
    kind = kind_of(name)
    placed = {
        key: str(root / Path(value).expanduser()) if _is_path(kind, key, value) else value
        for key, value in options.items()
    }
    return {"name": name, **placed}


def rooted_option(key: str, value: Any, root: Path) -> Any:
    """An option of a suite, below `root` where it names files."""
    if not _names_files(key, value):
        return value
    files = [
        str(root / Path(one).expanduser()) if _is_file(key, one) else one for one in _many(value)
    ]
    return files if isinstance(value, list) else files[0]


def named_paths(
    judge: Named | None, decoding: Named | None, options: Mapping[str, Any] | None
) -> list[Path]:
    """Files and folders that a suite's judge, decoding and options name."""
    from suture.inference.decoding import decoding_kind
    from suture.suites.judges import judge_kind

    kinds: tuple[tuple[Named | None, Callable[[str], Any]], ...]
    kinds = ((judge, judge_kind), (decoding, decoding_kind))
    found = []
    for given, kind_of in kinds:
        if given is not None:
            name, values = named_options(given)
            kind = kind_of(name)
            found += [Path(v) for k, v in values.items() if _is_path(kind, k, v)]
    for key, value in (options or {}).items():
        if _names_files(key, value):
            found += [Path(one) for one in _many(value) if _is_file(key, one)]
    return found


def _names_files(key: str, value: Any) -> bool:
    """Whether an option of a suite names files, or may."""
    return key in _PERHAPS or (key in _OF_SUITES and value not in _NO_FILE)


def _is_file(key: str, value: Any) -> bool:
    return key not in _PERHAPS or str(value).endswith(_FILES)


def _is_path(kind: type[FrozenConfig], key: str, value: Any) -> bool:
    if not isinstance(value, str | Path):
        return False
    if key == "format":  # a shipped one by name, or a file
        return str(value).endswith(".json")
    return key in kind.model_fields and "Path" in str(kind.model_fields[key].annotation)


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
