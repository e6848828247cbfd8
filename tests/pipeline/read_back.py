"""What chunks artifacts say, held against the documents they were made from and never against another artifact."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from retroflow.corpus.split import choose_split
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.embedding.lexical import LexicalEmbedder
from retroflow.errors import Unfinished
from retroflow.pipeline.prepare import Prepared, prepare
from retroflow.pipeline.sharing import Shard, Sharing
from retroflow.protocols import Document
from retroflow.recipe import Recipe
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.neighbour_table import NeighbourTable


def recorded_documents(chunks: Path) -> list[Document]:
    """Read every document back from its chunks and its record; each chunk alone is checked against the whole."""
    tokenizer = load_tokenizer(str(chunks / "tokenizer"))
    documents = []
    for split in ("train", "valid"):
        store = ChunkStore.open(chunks / split)
        pieces: dict[int, list[list[int]]] = {}
        for row in range(len(store)):
            tokens = store.tokens[row][: store.lengths[row]].tolist()
            pieces.setdefault(int(store.document_ids[row]), []).append(tokens)
        assert len(pieces) == store.num_documents
        for document_id, tokens in pieces.items():
            text = tokenizer.decode([token for piece in tokens for token in piece])
            # A chunk may begin or end in the middle of a character.
            assert all(tokenizer.decode(piece).strip("\ufffd") in text for piece in tokens)
            record = store.document(document_id)
            documents.append(Document(record.id, record.title, text, record.source, split))
    return documents


def check_chunks(chunks: Path, expected: Iterable[Document]) -> None:
    """Check that a chunks artifact holds these documents and no others, each under its own name."""

    def by_source(documents: Iterable[Document]) -> dict[str, Document]:
        found = {document.source: document for document in documents}
        assert len(found) > 0
        return found

    recorded, wanted = by_source(recorded_documents(chunks)), by_source(expected)
    assert recorded.keys() == wanted.keys()
    for source, document in wanted.items():
        assert recorded[source] == document


def check_corpus_file(artifacts: Path, corpus: Path, *, valid_share: float = 0.2) -> None:
    """Check the only chunks in an artifacts folder against the lines of the JSONL file that they were made from."""
    (chunks,) = artifacts.glob("chunks-*")
    check_chunks(chunks, documents_of(corpus, valid_share=valid_share))


def documents_of(corpus: Path, *, valid_share: float = 0.2) -> list[Document]:
    """The documents of a JSONL file with ids and titles, read without the corpus' own code."""
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    return [
        Document(
            row["id"], row["meta"]["title"], row["text"], f"{corpus.name}:{i}", choose_split(row["id"], valid_share)
        )
        for i, row in enumerate(rows, start=1)
    ]


def check_rows_against_texts(prepared: Prepared) -> None:
    """Check that every embedding and every neighbour is of the chunk of its row, computed anew from the chunks' texts."""
    tokenizer = load_tokenizer(str(prepared.tokenizer))
    embedder = LexicalEmbedder(dimension=EmbeddingStore.open(prepared.train_embeddings).shape[1])
    embedder.load(prepared.train_embeddings.parent / "embedder")
    stores = {split: ChunkStore.open(prepared.train_chunks.parent / split) for split in ("train", "valid")}
    vectors = {}
    for split, store in stores.items():
        texts = [tokenizer.decode(store.tokens[row][: store.lengths[row]]) for row in range(len(store))]
        vectors[split] = embedder.embed(texts).astype(np.float16)
        found = EmbeddingStore.open(prepared.train_embeddings.parent / split)[:]
        np.testing.assert_array_equal(found, vectors[split])
    keys = vectors["train"].astype(np.float32)
    for split, store in stores.items():
        table = NeighbourTable.open(prepared.train_neighbours.parent / split)
        distances = ((keys[None] - vectors[split].astype(np.float32)[:, None]) ** 2).sum(axis=-1)
        distances[store.document_ids[:, None] == stores["train"].document_ids[None]] = np.inf
        nearest = np.sort(distances, axis=1)[:, : table.k]
        np.testing.assert_allclose(np.take_along_axis(distances, table.ids, axis=1), nearest, atol=1e-4)
        np.testing.assert_allclose(-table.scores, nearest, atol=1e-4)


def make_chunks_in_shares(recipe: Recipe, count: int) -> None:
    """Prepare a recipe without retrieval by shares that do not wait for each other, then merge."""
    for number in range(1, count + 1):
        with suppress(Unfinished):
            prepare(recipe, report=lambda stage: None, sharing=Sharing(Shard(number, count), wait=0))
    prepare(recipe, report=lambda stage: None, sharing=Sharing(merge=True))
