"""Each public format on a small file of our own words, and every way such a file can be wrong."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from suture.data.tasks.record import Record
from suture.errors import SutureError


def _file(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8"))
    return path


def _read(form: str, /, *files: Path, **options: Any) -> list[Record]:
    records: list[Record] = importlib.import_module(f"suture.data.tasks.formats.{form}").read(
        list(files), **options
    )
    return records


def _refusal(form: str, /, *files: Path, **options: Any) -> SutureError:
    with pytest.raises(SutureError) as caught:
        _read(form, *files, **options)
    return caught.value


TSV = (
    "index\tlabel\tonly three\n1\t2\ta.jpg\tMeet $T$ at the $T$ fair\tAnn Lee\n"
    "2\t0\ta.jpg\t$T$ again\train\n"
)


def test_target_tsv_puts_the_aspect_back_and_skips_a_header_of_any_width(tmp_path: Path) -> None:
    captions = _file(tmp_path, "captions.json", '{"a.jpg": "A wet street."}')
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"")
    first, second = _read(
        "target_tsv",
        _file(tmp_path, "x.tsv", TSV),
        captions=captions,
        images=tmp_path / "pictures",
    )
    assert first.text == "Meet Ann Lee at the Ann Lee fair"
    assert first.meta["masked"] == "Meet $T$ at the $T$ fair"
    assert (first.aspect, first.gold, first.caption) == ("Ann Lee", "positive", "A wet street.")
    assert first.image == tmp_path / "pictures" / "a.jpg"
    assert (second.gold, second.cluster) == ("negative", first.cluster)


def test_captions_of_another_data_set_are_noticed(tmp_path: Path) -> None:
    captions = _file(tmp_path, "captions.json", '{"b.jpg": "A dog."}')
    error = _refusal("target_tsv", _file(tmp_path, "x.tsv", TSV), captions=captions)
    assert (error.code, error.where) == ("E359", str(captions))


def test_descriptions_by_line(tmp_path: Path) -> None:
    row = json.dumps({"image_name": "a.jpg", "description": "It rains."})
    descriptions = tmp_path / "d.jsonl.gz"
    descriptions.write_bytes(gzip.compress(f"{row}\n".encode()))
    first, _ = _read("target_tsv", _file(tmp_path, "x.tsv", TSV), captions=descriptions)
    assert first.caption == "It rains."


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("1\t3\ta.jpg\t$T$ x\ty", "E353"),
        ("1\t2\ta.jpg\tno place\ty", "E355"),
        ("1\t2\ta.jpg\t$T$ x", "E352"),
    ],
)
def test_target_tsv_refusals_name_the_line(tmp_path: Path, row: str, code: str) -> None:
    file = _file(tmp_path, "x.tsv", f"header\n{row}\n")
    error = _refusal("target_tsv", file)
    assert (error.code, error.where) == (code, f"{file}:2")
    assert error.fix


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    file.write_bytes(b"header\n1\t2\ta.jpg\t$T$ caf\xe9\ty\n")
    error = _refusal("target_tsv", file)
    assert (error.code, error.where) == ("E303", f"{file}:2:1")


def test_an_id_twice_and_an_empty_file(tmp_path: Path) -> None:
    twice = _file(tmp_path, "x.tsv", "h\n1\t2\ta\t$T$ x\ty\n1\t2\ta\t$T$ x\ty\n")
    assert _refusal("target_tsv", twice).code == "E357"
    assert _refusal("target_tsv", _file(tmp_path, "y.tsv", "h\n")).code == "E360"


def _tweet(**changes: Any) -> dict[str, Any]:
    return {
        "words": ["New", "Ann", "Lee", "song", "beats", "rain"],
        "image_id": "a.jpg",
        "aspects": [
            {"from": 5, "to": 6, "polarity": "NEG", "term": ["rain"]},
            {"from": 1, "to": 3, "polarity": "POS", "term": ["Ann", "Lee"]},
        ],
    } | changes


def test_span_json_offsets_cut_the_terms_out_of_the_text(tmp_path: Path) -> None:
    (one,) = _read("span_json", _file(tmp_path, "x.json", json.dumps([_tweet()])))
    assert one.gold["spans"] == ["Ann Lee", "rain"]
    assert one.gold["pairs"] == [["Ann Lee", "positive"], ["rain", "negative"]]
    cut = [one.text[start:end] for start, end in one.meta["offsets"]]
    assert cut == one.gold["spans"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"aspects": [{"from": 0, "to": 2, "polarity": "POS", "term": ["Ann"]}]}, "E355"),
        ({"aspects": [{"from": 5, "to": 9, "polarity": "POS", "term": ["rain"]}]}, "E355"),
        ({"aspects": [{"from": 1, "to": 3, "polarity": "GOOD", "term": ["Ann", "Lee"]}]}, "E353"),
        ({"words": "New Ann"}, "E354"),
    ],
)
def test_span_json_refusals(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    file = _file(tmp_path, "x.json", json.dumps([_tweet(**change)]))
    assert _refusal("span_json", file).code == code


def test_a_json_file_of_another_shape(tmp_path: Path) -> None:
    assert _refusal("span_json", _file(tmp_path, "x.json", "{}")).code == "E354"
    broken = _refusal("span_json", _file(tmp_path, "y.json", "[\n{,\n"))
    assert (broken.code, broken.where) == ("E354", f"{tmp_path / 'y.json'}:2")


def test_mvsa_keeps_what_text_and_image_agree_on(tmp_path: Path) -> None:
    rows = [
        "ID\ttext,image\ttext,image\ttext,image",
        "1\tpositive,neutral\tpositive,neutral\tneutral,neutral",  # the neutral side gives way
        "2\tpositive,negative\tpositive,negative\tpositive,negative",  # they disagree
        "3\tpositive,neutral\tnegative,neutral\tneutral,neutral",  # no majority on the text
        "4\tneutral,negative\tneutral,negative\tpositive,positive",
    ]
    for k in range(1, 5):
        _file(tmp_path, f"data/{k}.txt", f"Post {k}\n")
    (tmp_path / "data" / "4.txt").write_bytes(b"Caf\xe9 4")
    (tmp_path / "data" / "1.jpg").write_bytes(b"")
    file = _file(tmp_path, "labelResultAll.txt", "\n".join(rows) + "\n")
    found = _read("mvsa", file, encoding="latin-1")
    assert [(one.id, one.gold, one.text) for one in found] == [
        ("1", "positive", "Post 1"),
        ("4", "negative", "Café 4"),
    ]
    assert found[0].image == tmp_path / "data" / "1.jpg"
    assert _refusal("mvsa", file).code == "E303"


def test_mvsa_single_has_one_vote(tmp_path: Path) -> None:
    _file(tmp_path, "data/7.txt", "Fine")
    (one,) = _read("mvsa", _file(tmp_path, "l.txt", "ID\ttext,image\n7\tneutral,positive\n"))
    assert one.gold == "positive"
    bad = _file(tmp_path, "m.txt", "ID\ttext,image\n7\tneutral\n")
    assert _refusal("mvsa", bad).code == "E352"


SARCASM = (
    "['11', 'what a joke of a <user> day', 1]\r\n['12', \"isn't it\", 0, 1]\r\n"
    "['13', 'plain', 0, 0]\r\n"
)


def test_twitter_sarcasm_reads_literals_without_running_them(tmp_path: Path) -> None:
    file = _file(tmp_path, "train.txt", SARCASM)
    attributes = _file(tmp_path, "extract_all", "['11', 'sky', 'wet', 'dog', 'man', 'old']\n")
    found = _read("twitter_sarcasm", file, captions=attributes)
    assert [one.gold for one in found] == ["sarcastic", "sarcastic", "not sarcastic"]
    assert found[0].caption == "sky, wet, dog, man, old"
    first = _read("twitter_sarcasm", file, label_column="first")
    assert [one.gold for one in first] == ["sarcastic", "not sarcastic", "not sarcastic"]
    kept = _read("twitter_sarcasm", file, giveaways="drop")
    assert [one.id for one in kept] == ["12", "13"]
    trap = _file(tmp_path, "trap.txt", "[__import__('os').getcwd(), 'x', 1]\n")
    assert _refusal("twitter_sarcasm", trap).code == "E354"
    assert _refusal("twitter_sarcasm", _file(tmp_path, "n.txt", "['1', 'x', 2]\n")).code == "E353"


def test_mustard_and_its_split_by_show(tmp_path: Path) -> None:
    row = {
        "utterance": "Lovely.", "speaker": "A", "context": ["It broke."],
        "context_speakers": ["B"], "show": "ONE", "sarcasm": True,
    }  # fmt: skip
    rows = {"1": row, "2": row | {"show": "TWO", "sarcasm": False}}
    file = _file(tmp_path, "x.json", json.dumps(rows))
    assert [one.gold for one in _read("mustard", file)] == ["sarcastic", "not sarcastic"]
    (one,) = _read("mustard", file, shows=["ONE"])
    assert (one.speaker, one.context[0].speaker, one.context[0].text) == ("A", "B", "It broke.")
    assert [o.id for o in _read("mustard", file, other_shows=["ONE"])] == ["2"]
    wrong = _file(tmp_path, "y.json", json.dumps({"1": row | {"context_speakers": []}}))
    assert _refusal("mustard", wrong).code == "E352"


MSA = (
    "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode\n"
    'v1,3,"so, good",2.4,,,,Positive,train\nv1,4,bad,-3.0,,,,Negative,test\n'
)


def test_msa_csv_by_mode_and_range(tmp_path: Path) -> None:
    file = _file(tmp_path, "label.csv", MSA)
    (one,) = _read("msa_csv", file, mode="test")
    assert (one.id, one.gold, one.cluster) == ("v1_4", -3.0, "v1")
    assert _read("msa_csv", file)[0].text == "so, good"
    error = _refusal("msa_csv", file, low=-1, high=1)
    assert (error.code, error.where) == ("E358", f"{file}:2")
    assert _refusal("msa_csv", _file(tmp_path, "a.csv", MSA.replace("2.4", "nan"))).code == "E358"
    other = _file(tmp_path, "b.csv", MSA.replace(",mode", ",part"))
    assert _refusal("msa_csv", other).code == "E352"


MELD = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode\n"
    '1,"Hello\nthere",A,joy,positive,0,0,1,1\n2,Go.,B,anger,negative,0,1,1,1\n'
    "3,New one.,C,neutral,neutral,1,0,1,1\n"
)


def test_meld_gives_the_turns_before_and_none_after(tmp_path: Path) -> None:
    first, second, third = _read("meld", _file(tmp_path, "x.csv", MELD))
    assert first.context == []
    assert third.context == []
    assert [turn.text for turn in second.context] == ["Hello\nthere"]
    assert second.gold == {"emotion": "anger", "sentiment": "negative"}
    assert (second.id, second.cluster) == ("dia0_utt1", "dia0")
    wrong = _file(tmp_path, "y.csv", MELD.replace("anger", "rage"))
    error = _refusal("meld", wrong)
    assert (error.code, error.where) == ("E353", f"{wrong}:4")  # the row above spans two lines


def test_emorynlp_in_both_forms(tmp_path: Path) -> None:
    table = (
        "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode\n"
        "Tea.,\"['Ann Lee', 'Bo']\",Joyful,1,1,1,2\nMore.,['Bo'],Mad,1,2,1,2\n"
        "Hm.,['Bo'],Sad,1,1,1,3\n"
    )
    first, second, third = _read("emorynlp", _file(tmp_path, "x.csv", table))
    assert (first.speaker, first.gold) == ("Ann Lee and Bo", "joyful")
    assert len(second.context) == 1
    assert third.context == []  # scene 1 of another episode
    row = {"utterance_id": "u1", "speakers": ["Bo"], "transcript": "Tea.", "emotion": "Scared"}
    whole = {"episodes": [{"scenes": [{"scene_id": "c1", "utterances": [row]}]}]}
    (one,) = _read("emorynlp", _file(tmp_path, "x.json", json.dumps(whole)))
    assert (one.id, one.speaker, one.gold, one.cluster) == ("u1", "Bo", "scared", "c1")


def test_iemocap_keeps_six_classes_and_the_whole_context(tmp_path: Path) -> None:
    name = "Ses05F_impro01"
    judged = (
        f"% header\n\n[6.1 - 8.2]\t{name}_F000\tneu\t[2.5, 2.5, 2.5]\nC-E2:\tNeutral;\t()\n"
        f"[9.0 - 9.5]\t{name}_M000\txxx\t[2.5, 2.5, 2.5]\n"
        f"[10.0 - 12.0]\t{name}_F001\tfru\t[1.5, 3.5, 3.0]\n"
    )
    said = (
        f"{name}_F000 [006.1-008.2]: Yes?\n{name}_M000 [009.0-009.5]: Form.\n"
        f"{name}_F001 [010.0-012.0]: I did that.\nA_stray line\n"
    )
    file = _file(tmp_path, f"Session5/dialog/EmoEvaluation/{name}.txt", judged)
    talk = _file(tmp_path, f"Session5/dialog/transcriptions/{name}.txt", said)
    first, last = _read("iemocap", file)
    assert (first.gold, first.speaker, last.gold) == ("neutral", "Woman", "frustration")
    assert [turn.text for turn in last.context] == ["Yes?", "Form."]
    talk.write_text(said.partition("\n")[0] + "\n")
    error = _refusal("iemocap", file)
    assert (error.code, error.where) == ("E352", str(talk))


ECF = (
    "18 2\n(2,1),(2,2)\n1 | Ann | neutral | It rains . | t\n2 | Bo | anger | Again ! | t\n"
    "19 1\n\n1 | Ann | neutral | Well . | t\n"
)


def test_ecf_conversations_and_utterances(tmp_path: Path) -> None:
    file = _file(tmp_path, "x.txt", ECF)
    first, second = _read("ecf", file)
    assert first.text == "1. Ann: It rains .\n2. Bo: Again !"
    assert first.gold["pairs"] == [[2, 1], [2, 2]]
    assert first.gold["triples"] == [[2, 1, "anger"], [2, 2, "anger"]]
    assert second.gold == {"pairs": [], "triples": []}
    golds = [one.gold for one in _read("ecf", file, unit="utterance")]
    assert golds == ["neutral", "anger", "neutral"]


@pytest.mark.parametrize(
    ("old", "new", "code", "line"),
    [
        ("(2,2)", "(2,3)", "E356", 2),
        ("18 2", "18 3", "E352", 5),
        ("anger", "rage", "E353", 4),
        ("(2,1),(2,2)", "(2,1),2", "E352", 2),
        ("18 2", "18", "E352", 1),
    ],
)
def test_ecf_refusals(tmp_path: Path, old: str, new: str, code: str, line: int) -> None:
    file = _file(tmp_path, "x.txt", ECF.replace(old, new, 1))
    error = _refusal("ecf", file)
    assert (error.code, error.where) == (code, f"{file}:{line}")


def _reccon(**changes: Any) -> str:
    turn = {
        "turn": 2, "speaker": "B", "utterance": "How nice, thank you.", "emotion": "happines",
        "expanded emotion cause evidence": [1, "b", 1],
        "expanded emotion cause span": ["this cake", "unsaid", "for you"],
    }  # fmt: skip
    quiet = {"turn": 1, "speaker": "A", "emotion": "neutral"}
    quiet["utterance"] = "I made this cake for you."
    return json.dumps({"tr_1": [[quiet, turn | changes]]})


def test_reccon_causes_and_candidates(tmp_path: Path) -> None:
    file = _file(tmp_path, "x.json", _reccon())
    (one,) = _read("reccon", file)
    assert (one.id, one.gold) == ("tr_1_2_1", ["this cake", "for you"])
    assert one.text == "I made this cake for you."
    assert len(one.context) == 2
    assert one.aspect == "B (happiness): How nice, thank you."  # misspelt in the release
    assert [c.gold for c in _read("reccon", file, unit="candidate")] == ["yes", "no"]
    outside = _reccon(**{"expanded emotion cause evidence": [1, "b", 3]})
    assert _refusal("reccon", _file(tmp_path, "y.json", outside)).code == "E356"
    uneven = _reccon(**{"expanded emotion cause span": []})
    assert _refusal("reccon", _file(tmp_path, "z.json", uneven)).code == "E354"


XML14 = """<sentences><sentence id="9"><text>Good soup, bad tea.</text><aspectTerms>
<aspectTerm term="tea" polarity="negative" from="15" to="18"/>
<aspectTerm term="soup" polarity="conflict" from="5" to="9"/></aspectTerms></sentence>
<sentence id="10"><text>We left.</text></sentence></sentences>"""
XML16 = """<Reviews><Review><sentences><sentence id="r:0"><text>Good soup.</text><Opinions>
<Opinion target="soup" category="FOOD#QUALITY" polarity="positive" from="5" to="9"/>
<Opinion target="soup" category="FOOD#PRICES" polarity="positive" from="5" to="9"/>
<Opinion target="NULL" category="SERVICE#GENERAL" polarity="positive" from="0" to="0"/>
</Opinions></sentence></sentences></Review></Reviews>"""


def test_semeval_absa_of_both_kinds(tmp_path: Path) -> None:
    file = _file(tmp_path, "x.xml", XML14)
    (one,) = _read("semeval_absa", file)
    assert (one.aspect, one.gold) == ("tea", "negative")
    both = _read("semeval_absa", file, unit="sentence", conflict="keep")
    assert both[0].gold["pairs"] == [["soup", "conflict"], ["tea", "negative"]]
    assert both[1].gold == {"spans": [], "pairs": []}
    (target,) = _read("semeval_absa", _file(tmp_path, "y.xml", XML16))
    assert (target.aspect, target.gold) == ("soup", "positive")


@pytest.mark.parametrize(
    ("xml", "code"),
    [
        (XML14.replace('term="tea"', 'term="ten"'), "E355"),
        (XML14.replace('"15"', '"x"'), "E358"),
        (XML14.replace("negative", "bad"), "E353"),
        (XML14[:-5], "E364"),
        ('<!DOCTYPE x [<!ENTITY a "b">]>' + XML14, "E364"),
    ],
)
def test_semeval_absa_refusals(tmp_path: Path, xml: str, code: str) -> None:
    assert _refusal("semeval_absa", _file(tmp_path, "x.xml", xml)).code == code


def test_three_lines(tmp_path: Path) -> None:
    file = _file(tmp_path, "x.seg", "the $T$ is slow\nservice\n-1\n$T$ !\nsoup\nPositive\n")
    first, second = _read("three_lines", file)
    assert (first.text, first.gold, second.gold) == ("the service is slow", "negative", "positive")
    assert _refusal("three_lines", _file(tmp_path, "y.seg", "the $T$\nx\n")).code == "E352"
    assert _refusal("three_lines", _file(tmp_path, "z.seg", "the\nx\n1\n")).code == "E355"


def test_acos_spans_and_implicit_ones(tmp_path: Path) -> None:
    row = "the soup was cold\t1,2 FOOD#QUALITY 0 3,4\t-1,-1 SERVICE#GENERAL 1 -1,-1\n"
    (one,) = _read("acos", _file(tmp_path, "x.tsv", row))
    assert one.gold["quads"] == [
        ["soup", "FOOD#QUALITY", "negative", "cold"],
        ["NULL", "SERVICE#GENERAL", "neutral", "NULL"],
    ]
    assert one.gold["triples"] == [["soup", "cold", "negative"], ["NULL", "NULL", "neutral"]]
    assert _refusal("acos", _file(tmp_path, "y.tsv", row.replace("3,4", "3,9"))).code == "E355"
    assert _refusal("acos", _file(tmp_path, "z.tsv", row.replace(" 0 ", " 4 "))).code == "E352"


def test_goemotions_needs_its_labels(tmp_path: Path) -> None:
    labels = _file(tmp_path, "labels.txt", "joy\nfear\n")
    file = _file(tmp_path, "x.tsv", "Oh\u2028my\t1,0\tid1\n")  # U+2028 ends no line
    (one,) = _read("goemotions", file, labels=labels)
    assert (one.gold, one.text) == (["joy", "fear"], "Oh\u2028my")
    wrong = _file(tmp_path, "y.tsv", "Oh\t2\tid1\n")
    assert _refusal("goemotions", wrong, labels=labels).where == f"{wrong}:1"


def test_semeval2018_emotions_and_intensity(tmp_path: Path) -> None:
    ec = _file(tmp_path, "a.txt", "ID\tTweet\tanger\tjoy\n1\tHm\t1\t0\n2\tOh\t0\t0\n")
    assert [one.gold for one in _read("semeval2018", ec)] == [["anger"], []]
    header = "ID\tTweet\tAffect Dimension\tIntensity Class\n"
    ei = _file(tmp_path, "b.txt", header + "1\tHm\tjoy\t2: some joy\n")
    (one,) = _read("semeval2018", ei)
    assert (one.gold, one.aspect) == (2.0, "joy")
    beyond = _file(tmp_path, "c.txt", header + "1\tHm\tvalence\t-3: very low\n")
    assert _refusal("semeval2018", beyond).code == "E358"
    assert _read("semeval2018", beyond, low=-3)[0].gold == -3.0
    assert _refusal("semeval2018", _file(tmp_path, "d.txt", "1\tHm\tjoy\t2\n")).code == "E352"


def test_label_tsv(tmp_path: Path) -> None:
    file = _file(tmp_path, "x.tsv", "dull\t0\n\nbright\t1\n")
    found = _read("label_tsv", file, labels={"0": "negative", "1": "positive"})
    assert [(one.id, one.gold) for one in found] == [("1", "negative"), ("3", "positive")]
    error = _refusal("label_tsv", file, labels={"0": "negative"})
    assert (error.code, error.where) == ("E353", f"{file}:3")


def test_esconv_clusters_the_growing_histories_of_a_dialogue(tmp_path: Path) -> None:
    rows = (
        "1.0 0 0 Hi EOS 1.0 1 1 [Questions] How are you?",
        "0.0 0 0 Hi EOS 0.0 1 1 [Questions] How are you? EOS 0.0 0 2 Low. EOS 1.0 1 3 [Other] Oh.",
        "1.0 0 0 Hey EOS 1.0 1 1 [Information] It helps to rest.",
    )
    first, second, third = _read("esconv", _file(tmp_path, "x.tsv", "\r\n".join(rows) + "\r\n"))
    assert first.gold == {"reply": "How are you?", "strategy": "Questions"}
    assert (second.text, second.speaker, len(second.context)) == ("Low.", "Seeker", 2)
    assert second.context[1].text == "How are you?"  # the strategy is not shown
    assert first.cluster == second.cluster != third.cluster
    bad = rows[0].replace("Questions", "Shouting")
    assert _refusal("esconv", _file(tmp_path, "y.tsv", bad)).code == "E353"
    assert _refusal("esconv", _file(tmp_path, "z.tsv", "1.0 0 0 Hi")).code == "E352"


def test_empathetic(tmp_path: Path) -> None:
    head = "conv_id,prompt,utterance,context\n"
    (one,) = _read("empathetic", _file(tmp_path, "x.csv", head + "6,fell,fell stair,afraid\n"))
    assert (one.id, one.gold, one.text) == ("6", "afraid", "fell stair")
    assert _refusal("empathetic", _file(tmp_path, "y.csv", head + "6,a,b,scared\n")).code == "E353"


def test_empathetic_as_released(tmp_path: Path) -> None:
    rows = (
        "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags",
        "hit:0,1,proud,I won_comma_ once,3,I won_comma_ at last!,5|5|5,",
        "hit:0,2,proud,I won_comma_ once,4,Well done!,5|5|5,",
        "hit:1,1,sad,It rains,3,Rain again.,5|5|5,",
    )
    file = _file(tmp_path, "x.csv", "\n".join(rows) + "\n")
    (one,) = _read("empathetic", file, form="original")
    assert (one.text, one.speaker, one.cluster) == ("I won, at last!", "Speaker", "hit:0")
    assert one.gold == {"reply": "Well done!", "emotion": "proud"}
    short = _file(tmp_path, "y.csv", "hit:0,1,proud\n")
    assert _refusal("empathetic", short, form="original").where == f"{short}:1"


def test_eq_bench_takes_the_dialogue_out_of_its_instructions(tmp_path: Path) -> None:
    prompt = (
        "\nYour task:\n\nAnn: No.\nBo: Yes.\n[End dialogue]\n\nAt the end Bo would feel...\n"
        "Calm\nSad\nProud\nAngry\n\nGive each a score.\n"
    )
    answer = {f"emotion{k}": name for k, name in enumerate(("Calm", "Sad", "Proud", "Angry"), 1)}
    answer |= {"emotion1_score": 0, "emotion2_score": "6", "emotion3_score": 2, "emotion4_score": 9}
    rows = {"1": {"prompt": prompt, "reference_answer_fullscale": answer}}
    (one,) = _read("eq_bench", _file(tmp_path, "x.json", json.dumps(rows)))
    assert one.text == "Ann: No.\nBo: Yes."
    assert one.aspect == "At the end Bo would feel...\nCalm\nSad\nProud\nAngry"
    assert one.gold == "Calm: 0\nSad: 6\nProud: 2\nAngry: 9"
    rows["1"]["reference_answer_fullscale"] = answer | {"emotion1_score": 11}
    assert _refusal("eq_bench", _file(tmp_path, "y.json", json.dumps(rows))).code == "E358"
    rows["1"]["prompt"] = "Something else"
    assert _refusal("eq_bench", _file(tmp_path, "z.json", json.dumps(rows))).code == "E352"


def test_tweeteval_pairs_texts_with_labels(tmp_path: Path) -> None:
    text = _file(tmp_path, "test_text.txt", "Sure, great.\nGood day\n")
    given = _file(tmp_path, "test_labels.txt", "1\n0\n")
    mapping = _file(tmp_path, "mapping.txt", "0\tnon_irony\n1\tirony")
    found = _read("tweeteval", text, given, mapping=mapping)
    assert [(one.text, one.gold) for one in found] == [
        ("Sure, great.", "irony"),
        ("Good day", "non irony"),
    ]
    assert _refusal("tweeteval", text, mapping=mapping).code == "E352"
    given.write_text("1\n")
    assert _refusal("tweeteval", text, given, mapping=mapping).code == "E352"
    given.write_text("1\n2\n")
    assert _refusal("tweeteval", text, given, mapping=mapping).where == f"{given}:2"


def test_emobench_letters_the_choices(tmp_path: Path) -> None:
    row = {
        "qid": "1", "language": "en", "scenario": "Ann missed her train.", "subject": "Ann",
        "choices": ["Wait", "Run"], "label": "Run", "emotion_choices": ["Joy", "Anger"],
        "emotion_label": "Anger", "cause_choices": ["The train left"],
        "cause_label": "The train left",
    }  # fmt: skip
    rows = [row, row | {"language": "zh", "label": "Wait"}]
    file = _file(tmp_path, "x.jsonl", "".join(json.dumps(one) + "\n" for one in rows))
    (one,) = _read("emobench", file, asks="application")
    assert (one.text, one.aspect, one.gold) == (
        "Ann missed her train.\nA. Wait\nB. Run",
        "Ann",
        "B",
    )
    assert _read("emobench", file, asks="application", language="zh")[0].gold == "A"
    assert [_read("emobench", file, asks=a)[0].gold for a in ("emotion", "cause")] == ["B", "A"]
    wrong = _file(tmp_path, "y.jsonl", json.dumps(row | {"label": "Fly"}))
    assert _refusal("emobench", wrong, asks="application").code == "E353"


def test_dreaddit(tmp_path: Path) -> None:
    row = {"id": 1, "posts": "Post: I cannot sleep.", "label": "yes"}
    (one,) = _read("dreaddit", _file(tmp_path, "x.jsonl", json.dumps(row) + "\n"))
    assert (one.id, one.text, one.gold) == ("1", "I cannot sleep.", "yes")
    wrong = _file(tmp_path, "y.jsonl", json.dumps(row | {"label": "maybe"}) + "\n")
    error = _refusal("dreaddit", wrong)
    assert (error.code, str(error.where).startswith(f"{wrong}:1:")) == ("E307", True)


def test_records_of_ones_own(tmp_path: Path) -> None:
    row = {"text": "Lovely.", "image": "p/a.png", "gold": ["joy"], "context": [{"text": "So?"}]}
    (one,) = _read("records", _file(tmp_path, "x.jsonl", json.dumps(row) + "\n"))
    assert type(one) is Record
    assert (one.id, one.image, one.gold) == ("1", tmp_path / "p" / "a.png", ["joy"])
    error = _refusal("records", _file(tmp_path, "y.jsonl", '{"txet": "Lovely."}\n'))
    assert error.code == "E306"
