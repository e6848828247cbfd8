"""Windows are looked up with the tokens before their end, those of a chunk like the chunk in the prepared table."""

import numpy as np
import pytest

from retroflow.components import recipe_schema
from retroflow.pipeline.lookups import look_up, open_search
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
        def nearest(self, queries, k):
            asked.extend(queries)
            return Neighbours(np.arange(len(queries) * k).reshape(-1, k), np.zeros((len(queries), k), np.float32))

    table = look_up(Search(), splits, np.array([1, 3]), step=step, k=2, advance=lambda count: None, query_tokens=query)
    text = np.asarray(splits.valid_chunks.tokens).ravel()
    ends = [(first * 64, first * 64 + end) for first in (1, 3) for end in range(16, 65, step)]
    assert asked == [text[max(start, end - (query or 16)) : end].tolist() for start, end in ends]
    assert table.ids.shape == (2, len(ends) // 2, 2)
