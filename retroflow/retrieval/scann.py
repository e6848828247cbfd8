"""ScaNN: a tree, anisotropic hashing, then re-ordering by exact distance; brute force for few vectors.

This file hides the peculiarities of ScaNN: id 0 with NaN if there is no neighbour, all vectors in float32 in memory
while building, an abort of the process on NaN (the caller has refused them), absolute paths in its files by default,
builds that differ from run to run.

Shapes: q queries, N vectors, D embedding width, k neighbours.
"""

import json
import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import scann  # type: ignore[import-untyped]
from annotated_types import Ge, Le

from retroflow.errors import DamagedDataError, RetrieverError, UsageError
from retroflow.options import checked_options
from retroflow.protocols import Capabilities, Float32Array, IndexOutline, KeySource, Neighbours, Queries

FOLDER = "searcher"
DESCRIPTION_FILE = "scann.json"
COPY_ROWS = 65_536
LARGEST_COUNT = 2**32 - 1

SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Values of `search.leaves_to_search` that `retroflow bench` measures."""

_TRAINING_BYTES = 512 << 20
"""While the tree and the codes are trained; with it the formula gives 5.7 GiB at 1,000,000 x 384, as was measured
(docs/benchmarks/2026-11-27-retrievers.md), and 0.65 at 20,000, where 0.55 were."""


@checked_options("retriever.build")
@dataclass(frozen=True, kw_only=True)
class ScannBuild:
    """Options that change the index.

    Attributes:
        metric: "l2" (minus the squared distance) or "inner_product". Prefer l2 for unit vectors, whose ranking is
            the same: at equal work its recall is higher (.990 against .879 at 500,000 vectors).
        brute_force_below: no tree for fewer vectors than this (at least 1,000: a tree needs enough to train on).
        num_leaves: leaves of the tree; 0 = 4 sqrt(N).
        dimensions_per_block: dimensions hashed together, 2 is the finest.
        anisotropic_threshold: weight of the error parallel to a vector in hashing.
        train_sample: vectors that the tree is trained on.
        num_threads: training threads.
    """

    metric: Literal["l2", "inner_product"] = "l2"
    brute_force_below: Annotated[int, Ge(0)] = 5_000
    num_leaves: Annotated[int, Ge(0)] = 0
    dimensions_per_block: Annotated[int, Ge(1)] = 2
    anisotropic_threshold: float = 0.2
    train_sample: Annotated[int, Ge(1)] = 250_000
    num_threads: Annotated[int, Ge(1), Le(1024)] = 1


@checked_options("retriever.search")
@dataclass(frozen=True, kw_only=True)
class ScannSearch:
    """Options that change recall and speed of a search, never the index; without effect on brute force.

    Attributes:
        leaves_to_search: leaves visited.
        reorder: candidates whose distance is computed again exactly; at least k is used.
    """

    leaves_to_search: Annotated[int, Ge(1)] = 64
    reorder: Annotated[int, Ge(1)] = 100


class ScannRetriever:
    """Search by ScaNN. Its builds cannot be repeated bit by bit: the library takes no seed."""

    def __init__(self, *, build: ScannBuild | None = None, search: ScannSearch | None = None) -> None:
        self._build = build or ScannBuild()
        self._search = search or ScannSearch()
        self._searcher: Any = None
        self._is_tree = False
        self.capabilities = Capabilities(metric=self._build.metric, exact=False, deterministic=False, fork_safe=True)

    def check_vectors(self, count: int | None, dimension: int) -> None:
        """Refuse more vectors than ScaNN holds, and too small a sample to train its tree on."""
        if count is None:
            return
        if count > LARGEST_COUNT:
            raise UsageError(f'retriever "scann" holds at most {LARGEST_COUNT} vectors, not {count}; use "faiss".')
        sample, leaves = min(count, self._build.train_sample), self._leaves(count)
        if self._wants_tree(count) and sample < leaves:
            raise UsageError(
                f"retriever.build.train_sample is {self._build.train_sample}, fewer than the {leaves} leaves of the "
                f"tree over {count} vectors; raise it, or lower retriever.build.num_leaves."
            )

    def outline(self, count: int, dimension: int) -> IndexOutline:
        """As in `OutlinesIndex`: the vectors as float32, three times while building; half a byte a block as codes."""
        plain = 4 * count * dimension
        if not self._wants_tree(count):
            return IndexOutline(kind="brute force", building=2 * plain, searching=plain, disk=plain, compared=count)
        leaves = self._leaves(count)
        codes = count * (-(-dimension // self._build.dimensions_per_block) // 2 + 8)
        sample = 4 * min(count, self._build.train_sample) * dimension
        settings = [{"leaves_to_search": value} for value in SWEEP if value <= leaves]
        return IndexOutline(
            kind=f"tree of {leaves} leaves, hashing",
            building=3 * plain + 2 * codes + 2 * sample + _TRAINING_BYTES,
            searching=plain + 2 * codes,
            disk=plain + codes + 4 * leaves * dimension,
            settings=settings,
            compared=leaves + min(leaves, self._search.leaves_to_search) * count / leaves,
            compared_to_add=leaves,
        )

    def build(self, keys: KeySource) -> None:
        """Copy vectors [N, D] into memory as float32 (4 N D bytes; the library reads no other way) and build."""
        vectors = keys.vectors
        count, dimension = vectors.shape
        matrix = np.empty((count, dimension), np.float32)
        for start in range(0, count, COPY_ROWS):
            matrix[start : start + COPY_ROWS] = vectors[start : start + COPY_ROWS]
        self._is_tree = self._wants_tree(count)
        self._searcher = self._described(matrix).build()

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Search queries float32 [q, D]; several threads may search at once."""
        vectors = queries.vectors
        if self._searcher is None:
            raise RetrieverError("scann: build() or load() comes before search().")
        knobs = {}
        if self._is_tree:
            knobs["leaves_to_search"] = self._search.leaves_to_search
            knobs["pre_reorder_num_neighbors"] = max(self._search.reorder, k)
        found, distances = self._searcher.search_batched(vectors, final_num_neighbors=k, **knobs)
        ids, scores = found.astype(np.int64), distances.astype(np.float32)
        if self._build.metric == "l2":
            np.minimum(np.negative(scores, out=scores), 0.0, out=scores)
        if not math.isfinite(scores[:, -1].sum()):  # missing ones, at the end of a row, are NaN with id 0, a valid id
            missing = ~np.isfinite(scores)
            ids[missing], scores[missing] = -1, -np.inf
        return Neighbours(ids, scores)

    def save(self, folder: Path) -> None:
        """Write ScaNN's own files below searcher/, with relative paths, and scann.json."""
        if self._searcher is None:
            raise RetrieverError("scann: build() or load() comes before save().")
        (folder / FOLDER).mkdir()
        try:
            self._searcher.serialize(str(folder / FOLDER), relative_path=True)
        except RuntimeError as error:
            raise OSError(f'scann could not write "{folder / FOLDER}": {error}') from error
        description = {"is_tree": self._is_tree, "scann": version("scann"), "build": asdict(self._build)}
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; files that are not that raise DamagedDataError."""
        try:
            _check_files(folder / FOLDER)
            is_tree = bool(json.loads((folder / DESCRIPTION_FILE).read_text("utf-8"))["is_tree"])
            searcher = scann.scann_ops_pybind.load_searcher(str(folder / FOLDER))
        except (RuntimeError, OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DamagedDataError(f'scann: the index in "{folder}" cannot be read: {error}') from error
        self._searcher, self._is_tree = searcher, is_tree

    def fingerprint(self) -> dict[str, object]:
        """Build options and the library version (major.minor)."""
        options = asdict(self._build)
        del options["num_threads"]  # no two builds are equal anyway
        return {"backend": "scann", "version": ".".join(version("scann").split(".")[:2]), "build": options}

    def _wants_tree(self, count: int) -> bool:
        return count >= max(self._build.brute_force_below, 1_000)

    def _leaves(self, count: int) -> int:
        return min(self._build.num_leaves or round(4 * math.sqrt(count)), count)

    def _described(self, matrix: Float32Array) -> Any:
        """Return ScaNN's builder, configured for matrix [N, D]."""
        metric = "squared_l2" if self._build.metric == "l2" else "dot_product"
        builder = scann.scann_ops_pybind.builder(matrix, 10, metric)
        builder = builder.set_n_training_threads(self._build.num_threads)
        if not self._is_tree:
            return builder.score_brute_force()
        count = len(matrix)
        return (
            builder.tree(self._leaves(count), 10, training_sample_size=min(count, self._build.train_sample))
            .score_ah(
                self._build.dimensions_per_block,
                anisotropic_quantization_threshold=self._build.anisotropic_threshold,
            )
            .reorder(100)  # only a default: each search says how many
        )


def _check_files(folder: Path) -> None:
    """Refuse what the library would repair or unpickle; this backend writes neither."""
    if not (folder / "scann_assets.pbtxt").is_file():
        raise ValueError("scann_assets.pbtxt is missing")
    if (folder / "scann_docids.pkl").exists():
        raise ValueError("it holds a scann_docids.pkl, a pickle that retroflow never writes and never reads")
