"""LanceDB as a retriever for retroflow: vectors in columnar files on disk, searched there, with or without an index.

Nothing of a saved index is changed: what is added or removed after `load` is so in a copy in the folder of temporary
files. Data files, which Lance never writes again, are linked there where the file system allows it.

Shapes: q queries, N vectors, D embedding width, k neighbours.
"""

import math
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import lancedb
import numpy as np
import pyarrow as pa
from annotated_types import Ge
from lancedb import index as kinds

from retroflow.errors import DamagedDataError, RetrieverError
from retroflow.protocols import Capabilities, Float32Array, Int64Array, KeySource, Neighbours, Queries, VectorSource

TABLE, NEXT_ID_FILE = "keys", "next_id.txt"
READ_ROWS = 16_384
QUERY_ROWS = 256
ANSWER_ROWS = 2**20
DELETED_IDS = 10_000  # of one condition
FEWEST_INDEXED = 20_000  # from here on a search of an index takes a tenth of the time
PQ_COLUMNS = 4  # of a vector in a byte of "ivf_pq"; Lance's own choice of 16 loses too much
WRITTEN_ONCE = ("data", "_indices")


@dataclass(frozen=True, kw_only=True)
class LanceBuild:
    """Options that change the index.

    Attributes:
        metric: "l2" (minus the squared distance) or "inner_product".
        dtype: how vectors are kept; "float16" is what an embedding store holds, at half the bytes of "float32".
        index: "none" compares every vector; "auto" is "none" below 20,000 vectors, else "ivf_flat"; "ivf_pq" and
            "ivf_hnsw_sq" also keep codes of a few bytes, and order their candidates by the vectors.
        partitions: of an index; 0 for the square root of N.
    """

    metric: Literal["l2", "inner_product"] = "l2"
    dtype: Literal["float32", "float16"] = "float32"
    index: Literal["auto", "none", "ivf_flat", "ivf_pq", "ivf_hnsw_sq"] = "auto"
    partitions: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True, kw_only=True)
class LanceSearch:
    """Options that change recall and speed of a search, never the index.

    Attributes:
        nprobes: partitions of an index that are searched.
        refine: candidates by codes, as a multiple of k, that are compared by their vectors.
        exact: compare every vector, even if there is an index.
    """

    nprobes: Annotated[int, Ge(1)] = 32
    refine: Annotated[int, Ge(1)] = 10
    exact: bool = False


