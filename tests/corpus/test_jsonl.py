"""JSON Lines files: what is read, and what each damaged line says."""

import gzip
import json
import os
import random
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from retroflow.corpus.jsonl import JsonlCorpus
from retroflow.errors import CorpusError, DamagedDataError, MissingExtraError, RetroflowError


def line(id: str, text: str, **meta: str) -> bytes:
    return json.dumps({"id": id, "text": text, "meta": meta}).encode() + b"\n"


def corpus(path: Path, **options: object) -> JsonlCorpus:
    return JsonlCorpus(**{"path": str(path), "valid_share": 0.0, **options})  # type: ignore[arg-type]


def texts(path: Path, **options: object) -> list[str]:
    return [document.text for document in corpus(path, **options).documents()]


def refusal(content: bytes, folder: Path, **options: object) -> str:
    path = folder / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(RetroflowError) as caught:
        texts(path, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_reads_id_title_text_and_source(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line("one", "Text.", title="The One") + line("two", "More."))
    one, two = corpus(tmp_path / "a.jsonl").documents()
    assert (one.id, one.title, one.text, one.source) == ("one", "The One", "Text.", "a.jsonl:1")
    assert (two.id, two.title, two.source) == ("two", "two", "a.jsonl:2")


def test_a_folder_is_read_in_sorted_order_with_all_compressions(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "c.jsonl").write_bytes(line("c", "see"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line("b", "bee")))
    zst = zstandard.ZstdCompressor()
    (tmp_path / "a.jsonl.zst").write_bytes(zst.compress(line("a", "ay")) + zst.compress(line("a2", "two frames")))
    (tmp_path / "deep" / "d.jsonl").write_bytes(line("d", "dee"))
    (tmp_path / "README.md").write_text("not a document")
    assert texts(tmp_path) == ["ay", "two frames", "bee", "see", "dee"]
    assert texts(tmp_path / "*.jsonl") == ["see"]
    assert texts(tmp_path / "**" / "*.jsonl") == ["see", "dee"]


def test_byte_order_mark_crlf_and_blank_lines_are_tolerated(tmp_path: Path) -> None:
    lines = b"\xef\xbb\xbf" + line("a", "one").replace(b"\n", b"\r\n") + b"\r\n  \r\n" + line("b", "two\r\n").strip()
    (tmp_path / "a.jsonl").write_bytes(lines)
    documents = list(corpus(tmp_path / "a.jsonl").documents())
    assert [document.text for document in documents] == ["one", "two\r\n"]
    assert documents[1].source == "a.jsonl:4"


def test_keys_can_be_named_and_nested(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"n": 7, "body": {"raw": "words"}, "head": "Title"}))
    (document,) = corpus(tmp_path, text_key="body.raw", id_key="n", title_key="head").documents()
    assert (document.id, document.title, document.text) == ("7", "Title", "words")


