"""Microseconds that retroflow adds to a search with the raw library, one query at a time.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_wrapper.py hnsw faiss scann

The raw call and the checked one alternate on the same queries, so that a busy minute of the machine touches both. For
each query the fastest of all rounds counts; the median over the queries is printed, and that of the differences.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.components import create_retriever
from retroflow.testing.clustered import clustered_vectors

COUNT, DIMENSION, QUERIES, ROUNDS, K = 20_000, 384, 200, 30, 10


def raw_search(name: str, retriever: Any) -> Callable[[Any], Any]:
    """Return the library's own call, with the search options of the checked retriever."""
    if name == "hnsw":
        return lambda query: retriever._index.knn_query(query, k=K, num_threads=1)
    if name == "scann":
        return lambda query: retriever._searcher.search_batched(query, K, 100, 64)
    import faiss

    parameters = faiss.SearchParametersIVF(nprobe=64)
    return lambda query: retriever._kind.search(query, K, params=parameters)


def main() -> None:
    vectors, queries = clustered_vectors(COUNT, DIMENSION), clustered_vectors(QUERIES, DIMENSION, seed=1)
    for name in sys.argv[1:] or ["hnsw", "faiss", "scann"]:
        options = {"name": name, **({"search": {"num_threads": 1}} if name == "hnsw" else {})}
        built, checked = create_retriever(options), create_retriever(options)
        built.build(vectors)
        with tempfile.TemporaryDirectory() as folder:
            built.save(Path(folder) / "index")
            checked.load(Path(folder) / "index")
            calls = (
                raw_search(name, checked._retriever),
                lambda query, checked=checked: checked.search(query, K),
            )
            best = np.full((2, QUERIES), np.inf)
            for round_number in range(ROUNDS):
                for row in range(QUERIES):
                    query = queries[row : row + 1]
                    for which in (0, 1) if round_number % 2 else (1, 0):
                        started = time.perf_counter()
                        calls[which](query)
                        best[which, row] = min(best[which, row], time.perf_counter() - started)
        raw, ours = np.median(best, axis=1) * 1e6
        print(
            f"{name}: raw {raw:.1f}, checked {ours:.1f}, difference {np.median(best[1] - best[0]) * 1e6:.1f} microseconds"
        )


if __name__ == "__main__":
    main()
