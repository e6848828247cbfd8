"""The contracts between the rooms, in numpy alone: Retriever, Embedder, Neighbours.

A retriever finds neighbours among keys, by their embeddings, their texts or both; an embedder turns text into
embeddings. Neither knows recipes, stores or models. Third-party packages implement these protocols and enter by the
entry-point groups `retroflow.retrievers` and `retroflow.embedders` (docs/writing-a-retriever.md).

Shapes: q queries, N keys, D embedding width, k neighbours.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

PROTOCOL_VERSION = 3

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]
Metric = Literal["l2", "inner_product", "own"]
QueriedBy = Literal["vectors", "texts", "both"]


class Neighbours(NamedTuple):
    """The answer to a search.

    Attributes:
        ids: int64 [q, k], as `build` and `add` number the keys, best first, -1 where there is none; the -1s are at
            the end of a row.
        scores: float32 [q, k], higher is better, non-increasing along a row, -inf where the id is -1.
    """

    ids: Int64Array
    scores: Float32Array


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """The capabilities of a retriever, so that no code depends on a certain backend.

    Attributes:
        metric: what `scores` mean: "l2" is minus the squared Euclidean distance, "inner_product" the dot product,
            "own" a measure of the retriever's own (BM25), which ranks the keys of one query and means no more.
        queried_by: what it reads of keys and queries: "vectors", "texts" (then nothing is embedded for it), or
            "both". Anything but "vectors" needs the metric "own".
        exact: True if the true k nearest are always returned, by the metric that it declares.
        deterministic: True if two builds on the same machine with the same options answer identically.
        fork_safe: True if an instance may be used in a forked child after its parent has searched.
        add: True if keys can be added after `build`; it is then an `AddsKeys`.
        remove: True if keys can be removed after `build`; it is then a `RemovesKeys`.
        erases: True if nothing of a removed key is in the files that `save` writes afterwards. Otherwise a removed
            key is only never found, and its bytes are gone after a build without it.
        device: where the search runs, "cpu" or "cuda"; "remote" for a served database.
    """

    metric: Metric = "l2"
    queried_by: QueriedBy = "vectors"
    exact: bool = False
    deterministic: bool = True
    fork_safe: bool = True
    add: bool = False
    remove: bool = False
    erases: bool = False
    device: str = "cpu"

    @property
    def reads_vectors(self) -> bool:
        """Whether keys and queries have to be embedded."""
        return self.queried_by != "texts"

    @property
    def reads_texts(self) -> bool:
        """Whether keys and queries have to be decoded to text."""
        return self.queried_by != "vectors"


@dataclass(frozen=True, kw_only=True)
class IndexOutline:
    """What an index over N vectors will be, by formula, before it is built.

    Attributes:
        kind: in the words of the library, such as "HNSW, 16 links".
        building: most bytes of memory while it is built and saved, without the vectors' own source.
        searching: bytes of memory that a loaded index takes.
        disk: bytes of its files.
        settings: options of `search` that trade recall for speed, the fastest first; one of {} if there are none.
        compared: vectors that a query is compared with at the options of search, centroids among them; 0: unknown.
        compared_to_add: vectors that a key is compared with when it is added; 0: unknown, or none.
    """

    kind: str
    building: int
    searching: int
    disk: int
    settings: Sequence[Mapping[str, Any]] = ({},)
    compared: float = 0
    compared_to_add: float = 0


@runtime_checkable
class VectorSource(Protocol):
    """Vectors that are read in blocks, so that a build never needs all of them in memory.

    A numpy array, a memory map and the embedding store all satisfy it: `len(source)` is N, `source.shape` is
    (N, D), and `source[start:stop]` is an array [stop - start, D] of float16 or float32.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.floating]: ...


@runtime_checkable
class TextSource(Protocol):
    """Texts that are read in blocks: `len(source)` is N, `source[start:stop]` is a list of str. A list is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Sequence[str]: ...


@runtime_checkable
class KeySource(Protocol):
    """The keys of an index: key i of `build` gets id i, key i of `add` the id n + i after n earlier keys.

    A retriever may read only what its `Capabilities.queried_by` says. Nothing is embedded or decoded before that.

    Attributes:
        vectors: the embeddings [N, D].
        texts: the texts, as the tokenizer decodes the chunks.
    """

    def __len__(self) -> int: ...

    @property
    def vectors(self) -> VectorSource: ...

    @property
    def texts(self) -> TextSource: ...


@runtime_checkable
class Queries(Protocol):
    """What is searched for: q queries, made as the keys were.

    A retriever may read only what its `Capabilities.queried_by` says. Nothing is embedded or decoded before that.

    Attributes:
        vectors: float32 [q, D], C-contiguous.
        texts: q texts.
    """

    def __len__(self) -> int: ...

    @property
    def vectors(self) -> Float32Array: ...

    @property
    def texts(self) -> Sequence[str]: ...


@runtime_checkable
class Retriever(Protocol):
    """Builds an index over keys and finds the nearest of them.

    A retriever may assume checked input: the caller (`retroflow.retrieval.checked.CheckedRetriever`) has refused
    non-finite or wrongly shaped vectors, texts that are not str, and a bad k before any of these methods runs. It never
    searches an empty index or with zero queries, and it checks the answer.

    One whose options do not fit every number or width of vectors is a `ChecksVectors`, too; one that can be changed
    after `build` an `AddsKeys`, a `RemovesKeys` or both; one that scores given keys a `ScoresKeys`; one that knows its
    memory and its settings an `OutlinesIndex`; one whose index many processes can fill a `BuildsInShards`.
    """

    capabilities: Capabilities

    def build(self, keys: KeySource) -> None:
        """Build the index over N keys, replacing what was there; key i gets id i."""
        ...

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Find the k nearest keys of each of q queries; pad with -1 / -inf when fewer exist."""
        ...

    def save(self, folder: Path) -> None:
        """Write the index as files into an existing, empty folder; no absolute path may be stored in them."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, from wherever the folder is now, ready to search."""
        ...

    def fingerprint(self) -> dict[str, object]:
        """Whatever changes the built index and only the retriever knows, as JSON values; {} if there is nothing.

        That is above all the version of the library it calls: {"version": "1.15"}. Its options (all but those of
        `search`), and name and version of the distribution that a plugin comes from, are added by the caller. The
        answer must be the same in every process: no time, no process id, no `hash` of a string.
        """
        ...


