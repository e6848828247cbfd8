"""Vectors to search in: of a file, of a database, or drawn; and the queries.

Queries of a file or a database are rows of it, evenly spaced, which are left out of the index. Drawn ones are drawn
beside the vectors.

Shapes: N vectors of the index, D their width, q queries.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.comparison.subject import vectors_of, without_vectors
from retroflow.console import progress
from retroflow.database.snapshot import Snapshot, is_database, named_version
from retroflow.errors import RetroflowError, UsageError
from retroflow.generation.database import prepared_parts
from retroflow.protocols import Float32Array, Int64Array, VectorSource
from retroflow.store.array_file import ArraySpec, ArrayWriter
from retroflow.store.embedding_store import EmbeddingStore

BLOCK_ROWS = 16_384
DRAWN_FILE = "vectors.npy"

LATENT, CLUSTER_WIDTH, NOISE = 24, 1.0, 0.1
"""Of drawn vectors: their dimension, the width of a cluster in it, and the noise over all D numbers.

Sentence embeddings lie near a surface of some 15 to 25 dimensions; with these, an IVF or HNSW index needs about the
effort that it needs for them (docs/bench.md).
"""


@dataclass(frozen=True)
class Source:
    """Where vectors come from; one of the first three must be given.

    Attributes:
        vectors: a .npy file of float16 or float32 [rows, D].
        database: `DB`, `DB@VERSION`, an index, artifacts of `prepare`, or a run.
        random: N and D.
        queries: q.
        seed: of what is drawn.
        folder: for drawn vectors.
    """

    vectors: str | None = None
    database: str | None = None
    random: tuple[int, int] | None = None
    queries: int = 1_000
    seed: int = 0
    folder: str = "."

    def __post_init__(self) -> None:
        given = [name for name in ("vectors", "database", "random") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "no vectors"
            raise UsageError(f"{found} given; give one of vectors='FILE', database='DB' and random='N,D'.")

    def open(self) -> "BenchData":
        """Open the vectors; draws them if they are not in the folder.

        Raises:
            UsageError: they cannot be searched in.
        """
        if self.random is not None:
            return _drawn(*self.random, self.queries, self.seed, Path(self.folder))
        if self.vectors is not None:
            path = Path(self.vectors)
            rows: VectorSource = NpyRows(path)
            return _held_out(path.stem, rows, {"file": path.name, **_state_of(path)}, self.queries, self.seed)
        assert self.database is not None
        name, rows, definition = _of_database(Path(self.database))
        return _held_out(name, rows, definition, self.queries, self.seed)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Source":
        """Return what `to_json` described."""
        drawn = values["random"]
        return cls(**{**values, "random": None if drawn is None else (drawn[0], drawn[1])})


@dataclass(frozen=True)
class BenchData:
    """Vectors and queries.

    Attributes:
        name: of the data set, for files.
        keys: [N, D], those of the index.
        queries: float32 [q, D], in a random order.
        definition: JSON values that decide on the numbers.
        described: for people.
    """

    name: str
    keys: VectorSource
    queries: Float32Array
    definition: Mapping[str, Any]
    described: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the queries and some thousand of the vectors, N and D."""
        whole = hashlib.sha256(np.ascontiguousarray(self.queries).tobytes())
        whole.update(str(self.keys.shape).encode())
        count = len(self.keys)
        for start in np.linspace(0, max(0, count - 64), 64).astype(int).tolist():
            whole.update(np.asarray(self.keys[start : start + 64], np.float32).tobytes())
        return whole.hexdigest()

    def distances(self, ids: Int64Array) -> Float32Array:
        """Return the Euclidean distances of the first queries to keys, float32.

        Args:
            ids: int64 [r, k]; -1 gives infinity.
        """
        wanted = np.unique(ids[ids >= 0])
        rows = np.empty((len(wanted), self.keys.shape[1]), np.float32)
        for run in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(wanted) != 1) + 1):
            if len(run):
                rows[run] = self.keys[int(wanted[run[0]]) : int(wanted[run[-1]]) + 1]
        found = np.full(ids.shape, np.inf, np.float32)
        for query in range(len(ids)):
            there = ids[query] >= 0
            own = rows[np.searchsorted(wanted, ids[query][there])]
            found[query, there] = np.sqrt(np.square(own - self.queries[query]).sum(axis=1))
        return found


class NpyRows:
    """A .npy file that is read, not mapped: mapped pages would count as memory of an index.

    Args:
        path: of float16 or float32 [rows, D].

    Raises:
        UsageError: it is not such a file.
    """

    def __init__(self, path: Path) -> None:
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UsageError(f"vectors='{path}': there is no such file.") from None
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"vectors='{path}': not a .npy file of numbers ({error}).") from error
        if not isinstance(mapped, np.memmap) or mapped.ndim != 2 or mapped.dtype not in (np.float16, np.float32):
            found = f"{mapped.dtype} {list(mapped.shape)}" if isinstance(mapped, np.ndarray) else "several arrays"
            raise UsageError(f"vectors='{path}': it holds {found}; vectors are float16 or float32 [rows, width].")
        if not mapped.flags.c_contiguous:
            raise UsageError(f"vectors='{path}': its order is Fortran's; save numpy.ascontiguousarray(vectors).")
        self._path, self._offset, self._dtype = path, mapped.offset, mapped.dtype
        self.shape: tuple[int, ...] = mapped.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> Any:
        """Read rows, in the file's dtype."""
        start, stop, _ = rows.indices(len(self))
        width = self.shape[1]
        offset = self._offset + start * width * self._dtype.itemsize
        count = max(0, stop - start) * width
        return np.fromfile(self._path, self._dtype, count, offset=offset).reshape(-1, width)


