"""Vectors to search in: the queries are not among them, and what is drawn is always the same."""

import numpy as np
import pytest

from retroflow.benchmarking.data import HeldOut, NpyRows, Source
from retroflow.errors import UsageError


def test_held_out_rows_are_left_out_of_every_block() -> None:
    source = np.arange(30, dtype=np.float32).reshape(15, 2)
    for rows in ([0], [14], [0, 1, 2], [3, 7, 8, 14], [0, 5, 10]):
        kept = np.delete(source, rows, axis=0)
        held = HeldOut(source, np.array(rows))
        assert held.shape == kept.shape
        for start in range(len(kept)):
            for stop in range(start, len(kept) + 1):
                assert np.array_equal(held[start:stop], kept[start:stop])


def test_queries_of_a_file_are_rows_of_it_that_are_not_searched(tmp_path) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float16)
    np.save(tmp_path / "mine.npy", vectors)
    data = Source(vectors=str(tmp_path / "mine.npy"), queries=7).open()
    assert data.name == "mine" and data.keys.shape == (43, 4) and data.queries.shape == (7, 4)
    together = np.concatenate([np.asarray(data.keys[0:43], np.float32), data.queries])
    assert np.array_equal(np.unique(together, axis=0), np.unique(vectors.astype(np.float32), axis=0))
    ids = np.array([[0, 42, -1], [7, 7, 3]])
    found = data.distances(ids)
    wanted = np.linalg.norm(np.asarray(data.keys[0:43], np.float32)[ids[1]] - data.queries[1], axis=1)
    assert found[0, 2] == np.inf and np.allclose(found[1], wanted)


def test_drawn_vectors_depend_on_the_seed_alone_and_have_length_one(tmp_path) -> None:
    def drawn(folder: str, seed: int = 0):
        return Source(random=(300, 16), queries=20, seed=seed, folder=str(tmp_path / folder)).open()

    first, again, other = drawn("a"), drawn("b"), drawn("a", seed=1)
    assert np.array_equal(first.keys[0:300], again.keys[0:300]) and first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert np.allclose(np.linalg.norm(first.keys[0:300].astype(np.float32), axis=1), 1.0, atol=2e-3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2), np.int32), "it holds int32 [3, 2]; vectors are float16 or float32 [rows, width]."),
        (np.zeros(6, np.float32), "it holds float32 [6]; vectors are float16 or float32"),
        (np.zeros((3, 2), np.float32, order="F"), "its order is Fortran's; save numpy.ascontiguousarray(vectors)."),
        (np.zeros((3, 2), np.float32), "queries=5: they are taken out of the 3 vectors, and at most half"),
    ],
)
def test_a_file_without_vectors_is_refused(tmp_path, array, message) -> None:
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(UsageError) as raised:
        Source(vectors=str(tmp_path / "v.npy"), queries=5).open()
    assert message in str(raised.value)


def test_what_is_no_file_of_numbers_is_refused(tmp_path) -> None:
    (tmp_path / "v.npy").write_text("no numbers")
    with pytest.raises(UsageError, match="not a .npy file of numbers"):
        NpyRows(tmp_path / "v.npy")
    with pytest.raises(UsageError, match="there is no such file"):
        NpyRows(tmp_path / "absent.npy")
    with pytest.raises(
        UsageError, match="^no vectors given; give one of vectors='FILE', database='DB' and random='N,D'.$"
    ):
        Source()
    with pytest.raises(UsageError, match="vectors and random given"):
        Source(vectors="v.npy", random=(2, 2))
