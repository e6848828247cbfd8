"""The tiny corpus: reproducible, readable, with relatives and without copies."""

from pathlib import Path

from retroflow.corpus.jsonl import JsonlCorpus
from retroflow.testing.tiny_corpus import tiny_texts, write_tiny_corpus


def test_it_is_a_jsonl_corpus_with_both_splits(tmp_path: Path) -> None:
    corpus = JsonlCorpus(path=str(write_tiny_corpus(tmp_path)), valid_share=0.2)
    assert [document.id for document in corpus.documents()] == [f"notes/{i}" for i in range(40)]
    assert corpus.counts.valid > 0
    assert corpus.counts.duplicates == 0


def test_facts_are_shared_by_documents_and_documents_are_reproducible() -> None:
    texts = tiny_texts(seed=3)
    assert texts == tiny_texts(seed=3) != tiny_texts(seed=4)
    facts = [set(text.splitlines()[1:]) for text in texts]
    assert all(any(facts[i] & other for other in facts[:i] + facts[i + 1 :]) for i in range(len(facts)))