@runtime_checkable
class ChecksVectors(Protocol):
    """A retriever that knows before it builds whether it can."""

    def check_vectors(self, count: int | None, dimension: int) -> None:
        """Raise UsageError where the options cannot index `count` vectors of width `dimension`.

        `prepare` calls it before it makes anything, when the count is None, and again before it embeds.
        """
        ...


@runtime_checkable
class OutlinesIndex(Protocol):
    """A retriever that knows its memory and its settings before it builds; `retroflow bench` asks it."""

    def outline(self, count: int, dimension: int) -> IndexOutline:
        """Describe the index over `count` vectors of width `dimension`; builds nothing."""
        ...


@runtime_checkable
class BuildsInShards(Protocol):
    """A retriever whose index is trained once, filled by any number of processes, and merged on disk.

    The files are those of `build` over all keys. A shard is some keys that follow each other; all but the last have as
    many as `retroflow.pipeline.index.ROWS_PER_SHARD`.
    """

    def divides(self, count: int, dimension: int) -> bool:
        """Return whether the index over `count` vectors of width `dimension` can be built so; builds nothing."""
        ...

    def train(self, keys: KeySource, folder: Path) -> None:
        """Learn from all keys what filling needs, and write it into an existing, empty folder."""
        ...

    def open_trained(self, folder: Path) -> None:
        """Read what `train` wrote, ready for `fill` and `merge`."""
        ...

    def fill(self, keys: KeySource) -> dict[str, NDArray[Any]]:
        """Return what the index holds of the keys of a shard, as arrays with a row for each key."""
        ...

    def merge(self, shards: Callable[[], Iterable[Mapping[str, NDArray[Any]]]]) -> None:
        """Make the index of all shards, so that `save` writes it; `search` comes after `load`.

        Args:
            shards: gives what `fill` returned, in the order of the keys; may be called several times. One shard is in
                memory at a time, until `save` has written them.
        """
        ...


@runtime_checkable
class AddsKeys(Protocol):
    """A retriever whose index can grow. Nobody searches while it is changed."""

    def add(self, keys: KeySource) -> None:
        """Add M keys, at least one, after `build` or `load`.

        Key i gets the id n + i, where n is the number of all keys that `build` and `add` were ever given: the ids of
        removed keys are not used again. Vectors have the width of those in the index. They may be kept until `save`.
        """
        ...


@runtime_checkable
class RemovesKeys(Protocol):
    """A retriever whose index can shrink. Nobody searches while it is changed."""

    def remove(self, ids: Int64Array) -> None:
        """Remove keys, after `build` or `load`; no search finds them from now on, after `save` and `load` neither.

        All others keep their ids. If nothing is left, the index is not searched until keys are added; it may be saved.

        Args:
            ids: int64 [r], ascending, each once, at least one, all in the index.
        """
        ...


@runtime_checkable
class ScoresKeys(Protocol):
    """A retriever that can score any of its keys, so that it can rank what another has found."""

    def score(self, queries: Queries, ids: Int64Array) -> Float32Array:
        """Return float32 [q, f], higher is better: how well keys int64 [q, f] fit their query; -inf for the id -1."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors. Frozen: the same text gives the same vector for keys and for queries."""

    dimension: int

    def fit(self, texts: Iterable[str]) -> None:
        """Learn corpus statistics (document frequencies) if the embedder has any; else do nothing."""
        ...

    def embed(self, texts: list[str]) -> Float32Array:
        """Embed texts; returns float32 [len(texts), D], rows in the order given."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `fit` learned into an existing folder; nothing if there is nothing."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, so that live queries take the identical path as the stored keys."""
        ...

    def fingerprint(self) -> dict[str, object]:
        """Everything that changes a vector (model hash, special tokens, pooling, lengths), as JSON values."""
        ...
