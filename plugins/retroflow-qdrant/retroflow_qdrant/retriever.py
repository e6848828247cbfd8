"""Qdrant as a retriever: the vectors are in collections of a server, and an index folder says in which.

A collection is not changed any more once an index is saved. Added keys get a collection of their own and removed ones
are passed over, so that every folder that was ever saved keeps its answers, and a change that is killed half-way
leaves the saved index as it was. When these become many, what is left is copied into one new collection.

In the embedded mode the library searches vectors in memory, exactly; the folder then holds them.

Shapes: q queries, N vectors, D embedding width, k neighbours.
"""

import json
import os
import uuid
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, MinLen
from qdrant_client import QdrantClient, models

from retroflow.console import say
from retroflow.errors import DamagedDataError, RetrieverError, RetroflowError, UsageError
from retroflow.protocols import Capabilities, Float32Array, Int64Array, KeySource, Neighbours, Queries
from retroflow_qdrant.connection import REBUILD, Connection, missing
from retroflow_qdrant.indexing import wait_until_indexed

FILE, REMOVED_FILE, IDS_FILE, VECTORS_FILE = "qdrant.json", "removed.npy", "ids.npy", "vectors.npy"
READ_ROWS = 4_096
REQUEST_VALUES = 2**17  # floats of one request, about 2.5 MB of JSON; a server takes 32 MB
REQUEST_POINTS = 2_048
ANSWER_POINTS = 2**15  # of the answer to one request
MOST_PARTS, MOST_REMOVED = 8, 10_000  # of a search, before what is left is copied into one collection
MOST_COLUMNS = 65_536  # of a vector, a limit of Qdrant


@dataclass(frozen=True, kw_only=True)
class QdrantBuild:
    """Options that change the index.

    Attributes:
        metric: "l2" (minus the squared distance) or "inner_product".
        dtype: how the server keeps vectors; "float16" takes half the memory, and is what an embedding store holds.
        m: links of a vertex of the HNSW graph.
        ef_construct: candidates kept while inserting.
        on_disk: the server maps the vectors from disk instead of holding them in memory.
    """

    metric: Literal["l2", "inner_product"] = "l2"
    dtype: Literal["float32", "float16"] = "float32"
    m: Annotated[int, Ge(2)] = 16
    ef_construct: Annotated[int, Ge(4)] = 128
    on_disk: bool = False


@dataclass(frozen=True, kw_only=True)
class QdrantSearch:
    """Options that never change the index.

    Attributes:
        ef: candidates kept while walking the graph; at least k is used.
        exact: compare with every vector; equal scores are then ordered by id.
        timeout: seconds that the server may take for an answer, also while building.
        retries: how often a request is sent again that found no server or a busy one, also while building.
    """

    ef: Annotated[int, Ge(1)] = 128
    exact: bool = False
    timeout: Annotated[int, Ge(1)] = 60
    retries: Annotated[int, Ge(0)] = 5


@dataclass
class _Part:
    """A collection with the keys first <= id < stop, without those that were deleted from it.

    Attributes:
        points: how many keys it holds.
        is_saved: a saved index needs it, so it may not be changed.
    """

    collection: str
    first: int
    stop: int
    points: int
    is_saved: bool


