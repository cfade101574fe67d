"""Text from models, data and paths, made safe to show: nothing invisible, nothing that steers.

Prompts, replies, model names and paths are untrusted. Escaping keeps them from becoming markup;
this module keeps them from hiding or reordering what a reader sees: control characters (ANSI
escapes, NUL), bidirectional controls, invisible and tag characters are replaced by visible signs.
ZWJ and ZWNJ stay: emoji, Persian and Indic scripts need them.
"""

from __future__ import annotations

import os.path
import re

_BIDI = {
    0x061C: "ALM",
    0x200E: "LRM",
    0x200F: "RLM",
    0x202A: "LRE",
    0x202B: "RLE",
    0x202C: "PDF",
    0x202D: "LRO",
    0x202E: "RLO",
    0x2066: "LRI",
    0x2067: "RLI",
    0x2068: "FSI",
    0x2069: "PDI",
}
_HIDDEN = {
    0x00AD: "SHY",
    0x034F: "CGJ",
    0x180E: "MVS",
    0x200B: "ZWSP",
    0x2028: "LSEP",
    0x2029: "PSEP",
    0x2060: "WJ",
    0x2061: "FA",
    0x2062: "IT",
    0x2063: "IS",
    0x2064: "IP",
    0x206A: "ISS",
    0x206B: "ASS",
    0x206C: "IAFS",
    0x206D: "AAFS",
    0x206E: "NADS",
    0x206F: "NODS",
    0x115F: "HCF",
    0x1160: "HJF",
    0x3164: "HF",
    0xFEFF: "BOM",
    0xFFA0: "HHF",
    0xFFF9: "IAA",
    0xFFFA: "IAS",
    0xFFFB: "IAT",
}


def _table() -> dict[int, str]:
    table: dict[int, str] = {code: chr(0x2400 + code) for code in range(0x20)}  # control pictures
    del table[ord("\n")], table[ord("\t")]
    table[0x7F] = "\u2421"
    table.update({code: f"\u27e8x{code:02X}\u27e9" for code in range(0x80, 0xA0)})
    for code, name in (_BIDI | _HIDDEN).items():
        table[code] = f"\u27e8{name}\u27e9"
    table.update({code: "\u27e8TAG\u27e9" for code in range(0xE0000, 0xE0080)})
    table.update({code: "\ufffd" for code in (0xFFFE, 0xFFFF)})
    return table


_TABLE = _table()
_SURROGATES = re.compile("[\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&$#])")


def visible(text: str) -> str:
    r"""`text` with every control, bidi control and invisible character replaced by a visible sign.

    Line feeds and tabs stay, `\r\n` becomes `\n`, lone surrogates become U+FFFD, so the result
    always encodes as UTF-8.
    """
    return _SURROGATES.sub("\ufffd", text.replace("\r\n", "\n").translate(_TABLE))


def one_line(text: str) -> str:
    """`visible`, with line breaks and tabs folded into spaces: names, paths, table cells."""
    return " ".join(visible(text).split())


def clip(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters of `text` and how many were left off."""
    return (text, 0) if len(text) <= limit else (text[:limit], len(text) - limit)


def home_short(path: object) -> str:
    """A path as one visible line, the home folder as `~`: reports are shared."""
    plain, home = one_line(str(path)), os.path.expanduser("~")
    inside = len(home) > 1 and (plain == home or plain.startswith(home + os.sep))
    return "~" + plain[len(home) :] if inside else plain


def markdown(text: object) -> str:
    """One line of Markdown that shows `text` literally: no markup, no HTML, no autolink."""
    return _MARKDOWN.sub(r"\\\1", one_line(str(text))).replace("://", r":\//")


def code_span(text: object) -> str:
    """`text` as a Markdown code span that its own backticks cannot close."""
    plain = one_line(str(text)).replace("|", "\u2223")  # a pipe would end a table cell
    ticks = max((len(run) for run in re.findall("`+", plain)), default=0) + 1
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{'`' * ticks}{pad}{plain}{pad}{'`' * ticks}"
