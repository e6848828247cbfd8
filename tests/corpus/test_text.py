"""Text folders: one document a file."""

import gzip
from pathlib import Path

import pytest

from retroflow.corpus.text import TextCorpus
from retroflow.errors import CorpusError, DamagedDataError


def test_each_file_is_a_document_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_bytes(b"two\r\nlines")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "c.md").write_text("not asked for")
    (tmp_path / ".hidden.txt").write_text("hidden")
    documents = list(TextCorpus(path=str(tmp_path), valid_share=0.0).documents())
    assert [(document.id, document.text) for document in documents] == [("a.txt", "one"), ("b/x.txt", "two\r\nlines")]
    assert [d.id for d in TextCorpus(path=str(tmp_path), include="**/*.md", valid_share=0.0).documents()] == ["c.md"]


def test_a_single_file_is_a_document_whatever_its_ending(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("words")
    (document,) = TextCorpus(path=str(tmp_path / "notes"), valid_share=0.0).documents()
    assert document.id == document.title == document.source == "notes"


def test_invalid_utf8_names_file_line_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\nb\xe9d\n")
    with pytest.raises(DamagedDataError, match=r"a\.txt:2: byte 7 of the file \(0xe9\) is not UTF-8"):
        list(TextCorpus(path=str(tmp_path)).documents())


def test_a_compressed_file_named_as_text_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"words"))
    with pytest.raises(DamagedDataError, match=r"a\.txt: by its first bytes this is gzip, .* end in \.gz"):
        list(TextCorpus(path=str(tmp_path)).documents())


def test_a_file_above_the_limit_names_size_and_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 3_000_000)
    corpus = TextCorpus(path=str(tmp_path), max_document_bytes=1000)
    with pytest.raises(DamagedDataError, match=r"a\.txt: a document of 3,000,000 bytes, allowed are 1,000"):
        list(corpus.documents())


def test_a_missing_folder_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.path: "):
        list(TextCorpus(path=str(tmp_path / "nowhere")).documents())
    with pytest.raises(CorpusError, match=r"corpus\.path: "):
        TextCorpus(path=str(tmp_path / "nowhere")).fingerprint()


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("words")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a" / "x.txt")
    corpus = TextCorpus(path=str(tmp_path), valid_share=0.0)
    assert [document.id for document in corpus.documents()] == ["a/x.txt"]
    assert corpus.counts.duplicates == 1


def test_a_file_name_that_is_not_utf8_becomes_an_id_with_escapes(tmp_path: Path) -> None:
    (Path(str(tmp_path)) / "caf\udce9.txt").write_text("words")
    (document,) = TextCorpus(path=str(tmp_path), valid_share=0.0).documents()
    assert document.id == r"caf\udce9.txt"
