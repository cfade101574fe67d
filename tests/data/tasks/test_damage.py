"""Files that are cut off, overwritten or of another format: read, or refused; nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest

from suture.data.tasks.datasets import Format
from suture.data.tasks.formats import (
    acos,
    dreaddit,
    ecf,
    emobench,
    emorynlp,
    empathetic,
    eq_bench,
    esconv,
    goemotions,
    iemocap,
    label_tsv,
    meld,
    msa_csv,
    mustard,
    mvsa,
    reccon,
    records,
    semeval2018,
    semeval_absa,
    span_json,
    target_tsv,
    three_lines,
    tweeteval,
    twitter_sarcasm,
)  # fmt: skip
from suture.errors import SutureError

EMOTIONS = {f"emotion{k}": name for k, name in enumerate(("Calm", "Sad", "Proud", "Angry"), 1)}
# reader, file name, a good file, options
GOOD: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "acos": (acos, "x.tsv", "the soup was cold\t1,2 FOOD#QUALITY 0 3,4\n", {}),
    "dreaddit": (dreaddit, "x.jsonl", '{"id": "1", "posts": "a", "label": "no"}\n', {}),
    "ecf": (ecf, "x.txt", "1 2\n(2,1)\n1 | A | joy | Oh | t\n2 | B | fear | No | t\n", {}),
    "emobench": (
        emobench, "x.jsonl",
        json.dumps({"qid": "1", "language": "en", "scenario": "She fell.", "subject": "she",
                    "choices": ["Wait", "Run"], "label": "Run"}), {"asks": "application"},
    ),
    "emorynlp": (
        emorynlp, "x.csv",
        "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode\n"
        "Tea.,\"['Ann']\",Joyful,1,1,1,2\n", {},
    ),
    "empathetic": (empathetic, "x.csv", "conv_id,prompt,utterance,context\n6,a,b,afraid\n", {}),
    "eq_bench": (
        eq_bench, "x.json",
        json.dumps({"1": {
            "prompt": "Task:\n\nA: No.\n[End dialogue]\n\nB feels\na\nb\nc\nd\n\nGive.\n",
            "reference_answer_fullscale":
                EMOTIONS | {f"emotion{k}_score": k for k in range(1, 5)},
        }}), {},
    ),
    "esconv": (esconv, "x.tsv", "1.0 0 0 Hi EOS 1.0 1 1 [Questions] How are you?\n", {}),
    "goemotions": (goemotions, "x.tsv", "Oh my\t1,0\tid1\nNo\t1\tid2\n", {"labels": "labels.txt"}),
    "iemocap": (
        iemocap, "E/x.txt", "[6.1 - 8.2]\tSes05F_impro01_F000\tneu\t[2.5]\n", {},
    ),
    "label_tsv": (label_tsv, "x.tsv", "dull\t0\nfine\t1\n", {"labels": {"0": "a", "1": "b"}}),
    "meld": (
        meld, "x.csv",
        "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
        "Hi,A,joy,positive,0,0\n", {},
    ),
    "msa_csv": (msa_csv, "x.csv", "video_id,clip_id,text,label,mode\nv,1,good,2.4,train\n", {}),
    "mustard": (
        mustard, "x.json",
        json.dumps({"1": {
            "utterance": "Lovely.", "speaker": "A", "context": ["It broke."],
            "context_speakers": ["B"], "show": "ONE", "sarcasm": True,
        }}), {},
    ),
    "mvsa": (mvsa, "x.txt", "ID\ttext,image\n7\tneutral,positive\n", {}),
    "reccon": (
        reccon, "x.json",
        json.dumps({"t": [[
            {"turn": 1, "speaker": "A", "utterance": "For you.", "emotion": "happiness",
             "expanded emotion cause evidence": [1], "expanded emotion cause span": ["you"]},
        ]]}), {},
    ),
    "records": (records, "x.jsonl", '{"text": "Lovely.", "image": "a.png", "gold": "joy"}\n', {}),
    "semeval2018": (semeval2018, "x.txt", "ID\tTweet\tanger\tjoy\n1\tHm\t1\t0\n", {}),
    "semeval_absa": (
        semeval_absa, "x.xml",
        '<s><sentence id="9"><text>bad tea</text><aspectTerms><aspectTerm term="tea" '
        'polarity="negative" from="4" to="7"/></aspectTerms></sentence></s>', {},
    ),
    "span_json": (
        span_json, "x.json",
        json.dumps([{
            "words": ["bad", "rain"], "image_id": "a.jpg",
            "aspects": [{"from": 1, "to": 2, "polarity": "NEG", "term": ["rain"]}],
        }]), {},
    ),
    "target_tsv": (target_tsv, "x.tsv", "head\n1\t2\ta.jpg\tMeet $T$ now\tAnn\n", {}),
    "three_lines": (three_lines, "x.seg", "the $T$ is slow\nservice\n-1\n", {}),
    "tweeteval": (tweeteval, "x.txt", "Sure.\nGood day\n", {"mapping": "mapping.txt"}),
    "twitter_sarcasm": (twitter_sarcasm, "x.txt", "['11', 'a day', 1]\n", {}),
}  # fmt: skip


def _place(folder: Path, form: str) -> tuple[Path, dict[str, Any]]:
    """The good file with all that belongs to it."""
    _, name, content, options = GOOD[form]
    (folder / "E").mkdir(exist_ok=True)
    (folder / "transcriptions").mkdir(exist_ok=True)
    (folder / "transcriptions" / "x.txt").write_text("Ses05F_impro01_F000 [6.1-8.2]: Yes?\n")
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "7.txt").write_text("Fine")
    (folder / "labels.txt").write_text("joy\nfear\n")
    (folder / "mapping.txt").write_text("0\tno\n1\tyes\n")
    (folder / "x_labels.txt").write_text("0\n1\n")
    options = {k: folder / v if str(v).endswith(".txt") else v for k, v in options.items()}
    file = folder / name
    file.write_text(content)
    return file, options


def _survives(form: str, file: Path, options: dict[str, Any]) -> bool:
    """Whether the file could be read; any error but ours fails the test."""
    try:
        more = [file.with_name("x_labels.txt")] if form == "tweeteval" else []
        return bool(GOOD[form][0].read([file, *more], **options))
    except SutureError as error:
        if not (error.fix and error.where):
            pytest.fail(f"{error.code} says too little")
        return False


@pytest.mark.parametrize("form", get_args(Format))
def test_damaged_files_are_read_or_refused(form: str, tmp_path: Path) -> None:
    file, options = _place(tmp_path, form)
    assert _survives(form, file, options)
    good = file.read_bytes()
    draw = random.Random(form)
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(bad))
            what = draw.choice(("cut", "put", "drop", "twice"))
            if what == "cut":
                bad = bad[: at + 1]
            elif what == "put":
                bad[at] = draw.choice(b"\x00\xff\"'[]{}(),:|\t\n 09aE<>&-")
            elif what == "drop" and len(bad) > 1:
                del bad[at]
            else:
                bad[at:at] = bad[at : at + draw.randint(1, 20)]
        file.write_bytes(bytes(bad))
        _survives(form, file, options)


@pytest.mark.parametrize("form", get_args(Format))
def test_files_of_every_other_format_are_read_or_refused(form: str, tmp_path: Path) -> None:
    file, options = _place(tmp_path, form)
    for other in get_args(Format):
        if other != form:
            file.write_text(GOOD[other][2])
            _survives(form, file, options)
