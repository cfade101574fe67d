"""What an annotator may say about one dimension: poles, each with its grades, from end to end.

    E/I                      E+ E- I- I+: the name alone tells two poles with two grades each
    stance=no|unsure|yes     three poles with one symbol each
    mood=bad:--,-|good:+,++  two poles with two grades each, listed from the first end to the last

Poles are the answers that a vote is taken as evidence for (latent classes); symbols are what is
written down. A soft label of two poles runs from 0, all of the first, to 1, all of the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from suture.config import FrozenConfig, read_yaml
from suture.errors import SutureError, nearest


class Scale(FrozenConfig):
    """One dimension: its poles in order, and the symbols of each, from the first end to the last.

    Errors: E381 for a text that is no scale, E702 for poles that are none.
    """

    name: str = Field(min_length=1, description="name of the dimension, as in the votes")
    poles: dict[str, list[str]] = Field(min_length=2, description="pole: its symbols, in order")

    @model_validator(mode="after")
    def _symbols_differ(self) -> Self:
        empty = [pole for pole, symbols in self.poles.items() if not symbols]
        if empty:
            raise ValueError(f"pole '{empty[0]}' of '{self.name}' has no symbols")
        every = self.symbols
        twice = [symbol for symbol in every if every.count(symbol) > 1]
        if twice or "" in every:
            raise ValueError(
                f"symbol '{(twice or [''])[0]}' of '{self.name}' stands twice or blank"
            )
        return self

    @property
    def symbols(self) -> list[str]:
        """All symbols in order; a vote is kept as its place in this list."""
        return [symbol for symbols in self.poles.values() for symbol in symbols]

    @property
    def names(self) -> list[str]:
        """The poles in order."""
        return list(self.poles)

    @property
    def pole_of(self) -> list[int]:
        """The pole of each symbol, by place."""
        return [place for place, of in enumerate(self.poles.values()) for _ in of]

    @classmethod
    def named(cls, name: str) -> Self | None:
        """The scale that a name like `E/I` tells by itself, as in MBTIBench; None for others."""
        first, slash, second = (part.strip() for part in name.partition("/"))
        if not (first and slash and second) or first == second or "/" in second:
            return None
        poles = {first: [f"{first}+", f"{first}-"], second: [f"{second}-", f"{second}+"]}
        return cls(name=name, poles=poles)

    @classmethod
    def read(cls, text: str) -> Self:
        """A scale as the command line has it: `NAME=POLE|POLE` or `NAME=POLE:SYM,SYM|POLE:SYM`."""
        name, equals, rest = text.partition("=")
        poles: dict[str, list[str]] = {}
        for part in rest.split("|"):
            pole, colon, symbols = part.partition(":")
            if not pole.strip() or pole.strip() in poles:
                equals = ""
                break
            poles[pole.strip()] = (
                [s.strip() for s in symbols.split(",")] if colon else [pole.strip()]
            )
        if not name.strip() or not equals or len(poles) < 2:
            raise SutureError(
                "E381",
                f"'{text}' is no scale",
                where="--scale",
                fix="write NAME=POLE|POLE or NAME=POLE:SYMBOL,SYMBOL|POLE:SYMBOL,SYMBOL, "
                "at least two poles",
            )
        return cls.load({"name": name.strip(), "poles": poles}, where="--scale")


def read_scales(given: Sequence[str]) -> dict[str, Scale]:
    """Scales by dimension from `--scale` texts; one that ends in .yaml is a file of them:

        E/I: {E: [E+, E-], I: [I-, I+]}
        stance: ["no", unsure, "yes"]     (YAML reads no and yes without quotes as false and true)

    Errors: E381 no scale or one name twice, E702 poles that are none, E703 and E704 of the file.
    """
    scales: dict[str, Scale] = {}
    for text in given:
        found = _file(text) if text.endswith((".yaml", ".yml")) else [Scale.read(text)]
        for scale in found:
            if scale.name in scales:
                raise SutureError(
                    "E381",
                    f"'{scale.name}' has two scales",
                    where=text,
                    fix="give one scale per dimension",
                )
            scales[scale.name] = scale
    return scales


def _file(path: str) -> list[Scale]:
    scales = []
    for name, poles in read_yaml(path).items():
        _refuse_unquoted(name, name, path)
        for word in _words(poles):
            _refuse_unquoted(name, word, path)
        poles = {pole: [pole] for pole in poles} if isinstance(poles, list) else poles
        scales.append(Scale.load({"name": name, "poles": poles}, where=Path(path)))
    return scales


def _words(poles: object) -> list[object]:
    """All poles and symbols of one entry of the file, as YAML has read them."""
    if isinstance(poles, list):
        return poles
    if not isinstance(poles, dict):
        return []  # Scale says what is wrong
    lists = [symbols for symbols in poles.values() if isinstance(symbols, list)]
    return [*poles, *(symbol for symbols in lists for symbol in symbols)]


def _refuse_unquoted(name: object, word: object, path: str) -> None:
    """E702 for a word that YAML has read as true or false, a number, a date or nothing."""
    if isinstance(word, str | list | dict):
        return
    meant = {True: "yes", False: "no"}[word] if isinstance(word, bool) else str(word)
    raise SutureError(
        "E702",
        f"the scale '{meant if name is word else name}' holds a word that YAML reads as {word!r}",
        where=path,
        why="without quotes, no, yes, on, off, null, numbers and dates are no texts in YAML",
        fix=f"write it in quotes, such as '{meant}'",
    )


def scale_for(
    name: str, given: Mapping[str, Scale], seen: Iterable[str], where: str | Path
) -> Scale:
    """The scale of a dimension: as given, or as its name tells.

    E380 where neither says: the message holds a `--scale` made from the symbols `seen`.
    """
    scale = given.get(name) or Scale.named(name)
    if scale is not None:
        return scale
    close = nearest(name, given)
    words = "|".join(sorted(seen)) or "POLE|POLE"
    raise SutureError(
        "E380",
        f"nothing says what may be voted on '{name}'",
        where=str(where),
        why="symbols that are merely collected from the votes would let a slip of the pen count",
        fix=f"did you mean '{close}' in --scale?"
        if close
        else f"say it, poles in order: --scale '{name}={words}'",
    )
