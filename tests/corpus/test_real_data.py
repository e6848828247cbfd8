"""The sources over real text, where it is at hand."""

import os
from pathlib import Path

import numpy as np
import pytest

from retroflow.corpus.chunking import chunk_document
from retroflow.corpus.jsonl import JsonlCorpus
from retroflow.corpus.tokenizer import load_tokenizer, train_tokenizer

DATA = os.environ.get("RETROFLOW_TEST_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="RETROFLOW_TEST_DATA names no folder with real text")


@pytest.mark.parametrize(
    ("train", "valid", "num_train", "num_valid"),
    [
        ("powershell_docs/new.train", "powershell_docs/new.valid", 984, 67),
        ("books/train", "books/valid", 10, 2),
    ],
)
def test_real_documents_round_trip_and_their_bytes_add_up(
    train: str, valid: str, num_train: int, num_valid: int, tmp_path: Path
) -> None:
    paths = [str(Path(str(DATA), f"{name}.jsonl.gz")) for name in (train, valid)]
    corpus = JsonlCorpus(path=paths[0], valid_path=paths[1])
    texts = [document.text for document in corpus.documents()]
    assert (corpus.counts.train, corpus.counts.valid) == (num_train, num_valid)

    some = sorted(texts, key=len)[-40:][::8]  # the longest are cut into segments
    tokenizer = train_tokenizer(some, 2000, train_bytes=1_000_000)
    tokenizer.save(tmp_path)
    encoded = load_tokenizer(str(tmp_path)).encode_batch(some)
    assert tokenizer.decode_batch([each.ids for each in encoded]) == some
    for each, text in zip(encoded, some, strict=True):
        chunks = chunk_document(each, chunk_length=64, end_of_text=tokenizer.end_of_text)
        assert int(chunks.num_bytes.sum()) == len(text.encode())
        assert np.array_equal(chunks.tokens.reshape(-1)[: len(each.ids)], each.ids)
