"""Recall, queries per second, build seconds and bytes of retrievers, on embeddings given by file.

    python tests/benchmarks/bench_retrievers.py embeddings.npy
    python tests/benchmarks/bench_retrievers.py embeddings.npy --rounds 7 --json \
        exact faiss 'faiss:{"search": {"nprobe": 16}}' 'faiss:{"build": {"factory": "HNSW16"}}' usearch

A retriever is a name from `retroflow components`, with its recipe block as JSON after a colon if it is to differ from
the defaults. Queries are rows of the file, spread over it; a query's own row counts as a neighbour. Rounds are
interleaved (one search of each retriever, then the next round) so that a busy minute of the machine touches all of
them; the median is given with the spread between the fastest and the slowest round. Set OMP_NUM_THREADS before.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from retroflow.components import RETRIEVERS, create
from retroflow.protocols import Float32Array, Neighbours
from retroflow.retrieval.checked import CheckedRetriever


@dataclass
class Row:
    """One line of the table; seconds, bytes, and shares from 0 to 1."""

    retriever: str
    recall_at_2: float = 0.0
    recall_at_16: float = 0.0
    queries_per_second: float = 0.0
    slowest_to_fastest: str = ""
    build_seconds: float = 0.0
    load_seconds: float = 0.0
    file_bytes: int = 0
    seconds: list[float] = field(default_factory=list, repr=False)


def main() -> None:
    """Measure what the command line names and print a table, or JSON."""
    options = _options()
    vectors = np.load(options.embeddings, mmap_mode="r")
    queries = np.asarray(vectors[:: max(1, len(vectors) // options.queries)][: options.queries], dtype=np.float32)
    expected = _built("exact", vectors)[0].search(queries, 16)
    rows, searched = [], []
    for name in options.retrievers:
        retriever, row = _measured_build(name, vectors)
        row.recall_at_2 = _recall(retriever.search(queries, 2), expected, vectors, queries, 2)
        row.recall_at_16 = _recall(retriever.search(queries, 16), expected, vectors, queries, 16)
        rows.append(row)
        searched.append(retriever)
    for _ in range(options.rounds):
        for retriever, row in zip(searched, rows, strict=True):
            started = time.perf_counter()
            retriever.search(queries, 2)
            row.seconds.append(time.perf_counter() - started)
    for row in rows:
        rates = sorted(len(queries) / seconds for seconds in row.seconds)
        row.queries_per_second = statistics.median(rates)
        row.slowest_to_fastest = f"{rates[0]:.0f}..{rates[-1]:.0f}"
    _print(rows, vectors.shape, as_json=options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path, help=".npy of float16 or float32 [N, D]")
    parser.add_argument("retrievers", nargs="*", default=["exact", "faiss", "scann", "hnsw"])
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _built(specification: str, vectors: Float32Array) -> tuple[CheckedRetriever, float]:
    retriever = _made(specification)
    started = time.perf_counter()
    retriever.build(vectors)
    return retriever, time.perf_counter() - started


def _measured_build(specification: str, vectors: Float32Array) -> tuple[CheckedRetriever, Row]:
    """Build, save, and load again; search then runs on the built one."""
    retriever, build_seconds = _built(specification, vectors)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "index"
        retriever.save(saved)
        file_bytes = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
        started = time.perf_counter()
        _made(specification).load(saved)
        load_seconds = time.perf_counter() - started
    row = Row(specification, build_seconds=build_seconds, load_seconds=load_seconds, file_bytes=file_bytes)
    return retriever, row


def _made(specification: str) -> CheckedRetriever:
    name, _, block = specification.partition(":")
    retriever = create(RETRIEVERS, {"name": name, **(json.loads(block) if block else {})})
    return CheckedRetriever(retriever, owner=f"{name} ({RETRIEVERS.origin(name)})")


def _recall(found: Neighbours, expected: Neighbours, vectors: Float32Array, queries: Float32Array, k: int) -> float:
    """Share of the k found whose true distance is within that of the k-th true neighbour.

    By distance and not by id, for of two equal vectors either is right; computed here from the vectors, for the
    scores of a lossy index are rounded.
    """
    rows = vectors[np.maximum(found.ids[:, :k], 0)].astype(np.float32)  # [q, k, D]
    scores = -np.square(queries[:, None] - rows).sum(axis=2)
    return float(np.mean((scores >= expected.scores[:, k - 1 : k] - 1e-5) & (found.ids[:, :k] >= 0)))


def _print(rows: list[Row], shape: tuple[int, ...], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"shape": shape, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    print(f"embeddings {shape[0]} x {shape[1]}\n")
    print("| retriever | recall@2 | recall@16 | queries/s (slowest..fastest) | build s | load s | MB |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row.retriever} | {row.recall_at_2:.4f} | {row.recall_at_16:.4f} | {row.queries_per_second:.0f} "
            f"({row.slowest_to_fastest}) | {row.build_seconds:.1f} | {row.load_seconds:.2f} "
            f"| {row.file_bytes / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