class LanceRetriever:
    """Search by LanceDB."""

    def __init__(self, *, build: LanceBuild | None = None, search: LanceSearch | None = None) -> None:
        self._build = build or LanceBuild()
        self._search = search or LanceSearch()
        self._distance = "l2" if self._build.metric == "l2" else "dot"
        always_all = self._build.index == "none" or self._search.exact
        self.capabilities = Capabilities(
            metric=self._build.metric,
            exact=always_all and self._build.dtype == "float32",
            deterministic=always_all,  # Lance draws the first centroids without a seed
            fork_safe=False,  # its threads do not survive a fork
            add=True,
            remove=True,
        )
        self._table: Any = None
        self._folder, self._is_own, self._is_changed, self._is_indexed = Path(), False, False, False
        self._next_id, self._dimension = 0, 0
        self._remove_own: Callable[[], object] = list

    def build(self, keys: KeySource) -> None:
        """Write vectors [N, D] block by block into a folder of temporary files, and index them."""
        self._use_own_folder()
        self._dimension, self._next_id = keys.vectors.shape[1], len(keys)
        database = lancedb.connect(self._folder)
        self._table = database.create_table(TABLE, self._batches(keys.vectors, 0), schema=self._schema)
        kind = self._build.index
        if kind == "auto":
            kind = "ivf_flat" if len(keys) >= FEWEST_INDEXED else "none"
        if kind != "none":
            self._table.create_index("vector", config=self._index(kind))
        self._is_changed, self._is_indexed = True, kind != "none"

    def _index(self, kind: str) -> Any:
        options: dict[str, Any] = {
            "distance_type": self._distance,
            "num_partitions": self._build.partitions or max(1, math.isqrt(self._next_id)),
        }
        if kind == "ivf_pq" and self._dimension % PQ_COLUMNS == 0:
            options["num_sub_vectors"] = self._dimension // PQ_COLUMNS
        return {"ivf_flat": kinds.IvfFlat, "ivf_pq": kinds.IvfPq, "ivf_hnsw_sq": kinds.IvfHnswSq}[kind](**options)

    def add(self, keys: KeySource) -> None:
        """Append further vectors [M, D]; see `AddsKeys`."""
        self._make_own()
        reader = pa.RecordBatchReader.from_batches(self._schema, self._batches(keys.vectors, self._next_id))
        self._table.add(reader)
        self._next_id += len(keys)

    def remove(self, ids: Int64Array) -> None:
        """Mark vectors as deleted; `save` rewrites files of which much is; see `RemovesKeys`."""
        self._make_own()
        for start in range(0, len(ids), DELETED_IDS):
            self._table.delete(f"key IN ({', '.join(map(str, ids[start : start + DELETED_IDS].tolist()))})")

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Search queries float32 [q, D]; several threads may search at once."""
        if self._table is None:
            raise RetrieverError("lancedb: build() or load() comes before search().")
        vectors = queries.vectors
        ids = np.full((len(vectors), k), -1, np.int64)
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        is_exact = self._search.exact or not self._is_indexed
        limit = k + 1 if is_exact else k  # one more tells whether others are as near as the last
        rows = max(1, min(QUERY_ROWS, ANSWER_ROWS // limit))
        for start in range(0, len(vectors), rows):
            for row, (found, near) in enumerate(self._nearest(vectors[start : start + rows], limit), start=start):
                while is_exact and len(near) > k and near[k] == near[k - 1]:
                    # Any of them could be the k-th: see all, so that those with the least ids are taken.
                    asked = 4 * len(near)
                    [(found, near)] = self._nearest(vectors[row : row + 1], asked)
                    if len(near) < asked or near[-1] < near[k - 1]:
                        break
                ids[row, : len(found)], scores[row, : len(near)] = found[:k], near[:k]
        return Neighbours(ids, scores)

    def _nearest(self, queries: Float32Array, limit: int) -> Iterator[tuple[Int64Array, Float32Array]]:
        """Yield ids and scores of the nearest of each query, best first, equal ones by id."""
        asked = self._table.search(list(queries)).distance_type(self._distance).select(["key", "_distance"])
        asked = asked.limit(limit).nprobes(self._search.nprobes)
        if self._search.exact:
            asked = asked.bypass_vector_index()
        elif self._build.index in ("ivf_pq", "ivf_hnsw_sq"):
            asked = asked.refine_factor(self._search.refine)
        answer = asked.to_arrow()
        keys, distances = answer["key"].to_numpy(), answer["_distance"].to_numpy().astype(np.float32)
        # Lance's distance is the squared one, or 1 minus the product.
        scores = np.minimum(-distances, 0) if self._build.metric == "l2" else 1 - distances
        numbers = answer["query_index"].to_numpy() if len(queries) > 1 else np.zeros(len(keys), np.int64)
        order = np.lexsort((keys, -scores, numbers))
        edges = np.searchsorted(numbers[order], np.arange(len(queries) + 1))
        for first, stop in pairwise(edges):
            yield keys[order[first:stop]], scores[order[first:stop]]

    def save(self, folder: Path) -> None:
        """Copy the table into folder, without its earlier versions, and write the next id, which it does not keep."""
        if self._table is None:
            raise RetrieverError("lancedb: build() or load() comes before save().")
        if self._is_own and self._is_changed:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that others may use older versions; nobody can
                self._table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
            self._is_changed = False
        _copy(self._folder, folder)
        (folder / NEXT_ID_FILE).write_text(f"{self._next_id}\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Open what `save` wrote, where it is."""
        try:
            next_id = int((folder / NEXT_ID_FILE).read_text(encoding="utf-8"))
            # By a path, connect() would make the folder, and an index may be where nothing can be written.
            table = lancedb.connect(f"file-object-store://{quote(folder.absolute().as_posix())}").open_table(TABLE)
            dimension, is_indexed = table.schema.field("vector").type.list_size, bool(table.list_indices())
        except Exception as error:  # Lance raises OSError, ValueError, RuntimeError and FileNotFoundError
            raise DamagedDataError(f'lancedb: "{folder}" holds no readable table: {error}') from error
        self._remove_own()
        self._table, self._folder, self._is_own, self._is_changed = table, folder, False, False
        self._next_id, self._dimension, self._is_indexed = next_id, dimension, is_indexed

    def fingerprint(self) -> dict[str, object]:
        """The library's version (major.minor); retroflow adds the options."""
        return {"lancedb": ".".join(version("lancedb").split(".")[:2])}

    @property
    def _schema(self) -> pa.Schema:
        values = pa.float32() if self._build.dtype == "float32" else pa.float16()
        return pa.schema([("key", pa.int64()), ("vector", pa.list_(values, self._dimension))])

    def _batches(self, vectors: VectorSource, next_id: int) -> Iterator[pa.RecordBatch]:
        """Yield vectors with their ids, block by block."""
        for start in range(0, len(vectors), READ_ROWS):
            block = np.ascontiguousarray(vectors[start : start + READ_ROWS], dtype=self._build.dtype)
            rows = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), self._dimension)
            ids = pa.array(np.arange(next_id + start, next_id + start + len(block)))
            yield pa.record_batch([ids, rows], schema=self._schema)

    def _use_own_folder(self) -> None:
        self._remove_own()
        self._folder, self._is_own = Path(tempfile.mkdtemp(prefix="retroflow-lancedb-")), True
        self._remove_own = weakref.finalize(self, _remove_folder, self._folder, os.getpid())

    def _make_own(self) -> None:
        """Copy a loaded table before it is changed."""
        if not self._is_own:
            saved = self._folder
            self._use_own_folder()
            _copy(saved, self._folder)
            self._table = lancedb.connect(self._folder).open_table(TABLE)
        self._is_changed = True


def _copy(source: Path, target: Path) -> None:
    """Copy the table; files that Lance never writes again are linked where that is possible."""
    root = source / f"{TABLE}.lance"

    def link_or_copy(path: str, copy: str) -> None:
        if Path(path).relative_to(root).parts[0] in WRITTEN_ONCE:
            try:
                os.link(path, copy)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, copy)
        else:
            shutil.copyfile(path, copy)

    shutil.copytree(root, target / root.name, copy_function=link_or_copy)


def _remove_folder(folder: Path, process_id: int) -> None:
    """Remove temporary files; not in a forked process, whose parent still has them."""
    if os.getpid() == process_id:
        shutil.rmtree(folder, ignore_errors=True)
