"""Examples show what the table of neighbours holds, and text only when it is asked for."""

from dataclasses import replace

import numpy as np

from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.splits import open_splits
from retroflow.training.neighbour_rows import neighbour_examples
from tests.pipeline.read_back import documents_of
from tests.pipeline.recipes import small_recipe
from tests.training.jobs import tiny_splits


def with_scores(splits):
    ids = splits.validation_neighbours
    return replace(splits, validation_scores=np.where(ids < 0, -np.inf, -ids / 10).astype(np.float32))


def test_rows_are_capped_and_spread_over_the_split():
    splits = with_scores(tiny_splits())
    examples = neighbour_examples(splits)(7, False)
    assert [example.chunk for example in examples] == [0, 0, 6, 6, 13, 13]  # 14 chunks, k = 2
    everything = neighbour_examples(splits)(1000, False)
    assert len(everything) == splits.validation_neighbours.size


def test_rows_say_what_the_table_says():
    splits = with_scores(tiny_splits())
    for example in neighbour_examples(splits)(1000, False):
        neighbour = splits.validation_neighbours[example.chunk, example.rank]
        assert example.neighbour == neighbour
        assert example.chunk_source == f"{splits.valid_chunks.document_ids[example.chunk]}.txt"
        if neighbour < 0:
            assert (example.neighbour_source, example.score) == ("", float("-inf"))
        else:
            assert example.neighbour_source == f"{splits.database.document_ids[neighbour]}.txt"
            assert example.score == np.float32(-neighbour / 10)
        assert example.chunk_text is example.neighbour_text is example.continuation_text is None


def test_text_is_that_of_the_chunks_and_a_continuation_stays_in_its_document(tmp_path):
    tokenizer = train_tokenizer(["the cat sat on the mat and the dog on the log"], 300)
    tokenizer.save(tmp_path)
    splits = replace(with_scores(tiny_splits()), tokenizer=tmp_path)
    continued = 0
    for example in neighbour_examples(splits)(1000, True):
        database, neighbour = splits.database, example.neighbour
        own = splits.valid_chunks
        assert example.chunk_text == tokenizer.decode(own.tokens[example.chunk][: own.lengths[example.chunk]])
        if neighbour < 0:
            assert example.neighbour_text == example.continuation_text == ""
            continue
        assert example.neighbour_text == tokenizer.decode(database.tokens[neighbour][: database.lengths[neighbour]])
        ends = neighbour + 1 == len(database) or (
            database.document_ids[neighbour + 1] != database.document_ids[neighbour]
        )
        assert (example.continuation_text == "") == ends
        continued += not ends
    assert continued


def test_every_source_named_holds_the_text_beside_it(tmp_path):
    splits = open_splits(prepare(small_recipe(tmp_path), report=lambda stage: None), sequence_chunks=2)
    texts = {document.source: document.text for document in documents_of(tmp_path / "corpus.jsonl")}
    examples = neighbour_examples(splits)(60, True)
    assert len({example.neighbour_source for example in examples}) > 5
    for example in examples:
        assert example.chunk_text in texts[example.chunk_source]
        assert example.neighbour_text + example.continuation_text in texts[example.neighbour_source]
        assert example.neighbour_source != example.chunk_source
