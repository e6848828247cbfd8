"""Batches hold what the store holds, and never text that would give the answer away."""

import os

import numpy as np
import pytest
import torch

from retroflow.data import SequenceDataset
from retroflow.data.batch import NOT_PREDICTED
from retroflow.data.windows import WindowTable
from retroflow.errors import CorpusError, DamagedDataError
from tests.data.fakes import END_OF_TEXT, make_chunks, random_neighbours

LENGTHS = [9, 4, 7, 12, 1, 8, 5, 16, 3, 11]


def make_dataset(sequence_chunks=3, seed=0):
    chunks = make_chunks(LENGTHS, seed=seed)
    neighbours = random_neighbours(len(chunks), chunks, seed=seed)
    dataset = SequenceDataset(chunks, sequence_chunks=sequence_chunks, database=chunks, neighbours=neighbours)
    return dataset, chunks, neighbours


def literal_retrieved(chunks, neighbours, rows, chunk, forbidden):
    """The slow, obvious way to what `SequenceDataset` gives for one chunk."""
    texts, masks = [], []
    for neighbour in neighbours[chunk]:
        text, mask = [END_OF_TEXT] * 8, [False] * 8
        if neighbour >= 0 and chunks.document_ids[neighbour] not in forbidden:
            pieces = [neighbour]
            after = neighbour + 1
            if after < len(chunks) and chunks.document_ids[after] == chunks.document_ids[neighbour]:
                pieces.append(after)
            for place, piece in enumerate(pieces):
                for position in range(chunks.lengths[piece]):
                    text[place * 4 + position] = int(chunks.tokens[piece, position])
                    mask[place * 4 + position] = True
        texts.append(text)
        masks.append(mask)
    return texts, masks


@pytest.mark.parametrize("seed", range(3))
def test_retrieved_equals_a_literal_loop_over_chunks(seed):
    dataset, chunks, neighbours = make_dataset(seed=seed)
    starts = [0, 5, len(chunks) - 3]
    batch = dataset.assemble(starts, 3)
    for row, start in enumerate(starts):
        last = min(start + 3, len(chunks) - 1)
        forbidden = set(chunks.document_ids[start : last + 1].tolist())
        for u in range(3):
            texts, masks = literal_retrieved(chunks, neighbours, None, start + u, forbidden)
            assert batch.retrieved[row, u].tolist() == texts
            assert batch.retrieved_mask[row, u].tolist() == masks


def test_a_neighbour_from_any_document_of_the_sequence_is_masked():
    chunks = make_chunks([4, 4, 4, 4, 4, 4])
    neighbours = np.array([[1, 4], [0, 5], [5, 3], [5, 5], [0, 0], [0, 0]])
    dataset = SequenceDataset(chunks, sequence_chunks=2, database=chunks, neighbours=neighbours)
    batch = dataset.assemble([0], 2)
    # Chunk 2 gives the last target, so that its document is forbidden too; 4 and 5 are legal.
    assert batch.retrieved_mask.any(-1)[0].tolist() == [[False, True], [False, True]]
    assert not dataset.assemble([2], 2).retrieved_mask[0, 0, 1].any()


def test_a_missing_neighbour_is_wholly_masked_and_never_a_wrapped_row():
    chunks = make_chunks([4, 4, 4])
    dataset = SequenceDataset(chunks, sequence_chunks=1, database=chunks, neighbours=np.full((3, 2), -1))
    batch = dataset.assemble([0, 1, 2], 1)
    assert not batch.retrieved_mask.any()
    assert (batch.retrieved == END_OF_TEXT).all()


def test_a_continuation_never_crosses_into_another_document():
    chunks = make_chunks([8, 4, 4])
    dataset = SequenceDataset(chunks, sequence_chunks=1, database=chunks, neighbours=np.array([[2], [3], [0], [1]]))
    batch = dataset.assemble([2, 3], 1)
    assert batch.retrieved_mask[0, 0, 0].tolist() == [True] * 8
    assert batch.retrieved_mask[1, 0, 0].tolist() == [True] * 4 + [False] * 4


def test_targets_are_the_next_tokens_and_every_token_is_a_target_once():
    dataset, chunks, _ = make_dataset()
    found = []
    for batch in dataset.in_order(2):
        found += batch.targets.flatten().tolist()
    stream, real = chunks.tokens.flatten().tolist(), []
    for row, length in zip(chunks.tokens, chunks.lengths, strict=True):
        real += [position <= length for position in range(len(row))]
    expected = [token if is_real else NOT_PREDICTED for token, is_real in zip(stream, real, strict=True)]
    assert found == [*expected[1:], NOT_PREDICTED]


def test_only_the_first_pad_of_a_document_is_predicted():
    chunks = make_chunks([6, 4])
    batch = SequenceDataset(chunks, sequence_chunks=3).assemble([0], 3)
    second = chunks.tokens[1].tolist()
    assert batch.tokens[0, 4:8].tolist() == [*second[:2], END_OF_TEXT, END_OF_TEXT]
    assert batch.targets[0, 4:8].tolist() == [second[1], END_OF_TEXT, NOT_PREDICTED, int(chunks.tokens[2, 0])]


def test_bytes_of_all_batches_add_up_to_those_of_the_split():
    dataset, chunks, _ = make_dataset()
    assert sum(int(batch.num_bytes.sum()) for batch in dataset.in_order(2)) == int(chunks.num_bytes.sum())


def test_in_order_serves_a_shorter_last_sequence():
    dataset, chunks, _ = make_dataset(sequence_chunks=5)
    tokens = np.concatenate([batch.tokens.numpy().ravel() for batch in dataset.in_order(3)])
    assert len(chunks) % 5
    assert tokens.tolist() == chunks.tokens.ravel().tolist()


