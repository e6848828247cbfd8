"""Windows are looked up with the tokens before their end, those of a chunk like the chunk in the prepared table."""

from dataclasses import replace

import numpy as np
import pytest

from retroflow.components import recipe_schema
from retroflow.pipeline.lookups import look_up, nearest_chunks, open_search, own_documents
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.splits import open_splits
from retroflow.protocols import Neighbours
from retroflow.recipe import load
from retroflow.testing.tiny_corpus import write_tiny_corpus

RECIPE = """recipe_version: 1
corpus: {{name: jsonl, path: {0}/tiny.jsonl, valid_share: 0.3}}
embedder: {{name: lexical, dimension: 16, buckets: 4096}}
retriever: {{name: {1}}}
data: {{vocabulary_size: 280, chunk_length: 16, sequence_chunks: 4, artifacts_folder: {0}/artifacts}}
model: {{name: retro}}
"""


def opened(folder, retriever="exact"):
    write_tiny_corpus(folder, 6, seed=0)
    (folder / "tiny.yaml").write_text(RECIPE.format(folder, retriever))
    recipe = load(str(folder / "tiny.yaml"), [], schema=recipe_schema())
    prepared = prepare(recipe, report=lambda stage: None)
    return recipe, prepared, open_splits(prepared, sequence_chunks=4)


@pytest.mark.parametrize("retriever", ["exact", "bm25"])
def test_windows_that_are_chunks_find_what_the_chunks_have_found(tmp_path, retriever):
    recipe, prepared, splits = opened(tmp_path, retriever)
    sequences = np.arange(len(splits.validation()))
    done = []
    table = look_up(open_search(recipe, prepared), splits, sequences, step=16, k=2, advance=done.append)
    count = len(splits.valid_chunks)
    found = table.ids.reshape(-1, 2)
    assert (found[:count] == splits.validation_neighbours).all() and (found[count:] == -1).all()
    assert sum(done) == count


@pytest.mark.parametrize(("step", "query"), [(1, None), (5, 7), (16, 40)])
def test_a_query_is_the_tokens_before_the_window_s_end(tmp_path, step, query):
    _, _, splits = opened(tmp_path)
    asked = []

    class Search:
        def nearest(self, queries, k, others):
            asked.extend(queries)
            return Neighbours(np.arange(len(queries) * k).reshape(-1, k), np.zeros((len(queries), k), np.float32))

    table = look_up(Search(), splits, np.array([1, 3]), step=step, k=2, advance=lambda count: None, query_tokens=query)
    text = np.asarray(splits.valid_chunks.tokens).ravel()
    ends = [(first * 64, first * 64 + end) for first in (1, 3) for end in range(16, 65, step)]
    assert asked == [text[max(start, end - (query or 16)) : end].tolist() for start, end in ends]
    assert table.ids.shape == (2, len(ends) // 2, 2)


@pytest.mark.parametrize("retriever", ["exact", "bm25"])
def test_text_and_database_with_the_same_documents_still_find_k_neighbours_of_others(tmp_path, retriever):
    recipe, prepared, splits = opened(tmp_path, retriever)
    search = open_search(recipe, prepared)
    splits = replace(splits, valid_chunks=splits.train_chunks)  # every document is in the database, too
    documents, count = np.asarray(splits.train_chunks.document_ids[:]), len(splits.train_chunks)
    sequences = np.arange(0, count // 4, 3)
    table = look_up(search, splits, sequences, step=8, k=3, advance=lambda windows: None)
    text = np.asarray(splits.train_chunks.tokens).ravel()
    for row, window in np.ndindex(table.ids.shape[:2]):
        first = int(sequences[row]) * 4
        own = documents[first : first + 5]
        end = first * 16 + 16 + window * 8
        ranked = search.nearest([text[end - 16 : end].tolist()], count).ids[0]
        allowed = [id for id in ranked.tolist() if id >= 0 and documents[id] not in own]
        assert len(allowed) >= 3 or retriever == "bm25"  # which finds only what shares a word
        assert table.ids[row, window].tolist() == [*allowed, -1, -1, -1][:3]
    chunks = np.arange(0, count // 4 * 4, 7)
    found = nearest_chunks(search, splits, chunks, count, advance=lambda chunks: None)
    for chunk, ids in zip(chunks, found, strict=True):
        allowed = np.flatnonzero(~np.isin(documents, own_documents(splits, np.array([chunk // 4]))))
        assert set(ids[ids >= 0]) <= set(allowed)
        assert retriever == "bm25" or len(allowed) == (ids >= 0).sum()