class HeldOut:
    """Vectors without some rows.

    Args:
        source: all of them.
        rows: int64, ascending, those that are left out.
    """

    def __init__(self, source: VectorSource, rows: Int64Array) -> None:
        self._source, self._rows = source, rows
        self._keys_before = rows - np.arange(len(rows))
        self.shape: tuple[int, ...] = (len(source) - len(rows), source.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> Any:
        """Read rows of those that are left."""
        start, stop, _ = rows.indices(len(self))
        if stop <= start:
            return self._source[0:0]
        first, last = (one + int(np.searchsorted(self._keys_before, one, side="right")) for one in (start, stop - 1))
        block = np.asarray(self._source[first : last + 1])
        inside = self._rows[(self._rows >= first) & (self._rows <= last)] - first
        return np.delete(block, inside, axis=0) if len(inside) else block


def _held_out(name: str, rows: VectorSource, definition: Mapping[str, Any], wanted: int, seed: int) -> BenchData:
    count, dimension = rows.shape
    if count < 2 * wanted:
        raise UsageError(
            f"queries={wanted}: they are taken out of the {count:,} vectors, and at most half of them may be; give "
            f"{count // 2:,} or fewer."
        )
    chosen = (np.arange(wanted) * count) // wanted
    queries = np.concatenate([np.asarray(rows[row : row + 1], np.float32) for row in chosen.tolist()])
    order = np.random.default_rng(seed).permutation(wanted)
    made_of = {**definition, "queries": wanted, "seed": seed}
    described = f"{name}: {count - wanted:,} vectors of width {dimension}; {wanted:,} others are queries"
    return BenchData(name, HeldOut(rows, chosen), queries[order], made_of, described)


def _of_database(path: Path) -> tuple[str, VectorSource, dict[str, Any]]:
    """Open the vectors of a database or of what `prepare` made."""
    name = named_version(path)[0].resolve().name
    if is_database(path):
        snapshot = Snapshot.open(*named_version(path))
        opened = vectors_of(snapshot)
        if opened is None:
            raise UsageError(without_vectors(snapshot))
        return name, opened(), {"database": snapshot.version.fingerprint}
    parts = prepared_parts(path)
    if parts.embeddings is None:
        raise UsageError(f"database='{path}': its retriever reads texts, so it has no vectors to search in.")
    return name, EmbeddingStore.open(parts.embeddings / "train"), {"embeddings": parts.embeddings.name}


def _state_of(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"bytes": stat.st_size, "changed": stat.st_mtime_ns}


def _drawn(count: int, dimension: int, wanted: int, seed: int, folder: Path) -> BenchData:
    """Draw vectors float16 [N, D] of length 1 around sqrt(N) centres, whose sizes follow a power law."""
    if count < 1 or dimension < 1:
        raise UsageError(f"random='{count},{dimension}': the number of vectors and their width must be at least 1.")
    path = folder / f"random-{count}-{dimension}-{seed}" / DRAWN_FILE
    draw = _Mixture(count, dimension, seed)
    if not path.is_file():
        _write_drawn(path, draw, (count, dimension))
    queries = draw(np.random.default_rng([seed, 1]), wanted).astype(np.float16).astype(np.float32)
    definition = {
        "random": [count, dimension],
        "seed": seed,
        "queries": wanted,
        "mixture": [LATENT, CLUSTER_WIDTH, NOISE],
    }
    described = (
        f"{count:,} drawn vectors of width {dimension} around {draw.clusters:,} centres in {LATENT} dimensions (seed "
        f"{seed}); {wanted:,} queries of the same mixture"
    )
    return BenchData(f"random-{count}-{dimension}", NpyRows(path), queries, definition, described)


class _Mixture:
    """Draws unit vectors: clusters in a space of few dimensions, mapped to D, and noise in all of them."""

    def __init__(self, count: int, dimension: int, seed: int) -> None:
        generator, self.seed = np.random.default_rng(seed), seed
        self.clusters = max(1, round(count**0.5))
        self._centres = generator.normal(size=(self.clusters, LATENT)).astype(np.float32)
        self._map = generator.normal(size=(LATENT, dimension)).astype(np.float32) / np.float32(LATENT**0.5)
        weights = 1.0 / np.sqrt(np.arange(1, self.clusters + 1))
        self._bounds = np.cumsum(weights / weights.sum())

    def __call__(self, generator: np.random.Generator, rows: int) -> Float32Array:
        members = np.minimum(np.searchsorted(self._bounds, generator.random(rows)), self.clusters - 1)
        latent = self._centres[members]
        latent += np.float32(CLUSTER_WIDTH) * generator.standard_normal(latent.shape, np.float32)
        vectors = latent @ self._map
        vectors += np.float32(NOISE) * generator.standard_normal(vectors.shape, np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        drawn: Float32Array = vectors
        return drawn


def _write_drawn(path: Path, draw: _Mixture, shape: tuple[int, int]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = ArrayWriter(path.parent, ArraySpec(partial.name, np.dtype(np.float16), shape))
        try:
            with progress("draw vectors", shape[0], "vectors") as advance:
                for start in range(0, shape[0], BLOCK_ROWS):
                    rows = min(BLOCK_ROWS, shape[0] - start)
                    # A generator for each block, so that a block does not depend on those before it.
                    generator = np.random.default_rng([draw.seed, 2, start])
                    writer.write(start, draw(generator, rows).astype(np.float16))
                    advance(rows)
        finally:
            writer.close()
        partial.rename(path)
    except OSError as error:
        raise RetroflowError(f"{path}: cannot be written ({error.strerror}); give another output.") from error
