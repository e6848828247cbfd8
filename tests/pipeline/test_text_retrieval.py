"""Neighbours by words: no embeddings, the exact answer of the retriever's own scores, and never the own document."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retroflow.components import RETRIEVERS
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.errors import UsageError
from retroflow.generation import RetrievalDatabase
from retroflow.pipeline.embeddings import training_keys
from retroflow.pipeline.neighbours import concerns
from retroflow.pipeline.prepare import Prepared, describe, expected_fingerprints, find_prepared, prepare
from retroflow.pipeline.preview import preview
from retroflow.pipeline.recorded import open_recorded
from retroflow.registry import Entry
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.manifest import KINDS
from retroflow.store.neighbour_table import NeighbourTable
from tests.pipeline.recipes import small_recipe

BM25 = {"name": "bm25"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    pytest.importorskip("bm25s")
    return prepare(small_recipe(folder, retriever=BM25), report=lambda stage: None)


def test_nothing_is_embedded_and_a_second_run_makes_nothing(folder: Path, prepared: Prepared) -> None:
    assert prepared.built == ("chunks", "index", "neighbours")
    assert prepared.train_embeddings is None and prepared.valid_embeddings is None
    again = small_recipe(folder, retriever=BM25, embedder={"name": "none"})
    assert find_prepared(again).fingerprints == prepared.fingerprints == expected_fingerprints(again)
    other_embedder = small_recipe(folder, retriever=BM25, embedder={"dimension": 16})
    assert expected_fingerprints(other_embedder) == prepared.fingerprints
    opened = open_recorded(lambda kind: next(folder.glob(f"artifacts/{kind}-*")), prepared.fingerprints)
    assert opened.fingerprints == prepared.fingerprints


def test_the_recall_is_of_the_retrievers_own_scores(prepared: Prepared) -> None:
    info = prepared.stages[-1].manifest.info
    count = len(ChunkStore.open(prepared.train_chunks))
    assert info["recall"] == {"recall_at_k": 1.0, "queries": min(500, count), "score_error": 0.0}
    assert info["searched_exactly"] == {"retriever_ran_out": 0, "large_document": 0}
    assert info["without_neighbours"] < 0.1 * sum(info["chunks"].values()) and not concerns(info, "bm25")
    assert "recall@2 1.000" in describe(prepared.stages[-1])


def test_text_without_words_in_common_is_said_before_training(tmp_path: Path, capsys) -> None:
    recipe = small_recipe(tmp_path, retriever=BM25)
    documents = [{"id": str(number), "text": f"({number})" + chr(0x4E00 + number) * 150} for number in range(30)]
    Path(recipe.values["corpus"]["path"]).write_text("".join(json.dumps(each) + "\n" for each in documents))
    info = prepare(recipe).stages[-1].manifest.info
    assert info["without_neighbours"] > 0.9 * sum(info["chunks"].values())
    assert "finds no neighbour at all for" in capsys.readouterr().err


def test_neighbours_are_the_best_outside_the_own_document(prepared: Prepared) -> None:
    from retroflow.retrieval.bm25 import Bm25Retriever

    keys = training_keys({"chunks": prepared.train_chunks.parent})
    texts, documents = keys.texts[0 : len(keys)], ChunkStore.open(prepared.train_chunks).document_ids
    retriever = CheckedRetriever(Bm25Retriever(), owner="bm25")
    retriever.build(texts)
    ranked = retriever.search(texts, len(texts))  # every key
    table = NeighbourTable.open(prepared.train_neighbours)
    for row in range(len(texts)):
        legal = (ranked.ids[row] >= 0) & (documents[ranked.ids[row]] != documents[row])
        best = ranked.scores[row][legal][:2]
        assert np.array_equal(table.scores[row, : len(best)], best)
        assert (table.ids[row, len(best) :] == -1).all()
        assert (documents[table.ids[row, : len(best)]] != documents[row]).all()


def test_the_preview_knows_that_nothing_is_embedded(folder: Path, prepared: Prepared, tmp_path: Path) -> None:
    found = preview(small_recipe(folder, retriever=BM25))
    assert (found.present, found.missing, found.new_bytes) == (("chunks", "index", "neighbours"), (), 0)
    assert any("no embeddings: bm25 (retroflow" in note for note in found.notes)
    fresh = preview(small_recipe(tmp_path, retriever=BM25))
    assert fresh.missing == ("chunks", "index", "neighbours") and fresh.new_bytes


def test_a_retriever_of_both_has_an_index_made_from_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("tests.testing.wrong_texts:RightOfBoth", owner="retroflow 0")
    monkeypatch.setitem(RETRIEVERS._table.claims, "both", [entry])
    recipe = small_recipe(tmp_path, retriever={"name": "both"})
    done = prepare(recipe, report=lambda stage: None)
    assert done.built == KINDS and preview(recipe).present == KINDS
    index = done.stages[2].manifest
    assert sorted(index.parents) == ["chunks", "embeddings"]
    assert index.inputs["embeddings"] == done.fingerprints["embeddings"]
    store = ChunkStore.open(done.train_chunks)
    assert done.stages[3].manifest.info["recall"]["recall_at_k"] == 1.0
    tokenizer = load_tokenizer(str(done.tokenizer))
    database = RetrievalDatabase.open(done.stages[2].folder, tokenizer=tokenizer, chunk_length=store.chunk_length)
    rows = range(0, len(store), 9)
    found = database.retrieve([store.tokens[row][: store.lengths[row]].tolist() for row in rows], 1)
    assert [sources[0].chunk for sources in found.sources] == list(rows)
    other_embedder = small_recipe(tmp_path, retriever={"name": "both"}, embedder={"dimension": 16})
    assert prepare(other_embedder, report=lambda stage: None).built == KINDS[1:]


def test_the_index_of_two_retrievers_depends_on_the_options_of_both_but_not_on_those_of_a_search(folder: Path) -> None:
    def names(**options: Any) -> dict[str, str]:
        parts = {"dense": {"name": "exact", "build": {"metric": "l2"}}, "words": {"name": "bm25"}}
        retriever = {"name": "hybrid", **parts, "search": {"candidates": 64}} | options
        return expected_fingerprints(small_recipe(folder, retriever=retriever))

    usual = names()
    for changed, is_same_index in (
        ({"search": {"candidates": 8}}, True),
        ({"dense": {"name": "exact", "build": {"metric": "l2"}, "search": {"block_rows": 7}}}, True),
        ({"dense": {"name": "exact", "build": {"metric": "inner_product"}}}, False),
        ({"words": {"name": "bm25", "build": {"b": 0.5}}}, False),
        ({"name": "rerank"}, False),
    ):
        other = names(**changed)
        assert (other["index"] == usual["index"]) is is_same_index and other["embeddings"] == usual["embeddings"]
        assert other["neighbours"] != usual["neighbours"]


def test_a_retriever_of_vectors_without_an_embedder_is_told_so(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"embedder.name is missing, and the retriever searches embeddings"):
        prepare(small_recipe(folder, embedder={"name": "none"}), report=lambda stage: None)