def test_a_missing_id_is_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "words"}')
    assert next(corpus(tmp_path).documents()).id == "a.jsonl:1"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"{not json\n", "bad.jsonl:2: not JSON"),
        (b'{"id": "b", "text": "cut', "bad.jsonl:2: not JSON"),
        (b"[1, 2]\n", "bad.jsonl:2: the line is a list, allowed is an object"),
        (b'{"id": "b", "body": "x"}\n', 'bad.jsonl:2: the object lacks "text"; its keys: "id", "body".'),
        (b'{"id": "b", "text": 5}\n', 'bad.jsonl:2: "text" is a number, allowed is a string'),
        (b'{"id": "b", "text": null}\n', 'bad.jsonl:2: "text" is null, allowed is a string'),
        (b'{"id": "b", "text": "\xff"}\n', "bad.jsonl:2: byte 22 of the line (0xff) is not UTF-8"),
        (
            b'{"id": "b", "text": "a\\ud800"}\n',
            r'bad.jsonl:2: "text" has half a surrogate pair (\ud800) at character 2',
        ),
        (b'{"id": "\\udfff", "text": "a"}\n', 'bad.jsonl:2: "id" has half a surrogate pair'),
        (b'{"id": [], "text": "a"}\n', 'bad.jsonl:2: "id" is a list, allowed are a string or a whole number'),
        (b"[" * 100_000 + b"\n", "bad.jsonl:2: not JSON"),
        (b'{"id": "b", "text": "a", "n": ' + b"1" * 5000 + b"}\n", "bad.jsonl:2: not JSON"),
        (b'{"text": "first", "text": "second"}\n', 'bad.jsonl:2: the key "text" is given twice. Remove'),
        (b'{"text": "a", "meta": {"n": 1, "m": 2, "n": 1}}\n', 'bad.jsonl:2: the key "n" is given twice'),
        (b'{"text": "a", "n": NaN}\n', "bad.jsonl:2: NaN is not JSON. Write null"),
        (b'{"text": "a", "n": [-Infinity]}\n', "bad.jsonl:2: -Infinity is not JSON"),
    ],
    ids=[
        *(
            "json",
            "cut",
            "list",
            "lacks",
            "number",
            "null",
            "utf8",
            "surrogate",
            "surrogate_id",
            "id",
            "deep",
            "digits",
        ),
        *("twice", "twice_below", "nan", "infinity"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, bad: bytes, says: str) -> None:
    assert says in refusal(line("a", "good") + bad, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", gzip.compress(b'{"text": "a"}'), "a.jsonl: by its first bytes this is gzip, .* end in .gz"),
        ("a.jsonl", zstandard.compress(b'{"text": "a"}'), "this is Zstandard, .* end in .zst"),
        ("a.jsonl", b"PAR1\x15\x04\x15\xff", "this is Parquet, .*corpus.name=parquet"),
        ("a.jsonl", b"PK\x03\x04text", "this is a zip archive, .*Unpack"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "this is UTF-16, .*iconv -f UTF-16"),
        ("a.txt", b"Some text.\nMore of it.\n", r"a.txt:1: not JSON .*plain text.*corpus\.name=text"),
        ("a.csv", b"id,text\n1,words\n", r"a.csv:1: not JSON .*corpus\.name=datasets"),
        ("a.json", b'[{"text": "a"},\n{"text": "b"}]\n', r"a.json:1: not JSON .*jq -c '\.\[\]' .*a\.json > lines"),
        ("a.json", b'[{"text": "a"}]\n', r"a.json:1: the line is a list, .*jq -c '\.\[\]' .*a\.json > lines"),
        ("a.json", b'{\n  "text": "a"\n}\n', r"a.json:1: not JSON .*jq -c \. .*a\.json > lines"),
    ],
    ids=["gzip", "zstandard", "parquet", "zip", "utf16", "text", "csv", "array", "array_in_a_line", "over_lines"],
)
def test_a_file_that_is_no_json_lines_is_told_what_it_is_and_how_it_is_read(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedDataError, match=says) as caught:
        texts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_named_id_key_must_be_there(tmp_path: Path) -> None:
    assert 'bad.jsonl:1: "key" is null' in refusal(line("a", "good"), tmp_path, id_key="key")


