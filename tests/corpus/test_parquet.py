"""Parquet files as a corpus."""

import sys
from pathlib import Path
from typing import Any

import pytest

from retroflow.corpus.parquet import ParquetCorpus
from retroflow.errors import CorpusError, DamagedDataError, MissingExtraError

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra parquet")
from pyarrow import parquet  # noqa: E402


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def read(path: Path, **options: Any) -> list[tuple[str, str, str, str]]:
    corpus = ParquetCorpus(**{"path": str(path), "valid_share": 0.0, **options})
    return [(d.id, d.title, d.text, d.source) for d in corpus.documents()]


def test_rows_are_documents(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", text=["one", "two"], id=[7, 8], title=["One", None], more=[1.0, 2.0])
    assert read(tmp_path) == [("7", "One", "one", "a.parquet:1"), ("8", "8", "two", "a.parquet:2")]


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_string_type_is_read_over_many_batches(tmp_path: Path, kind: str) -> None:
    types = {"dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string())}
    column = pyarrow.array([f"text {i}" for i in range(200)]).cast(types.get(kind) or getattr(pyarrow, kind)())
    write(tmp_path / "a.parquet", body=column)
    rows = read(tmp_path / "a.parquet", text_key="body")
    assert [row[2] for row in rows] == [f"text {i}" for i in range(200)]
    assert rows[199][0] == "a.parquet:200"


def test_a_missing_column_lists_the_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", body=["one"], n=[1])
    with pytest.raises(
        CorpusError, match=r'corpus\.text_key: .* no column "text"; its columns: "body" \(string\), "n"'
    ):
        read(tmp_path)
    with pytest.raises(CorpusError, match=r'corpus\.id_key: .* no column "key"'):
        read(tmp_path, text_key="body", id_key="key")
    with pytest.raises(CorpusError, match=r'corpus\.text_key: column "n" of .* holds int64, allowed are strings'):
        read(tmp_path, text_key="n")


def test_a_row_without_text_or_too_long_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", text=["one", None])
    with pytest.raises(DamagedDataError, match=r'a\.parquet: row 2: "text" is null'):
        read(tmp_path)
    write(tmp_path / "a.parquet", text=["one", "x" * 2000])
    with pytest.raises(DamagedDataError, match=r"a\.parquet: row 2: a document of 2,000 bytes, allowed are 1,000"):
        read(tmp_path, max_document_bytes=1000)


def test_invalid_utf8_in_a_string_column_is_damage(tmp_path: Path) -> None:
    column = pyarrow.array([b"good", b"b\xff"]).view(pyarrow.string())
    write(tmp_path / "a.parquet", text=column)
    with pytest.raises(DamagedDataError, match=r"a\.parquet"):
        read(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=["words " * 50] * 50)
    content = path.read_bytes()
    for damaged in (b"", b"not parquet at all", content[:-20], content[:4] + b"\0" * 60 + content[64:]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedDataError, match=r"a\.parquet: not Parquet, or damaged"):
            read(tmp_path)


def test_the_fingerprint_follows_content_and_keys(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", text=["one"], body=["two"])
    before = ParquetCorpus(path=str(tmp_path)).fingerprint()
    assert ParquetCorpus(path=str(tmp_path), text_key="body").fingerprint() != before
    write(tmp_path / "a.parquet", text=["one!"], body=["two"])
    assert ParquetCorpus(path=str(tmp_path)).fingerprint() != before


def test_without_pyarrow_the_pip_line_comes_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r'pip install "retroflow\[parquet\]"') as caught:
        ParquetCorpus(path="x")
    assert caught.value.exit_code == 4