def test_validation_chunks_read_another_store():
    database, valid = make_chunks([8, 8]), make_chunks([4, 4], first_document=2, seed=9)
    dataset = SequenceDataset(valid, sequence_chunks=2, database=database, neighbours=np.array([[0], [3]]))
    batch = dataset.assemble([0], 2)
    assert batch.retrieved[0, 0, 0].tolist() == database.tokens[:2].ravel().tolist()
    assert batch.retrieved[0, 1, 0, :4].tolist() == database.tokens[3].tolist()


def test_a_share_of_chunks_gets_random_neighbours_whatever_the_batch():
    chunks = make_chunks([4] * 300)
    neighbours = np.full((300, 2), 299)

    def dataset(share, seed=3):
        return SequenceDataset(
            chunks, sequence_chunks=2, database=chunks, neighbours=neighbours, random_share=share, seed=seed
        )

    starts = np.arange(0, 200, 2)
    usual, some = dataset(0.0).assemble(starts, 2), dataset(0.2).assemble(starts, 2)
    assert usual.is_random is None and 25 <= int(some.is_random.sum()) <= 55
    assert torch.equal((some.retrieved != usual.retrieved).flatten(2).any(2), some.is_random)
    row = int(some.is_random.any(1).nonzero()[0])
    alone = dataset(0.2).assemble(starts[row : row + 1], 2)
    assert torch.equal(alone.retrieved[0], some.retrieved[row])
    assert not torch.equal(dataset(0.2, seed=4).assemble(starts, 2).retrieved, some.retrieved)
    every = dataset(1.0).assemble(starts, 2)
    assert len(every.retrieved[..., 0].unique()) > 150
    assert torch.equal(every.tokens, usual.tokens) and torch.equal(every.targets, usual.targets)
    one = make_chunks([8])  # whose only document stays masked
    alone = SequenceDataset(one, sequence_chunks=2, database=one, neighbours=np.full((2, 2), -1), random_share=1.0)
    assert not alone.assemble([0], 2).retrieved_mask.any()


def test_windows_of_a_chunk_s_length_read_what_the_chunks_read_and_shorter_steps_read_more():
    dataset, chunks, neighbours = make_dataset()
    last = len(chunks) // 3
    padded = np.full((3 * (last + 1), 2), -1)
    padded[: len(chunks)] = neighbours
    table = WindowTable(np.arange(last + 1), padded.reshape(last + 1, 3, 2), step=4)
    windows = SequenceDataset(chunks, sequence_chunks=3, database=chunks, neighbours=table)
    for wanted, found in zip(dataset.in_order(2), windows.in_order(2), strict=True):
        assert torch.equal(wanted.retrieved, found.retrieved)
        assert torch.equal(wanted.retrieved_mask, found.retrieved_mask)
    often = WindowTable(np.array([1, 3]), random_neighbours(10, chunks).reshape(2, 5, 2), step=2)
    batches = SequenceDataset(chunks, sequence_chunks=3, database=chunks, neighbours=often)
    assert next(batches.in_order(2, np.array([1, 3]))).retrieved.shape == (2, 5, 2, 8)
    with pytest.raises(ValueError, match="not all looked up"):
        batches.assemble([0], 3)


def test_without_neighbours_nothing_is_retrieved():
    batch = SequenceDataset(make_chunks([8]), sequence_chunks=2).assemble([0], 2)
    assert batch.retrieved is None and batch.retrieved_mask is None


def test_neighbours_of_another_split_are_refused():
    chunks = make_chunks(LENGTHS)
    neighbours = random_neighbours(len(chunks), chunks, seed=0)
    for wrong in (neighbours[:-1], np.concatenate([neighbours, neighbours[:1]])):
        with pytest.raises(ValueError, match=rf"neighbours: {len(wrong)} rows for {len(chunks)} chunks"):
            SequenceDataset(chunks, sequence_chunks=2, database=chunks, neighbours=wrong)


def test_an_empty_split_is_refused():
    empty = make_chunks([4])
    empty.tokens = empty.tokens[:0]
    with pytest.raises(CorpusError, match="no chunks"):
        SequenceDataset(empty, sequence_chunks=2)


@pytest.mark.parametrize("name", ["tokens", "lengths", "document_ids", "num_bytes"])
def test_a_file_that_is_cut_short_while_it_is_in_use_is_an_error_and_no_signal(tmp_path, name):
    """Reading it would end the process (SIGBUS)."""
    chunks = make_chunks([6, 4, 30] * 400)
    path = tmp_path / "chunks-x" / "train" / f"{name}.npy"
    path.parent.mkdir(parents=True)
    np.save(path, getattr(chunks, name))
    setattr(chunks, name, np.load(path, mmap_mode="r"))
    dataset = SequenceDataset(chunks, sequence_chunks=2)
    dataset.assemble([0, 3000], 2)
    os.truncate(path, 200)
    with pytest.raises(
        DamagedDataError, match=rf'{name}.npy" is damaged: it was truncated .*Delete the folder ".*chunks-x"'
    ):
        dataset.assemble([0, 3000], 2)


def test_neighbours_that_are_cut_short_are_noticed_too(tmp_path):
    chunks = make_chunks([6, 4, 30] * 400)
    path = tmp_path / "neighbours-x" / "train" / "ids.npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.zeros((len(chunks), 2), dtype=np.int64))
    dataset = SequenceDataset(chunks, sequence_chunks=2, database=chunks, neighbours=np.load(path, mmap_mode="r"))
    os.truncate(path, 200)
    with pytest.raises(DamagedDataError, match='ids.npy" is damaged: it was truncated'):
        dataset.assemble([3000], 2)