def test_a_line_above_the_limit_names_place_length_limit_and_remedy(tmp_path: Path) -> None:
    message = refusal(line("a", "good") + line("b", "x" * 5000), tmp_path, max_document_bytes=1000)
    length = len(line("b", "x" * 5000)) - 1
    assert f"bad.jsonl:2: a document of {length:,} bytes, allowed are 1,000" in message
    assert "Split it" in message and "corpus.max_document_bytes" in message


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    content = line("a", "x" * 100)
    (tmp_path / "a.jsonl").write_bytes(content)
    assert texts(tmp_path, max_document_bytes=len(content) - 1) == ["x" * 100]
    refusal(content, tmp_path, max_document_bytes=len(content) - 2)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_compressed_file_cut_short_is_damaged_at_any_place(tmp_path: Path, ending: str) -> None:
    words = random.Random(1).choices("abcdefghij ", k=200_000)
    content = b"".join(line(str(i), "".join(words[i * 1000 : (i + 1) * 1000])) for i in range(200))
    whole = gzip.compress(content) if ending == "gz" else zstandard.ZstdCompressor().compress(content)
    path = tmp_path / f"a.jsonl.{ending}"
    for length in (11, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedDataError, match="damaged or cut short") as caught:
            texts(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_file_that_is_not_what_its_ending_says_is_damaged(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.jsonl.{ending}").write_bytes(line("a", "plain"))
    with pytest.raises(DamagedDataError, match="damaged"):
        texts(tmp_path)


def test_a_missing_path_names_the_key_and_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.path: .*does not exist") as caught:
        texts(tmp_path / "nothing.jsonl")
    assert caught.value.exit_code == 2
    (tmp_path / "a.jsonl").write_bytes(line("a", "good"))
    with pytest.raises(CorpusError, match=r"corpus\.valid_path: .*does not exist"):
        texts(tmp_path / "a.jsonl", valid_path=str(tmp_path / "b.jsonl"))


def test_a_folder_or_glob_without_match_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no file that matches \*\*/\*\.jsonl or"):
        texts(tmp_path)
    with pytest.raises(CorpusError, match=r"no file that matches \*\.json "):
        texts(tmp_path / "*.json")


@pytest.mark.parametrize("content", [b"", b"\n\n", line("a", ""), line("a", " \n ")])
def test_an_empty_corpus_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(CorpusError, match=r"corpus\.path .* holds no text"):
        texts(tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(line("a", "good"))

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CorpusError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
        texts(tmp_path)
    with pytest.raises(CorpusError, match="cannot be read"):
        corpus(tmp_path).fingerprint()


def test_zst_without_the_library_is_refused_at_construction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r'pip install "retroflow\[zstd\]"'):
        corpus(tmp_path / "a.jsonl.zst")
    with pytest.raises(MissingExtraError, match=r'pip install "retroflow\[zstd\]"'):
        texts(tmp_path)


@pytest.mark.parametrize("valid_path", ["valid.jsonl", "v*.jsonl", "**/valid.jsonl"])
def test_valid_path_is_the_validation_split_and_is_taken_out_of_path(tmp_path: Path, valid_path: str) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_bytes(line(name, f"text of {name}"))
    documents = list(corpus(tmp_path, valid_path=str(tmp_path / valid_path)).documents())
    assert [(document.id, document.split) for document in documents] == [("train", "train"), ("valid", "valid")]


def test_validation_text_that_is_training_text_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(line("a", "same") + line("b", "other"))
    (tmp_path / "valid.jsonl").write_bytes(line("c", "same"))
    with pytest.raises(CorpusError, match=r"corpus\.valid_path: every document is also in"):
        texts(tmp_path / "train.jsonl", valid_path=str(tmp_path / "valid.jsonl"))


def test_a_valid_path_that_leaves_nothing_to_train_on_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line("a", "good"))
    with pytest.raises(CorpusError, match=r"is also in corpus\.valid_path, so that none is left for training"):
        texts(tmp_path, valid_path=str(tmp_path))


def test_the_fingerprint_follows_content_and_options_but_not_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_bytes(line("a", "good"))
    here = corpus(tmp_path / "here").fingerprint()
    monkeypatch.chdir(tmp_path / "there")
    assert corpus(Path(".")).fingerprint() == here == json.loads(json.dumps(here))
    assert corpus(Path("."), text_key="id").fingerprint() != here
    assert corpus(Path("."), valid_share=0.5).fingerprint() != here
    os.rename("a.jsonl", "b.jsonl")
    assert corpus(Path(".")).fingerprint() != here
    os.rename("b.jsonl", "a.jsonl")
    with open("a.jsonl", "ab") as file:
        file.write(b"\n")
    assert corpus(Path(".")).fingerprint() != here


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_documents_or_a_named_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, in_text: bool
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    path.write_bytes(line("a", "good") + (b'{"text": "' + content + b'"}' if in_text else content))
    try:
        outcome = texts(path)[0]
    except DamagedDataError as error:
        outcome = str(error)
    assert outcome == "good" or "a.jsonl:" in outcome
