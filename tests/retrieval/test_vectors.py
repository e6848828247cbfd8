"""CheckedSource tells the author of a retriever what vectors are, where they are taken for an array."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retroflow.errors import RetrieverError
from retroflow.protocols import Capabilities, KeySource, Neighbours, Queries
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.vectors import CheckedSource


class Careless:
    """A retriever that does something else with its vectors than to slice them."""

    def __init__(self, use: Callable[[Any], object]) -> None:
        self.capabilities = Capabilities()
        self._use = use

    def build(self, keys: KeySource) -> None:
        self._use(keys.vectors)

    def search(self, queries: Queries, k: int) -> Neighbours:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        raise NotImplementedError

    def fingerprint(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda vectors: vectors[0], r"vectors\[0\]: vectors are read by slices alone, vectors\[start:stop\]"),
        (lambda vectors: vectors[[1, 2]], r"vectors\[\[1, 2\]\]: vectors are read by slices alone"),
        (lambda vectors: vectors[:, 0], r"vectors are read by slices alone"),
        (list, r"vectors\[0\]: vectors are read by slices alone"),
        (np.asarray, r"vectors are no array, for they may be larger than memory: read and copy blocks"),
        (lambda vectors: np.array(vectors, dtype=np.float32), "vectors are no array"),
        (lambda vectors: vectors.dtype, r"vectors\.dtype: vectors have shape, len\(\) and slices and nothing else"),
        (lambda vectors: vectors.astype(np.float32), r"vectors\.astype: vectors have shape"),
    ],
)
def test_a_retriever_that_takes_vectors_for_an_array_is_told_what_they_are(
    use: Callable[[Any], object], message: str
) -> None:
    retriever = CheckedRetriever(Careless(use), owner="theirs (package 1.0)")
    with pytest.raises(RetrieverError, match=rf"theirs \(package 1\.0\).*build\(\) failed: .*{message}"):
        retriever.build(np.ones((3, 2), np.float32))


def test_what_libraries_look_for_is_not_there() -> None:
    vectors = CheckedSource(np.ones((3, 2), np.float32))
    assert not hasattr(vectors, "dtype") and not hasattr(vectors, "__array_interface__")
    assert copy.copy(vectors)[0:1].shape == (1, 2)
