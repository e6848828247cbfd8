"""Exact duplicates, blank documents, and splits that came out empty."""

import sqlite3
import tracemalloc
from collections.abc import Iterator

import pytest

from retroflow.corpus import duplicates
from retroflow.corpus.duplicates import SeenTexts, distinct_documents
from retroflow.errors import CorpusError, RetroflowError
from retroflow.protocols import Counts, Document, Split


def stream(*items: tuple[str, Split]) -> Iterator[Document]:
    return (Document(str(i), str(i), text, "here", split) for i, (text, split) in enumerate(items))


def run(*items: tuple[str, Split], valid_share: float | None = 0.0) -> tuple[list[str], Counts]:
    counts = Counts()
    documents = distinct_documents(stream(*items), counts, place='corpus.path "x"', valid_share=valid_share)
    return [document.id for document in documents], counts


def test_the_first_of_several_copies_stays() -> None:
    ids, counts = run(("a", "train"), ("b", "valid"), ("a", "valid"), ("a", "train"), (" \n", "train"), ("", "train"))
    assert ids == ["0", "1"]
    assert counts == Counts(train=1, valid=1, num_bytes=2, duplicates=2, empty=2)
    assert counts.summary() == "1 train and 1 validation documents, 0.0 MB; left out: 2 exact duplicates, 2 empty"


def test_texts_that_differ_in_one_space_are_not_duplicates() -> None:
    assert run(("a", "train"), ("a ", "train"))[0] == ["0", "1"]


def test_a_split_that_stays_empty_is_an_error_that_names_the_option() -> None:
    with pytest.raises(CorpusError, match=r'corpus\.path "x" holds no text'):
        run()
    with pytest.raises(
        CorpusError, match=r"corpus\.valid_share: 0\.05 of 2 documents selects none.*or give more documents"
    ):
        run(("a", "train"), ("b", "train"), valid_share=0.05)
    with pytest.raises(CorpusError, match=r"all 2 documents fell into the validation split"):
        run(("a", "valid"), ("b", "valid"), valid_share=0.05)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_where_no_share_could_fill_both_splits_the_cause_is_named_and_no_share_advised(split: Split) -> None:
    with pytest.raises(CorpusError, match=r'corpus\.path "x" has only one document .* two are needed') as caught:
        run(("a", split), ("a", split), valid_share=0.05)
    assert "valid_share" not in str(caught.value)
    counts = Counts()
    same = (Document("same", "", text, "here", split) for text in ("a", "b", "c"))
    with pytest.raises(CorpusError, match=r'all 3 documents have the id "same", which decides the split') as caught:
        list(distinct_documents(same, counts, place="corpus.path", valid_share=0.05))
    assert "valid_share" not in str(caught.value)


def test_memory_stays_flat_however_many_texts_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "CACHE_KIB", 256)

    def peak(number: int) -> int:
        seen = SeenTexts()
        tracemalloc.start()
        assert all(seen.add(str(i)) for i in range(100))
        tracemalloc.reset_peak()
        for i in range(100, number):
            seen.add(str(i))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert not seen.add("7")
        seen.close()
        return highest

    assert peak(20_000) < 2 * peak(2_000) + 10_000


def test_a_full_temporary_folder_is_a_clear_error() -> None:
    class Full:
        def execute(self, *_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    seen = SeenTexts()
    seen._database = Full()  # type: ignore[assignment]
    with pytest.raises(RetroflowError, match=r"disk is full.*SQLITE_TMPDIR"):
        seen.add("a")