class QdrantRetriever:
    """Search by a Qdrant server.

    Args:
        url: of the server's HTTP port, or ":memory:" for the library's embedded mode. The API key, if the server
            wants one, is in the environment variable QDRANT_API_KEY.
        collection: what the names of collections begin with; each ends with an id of its own.
    """

    def __init__(
        self,
        *,
        url: Annotated[str, MinLen(1)] = "http://localhost:6333",
        collection: Annotated[str, MinLen(1)] = "retroflow",
        build: QdrantBuild | None = None,
        search: QdrantSearch | None = None,
    ) -> None:
        if not all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in collection):
            raise UsageError(f'retriever.collection is "{collection}"; allowed: ASCII letters, digits, "-", "_", ".".')
        self._build, self._search, self._prefix = build or QdrantBuild(), search or QdrantSearch(), collection
        self._server = Connection(url, timeout=self._search.timeout, retries=self._search.retries)
        exact = self._search.exact or self._server.is_embedded
        self.capabilities = Capabilities(
            metric=self._build.metric,
            exact=exact and self._build.dtype == "float32",
            deterministic=exact,
            fork_safe=True,
            add=True,
            remove=True,
            device="cpu" if self._server.is_embedded else "remote",
        )
        self._parts: list[_Part] = []
        self._removed = np.zeros(0, np.int64)  # ascending; of keys that are still in a collection
        self._dimension, self._next_id = 0, 0
        self._unsaved: set[str] = set()
        weakref.finalize(self, _delete_all, self._server, self._unsaved, os.getpid())

    def check_vectors(self, count: int | None, dimension: int) -> None:
        """Refuse vectors that Qdrant cannot hold, and say early that no server is there; see `ChecksVectors`.

        It is no error: whoever only trains on prepared neighbours needs no server.
        """
        if dimension > MOST_COLUMNS:
            raise UsageError(f"qdrant: vectors have {dimension:,} columns, and Qdrant holds at most {MOST_COLUMNS:,}.")
        if count is None and not self._server.is_reachable():
            say(f"qdrant: no server answers at {self._server.url}; it is needed to build and to search the index")

    def build(self, keys: KeySource) -> None:
        """Make a collection of vectors [N, D], block by block, and wait for the server to index it."""
        _delete_all(self._server, self._unsaved, os.getpid())
        self._dimension, self._next_id = keys.vectors.shape[1], 0
        self._parts, self._removed = [], np.zeros(0, np.int64)
        self.add(keys)

    def add(self, keys: KeySource) -> None:
        """Insert further vectors [M, D]; see `AddsKeys`."""
        self._join_if_many()
        if not self._parts or self._parts[-1].is_saved:
            self._parts.append(self._new_part(self._next_id))
        part, vectors = self._parts[-1], keys.vectors
        for start in range(0, len(vectors), READ_ROWS):
            block = np.asarray(vectors[start : start + READ_ROWS], dtype=np.float32)
            self._upload(part, np.arange(self._next_id, self._next_id + len(block)), block)
            self._next_id += len(block)
        part.stop = self._next_id
        self._settle(part)

    def remove(self, ids: Int64Array) -> None:
        """Remove vectors; the server keeps their bytes until it copies what is left; see `RemovesKeys`."""
        for part in self._parts:
            inside = ids[(ids >= part.first) & (ids < part.stop)]
            if part.is_saved:
                self._removed = np.union1d(self._removed, inside)
                continue
            for start in range(0, len(inside), REQUEST_POINTS):
                selector = models.PointIdsList(points=inside[start : start + REQUEST_POINTS].tolist())
                self._ask("removing", part, lambda client, name, which=selector: client.delete(name, which, wait=True))
            part.points -= len(inside)
        self._join_if_many()

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Search queries float32 [q, D]; several threads may search at once."""
        if not self._dimension:
            raise RetrieverError("qdrant: build() or load() comes before search().")
        vectors = queries.vectors
        ids = np.full((len(vectors), k), -1, np.int64)
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        limit = k + 1 if self.capabilities.deterministic else k  # one more tells whether others are as near as the last
        values = self._dimension + len(self._removed)  # of a query: its vector, and what it may not find
        rows = max(1, min(ANSWER_POINTS // limit, REQUEST_VALUES // values, READ_ROWS))
        for start in range(0, len(vectors), rows):
            for row, (found, near) in enumerate(self._nearest(vectors[start : start + rows], limit), start=start):
                while len(near) > k and near[k] == near[k - 1] and self.capabilities.deterministic:
                    # Any of them could be the k-th: see all, so that those with the least ids are taken.
                    asked = len(near)
                    [(found, near)] = self._nearest(vectors[row : row + 1], 4 * asked)
                    if len(near) < 4 * asked or near[-1] < near[k - 1]:
                        break
                ids[row, : len(found)], scores[row, : len(near)] = found[:k], near[:k]
        return Neighbours(ids, scores)

    def _nearest(self, queries: Float32Array, limit: int) -> list[tuple[Int64Array, Float32Array]]:
        """Return ids and scores of the nearest of each query, over all parts, best first, equal ones by id."""
        parameters = None  # the embedded mode has none, and warns
        if not self._server.is_embedded:
            parameters = models.SearchParams(hnsw_ef=max(self._search.ef, limit), exact=self._search.exact)
        answers = []
        for part in self._parts:
            if not part.points:
                continue
            gone = self._removed[(self._removed >= part.first) & (self._removed < part.stop)].tolist()
            without = models.Filter(must_not=[models.HasIdCondition(has_id=gone)]) if gone else None
            requests = [
                models.QueryRequest(query=query, limit=limit, params=parameters, filter=without)
                for query in queries.tolist()
            ]
            answers.append(
                self._ask("searching", part, lambda client, name, all=requests: client.query_batch_points(name, all))
            )
        merged = []
        for row in range(len(queries)):
            points = [point for answer in answers for point in answer[row].points]
            found = np.array([point.id for point in points], np.int64)
            near = self._scores(np.array([point.score for point in points], np.float64))
            order = np.lexsort((found, -near))[:limit]
            merged.append((found[order], near[order]))
        return merged

    def _scores(self, values: Any) -> Float32Array:
        """Return scores of what Qdrant answers: the distance, not its square, or the product."""
        scores: Float32Array = (-np.square(values) if self._build.metric == "l2" else values).astype(np.float32)
        return scores

    def save(self, folder: Path) -> None:
        """Write which collections the index is in; from now on they are not changed."""
        if not self._dimension:
            raise RetrieverError("qdrant: build() or load() comes before save().")
        if self._server.is_embedded:
            blocks = [block for part in self._parts for block in self._read(part)]
            empty = (np.zeros(0, np.int64), np.zeros((0, self._dimension), np.float32))
            ids, vectors = (np.concatenate(arrays) for arrays in zip(empty, *blocks, strict=True))
            np.save(folder / IDS_FILE, ids)
            np.save(folder / VECTORS_FILE, vectors)
        np.save(folder / REMOVED_FILE, self._removed)
        parts = [] if self._server.is_embedded else self._parts
        names = ("collection", "first", "stop", "points")
        description = {
            "dimension": self._dimension,
            "next_id": self._next_id,
            "embedded": self._server.is_embedded,
            "parts": [{name: getattr(part, name) for name in names} for part in parts],
        }
        (folder / FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for part in parts:
            part.is_saved = True
            self._unsaved.discard(part.collection)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, and look whether the server has what it names."""
        try:
            description = json.loads((folder / FILE).read_text(encoding="utf-8"))
            parts = [_Part(**part, is_saved=True) for part in description["parts"]]
            removed = np.load(folder / REMOVED_FILE, allow_pickle=False)
            dimension, next_id, embedded = (description[name] for name in ("dimension", "next_id", "embedded"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedDataError(f'qdrant: "{folder}" holds no readable index: {error}') from error
        if embedded != self._server.is_embedded:
            built, now = ("the embedded mode", "a server") if embedded else ("a server", "the embedded mode")
            raise UsageError(f"qdrant: the index was built with {built}, and retriever.url names {now}. {REBUILD}.")
        for part in parts:
            self._check(part, dimension)
        _delete_all(self._server, self._unsaved, os.getpid())
        self._parts, self._removed, self._dimension, self._next_id = parts, removed, dimension, next_id
        if embedded:
            self._load_embedded(folder)

    def _load_embedded(self, folder: Path) -> None:
        try:
            ids, vectors = (np.load(folder / name, allow_pickle=False) for name in (IDS_FILE, VECTORS_FILE))
        except (OSError, ValueError) as error:
            raise DamagedDataError(f'qdrant: "{folder}" holds no readable vectors: {error}') from error
        part = self._new_part(0)
        for start in range(0, len(ids), READ_ROWS):
            self._upload(part, ids[start : start + READ_ROWS], vectors[start : start + READ_ROWS])
        part.stop, self._parts = self._next_id, [part]

    def fingerprint(self) -> dict[str, object]:
        """The client's version (major.minor); retroflow adds the options, the server's address among them."""
        return {"qdrant-client": ".".join(version("qdrant-client").split(".")[:2])}

    def _ask(self, doing: str, part: _Part, request: Any) -> Any:
        return self._server.call(doing, lambda client: request(client, part.collection), collection=part.collection)

    def _new_part(self, first: int) -> _Part:
        """Create an empty collection, which is deleted with this object unless it is saved."""
        part = _Part(f"{self._prefix}-{uuid.uuid4().hex}", first, first, 0, is_saved=False)
        build = self._build
        parameters = models.VectorParams(
            size=self._dimension,
            distance=models.Distance.EUCLID if build.metric == "l2" else models.Distance.DOT,
            datatype=models.Datatype(build.dtype),
            on_disk=build.on_disk,
        )
        graph = models.HnswConfigDiff(m=build.m, ef_construct=build.ef_construct)

        def create(client: QdrantClient) -> None:
            if not client.collection_exists(part.collection):  # it exists if the answer to an earlier try was lost
                client.create_collection(part.collection, vectors_config=parameters, hnsw_config=graph)

        self._unsaved.add(part.collection)
        self._server.call("creating a collection", create)
        return part

    def _upload(self, part: _Part, ids: Int64Array, vectors: Float32Array) -> None:
        rows = max(1, min(REQUEST_VALUES // self._dimension, REQUEST_POINTS))
        for start in range(0, len(ids), rows):
            batch = models.Batch(ids=ids[start : start + rows].tolist(), vectors=vectors[start : start + rows].tolist())
            self._ask("sending vectors", part, lambda client, name, all=batch: client.upsert(name, all, wait=True))
        part.points += len(ids)

    def _read(self, part: _Part) -> Iterator[tuple[Int64Array, Float32Array]]:
        """Read the keys of a collection in blocks, with those that were removed."""
        rows, offset = max(1, min(REQUEST_VALUES // self._dimension, REQUEST_POINTS)), None
        while True:

            def scroll(client: QdrantClient, name: str, at: Any = offset) -> Any:
                return client.scroll(name, limit=rows, offset=at, with_payload=False, with_vectors=True)

            points, offset = self._ask("reading vectors", part, scroll)
            if points:
                ids = np.array([point.id for point in points], np.int64)
                yield ids, np.array([point.vector for point in points], np.float32)
            if offset is None:
                return

    def _join_if_many(self) -> None:
        """Copy what is left into one new collection if a search would have to ask many, or to pass over much."""
        if len(self._parts) <= MOST_PARTS and len(self._removed) <= MOST_REMOVED:
            return
        whole = self._new_part(0)
        for part in self._parts:
            for ids, vectors in self._read(part):
                kept = ~np.isin(ids, self._removed)
                self._upload(whole, ids[kept], vectors[kept])
        whole.stop = self._next_id
        self._settle(whole)
        self._parts, self._removed = [whole], np.zeros(0, np.int64)

    def _settle(self, part: _Part) -> None:
        """Wait until the server has indexed a collection, and see that it holds what was sent."""
        if not self._server.is_embedded:
            wait_until_indexed(
                lambda: self._ask("indexing", part, lambda client, name: client.get_collection(name)),
                collection=f'"{part.collection}" at {self._server.url}',
                points=part.points,
                timeout=self._search.timeout,
            )
        self._check(part, self._dimension)

    def _check(self, part: _Part, dimension: int) -> None:
        """Refuse a collection that is not the one that was built."""

        def look(client: QdrantClient, name: str) -> tuple[Any, int] | None:
            if not client.collection_exists(name):
                return None
            return client.get_collection(name).config.params.vectors, client.count(name, exact=True).count

        found = self._ask("opening a collection", part, look)
        if found is None:
            raise missing(part.collection, self._server.url)
        vectors, points = found
        distance = models.Distance.EUCLID if self._build.metric == "l2" else models.Distance.DOT
        where = f'qdrant: the collection "{part.collection}" at {self._server.url}'
        if not isinstance(vectors, models.VectorParams) or (vectors.size, vectors.distance) != (dimension, distance):
            single = isinstance(vectors, models.VectorParams)
            has = f"vectors with {vectors.size} columns, compared by {vectors.distance.value}" if single else "others"
            raise DamagedDataError(
                f"{where} has {has}; those of the index have {dimension} columns, compared by {distance.value}. "
                f"{REBUILD}."
            )
        if points != part.points:
            raise DamagedDataError(f"{where} holds {points:,} of the {part.points:,} vectors of the index. {REBUILD}.")


def _delete_all(server: Connection, collections: set[str], process_id: int) -> None:
    """Delete collections that no saved index needs; not in a forked process, whose parent still has them."""
    if os.getpid() != process_id:
        return
    names, answers = list(collections), bool(collections) and server.is_reachable()
    collections.clear()
    for name in names if answers else ():
        with suppress(RetroflowError):
            server.call("deleting a collection", partial(_delete, name))


def _delete(name: str, client: QdrantClient) -> None:
    client.delete_collection(name)
