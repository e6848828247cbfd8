"""The wrapper of every retriever: it checks input and answers.

The four libraries disagree about almost every bad input: fewer than k hits is id -1, id 0 or an exception, a wrong
width is an exception or an out-of-bounds read, NaN is ignored or ends the process. `CheckedRetriever` wraps every
retriever, built-in or plugin. It refuses bad input before native code sees it, and answers that break the contract of
`retroflow.protocols`, with the retriever's name. It repairs nothing.

Shapes: q queries, N keys, D embedding width, k neighbours.
"""

import json
import os
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import (
    DamagedDataError,
    InvalidVectorsError,
    RetrieverError,
    RetroflowError,
    is_out_of_memory,
)
from retroflow.protocols import (
    PROTOCOL_VERSION,
    AddsKeys,
    BuildsInShards,
    Capabilities,
    ChecksVectors,
    Float32Array,
    IndexOutline,
    Int64Array,
    Neighbours,
    OutlinesIndex,
    RemovesKeys,
    Retriever,
    ScoresKeys,
)
from retroflow.retrieval.blame import blaming, described, is_state_of_the_disk
from retroflow.retrieval.index_shards import Filled, IndexShards
from retroflow.retrieval.keys import checked_ids, checked_k, checked_keys, checked_queries
from retroflow.retrieval.promises import all_padding, check_declaration, fault_of_answer
from retroflow.retrieval.saved_index import (
    BACKEND_FOLDER,
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    checksums,
    fault_of_files,
    ranges_of,
    read_description,
    without,
)


class CheckedRetriever:
    """A retriever that accepts any input and answers according to the contract, or raises.

    Attributes:
        owner: the retriever with its distribution, as in messages ("faiss (retroflow 0.1.0)").
        dimension: width D of the vectors; None before `build` or `load`, and if it reads no vectors.
        next_id: the id that the next added key gets, which is the number of keys that were ever built over or added;
            None before `build` or `load`.
    """

    def __init__(self, retriever: Retriever, *, owner: str) -> None:
        self.owner = owner
        with blaming(self.owner, "capabilities"):
            check_declaration(retriever, owner)
        self.dimension: int | None = None
        self.next_id: int | None = None
        self._live: NDArray[np.bool_] | None = None  # by id; None if no key was removed
        self._count = 0  # of the live ones
        self._retriever = retriever
        self._process_id = os.getpid()

    @property
    def capabilities(self) -> Capabilities:
        """The retriever's declared capabilities."""
        return self._retriever.capabilities

    @property
    def can_score(self) -> bool:
        """Whether `score` works: the retriever is a `ScoresKeys`."""
        return isinstance(self._retriever, ScoresKeys)

    def __len__(self) -> int:
        """Number of keys N in the index, without removed ones; 0 before `build` or `load`."""
        return self._count

    def check_vectors(self, count: int | None, dimension: int) -> None:
        """Refuse options that cannot index N vectors of width D, before the vectors are made.

        Args:
            count: N, None if not known yet.
            dimension: D.

        Raises:
            RetroflowError: as the backend's `check_vectors`, if it is a `ChecksVectors`.
        """
        if isinstance(self._retriever, ChecksVectors):
            with blaming(self.owner, "check_vectors()"):
                self._retriever.check_vectors(count, dimension)

    def outline(self, count: int, dimension: int) -> IndexOutline | None:
        """Return what the index over N vectors of width D will be; None if the retriever is no `OutlinesIndex`.

        Raises:
            RetrieverError: the retriever failed.
        """
        if not isinstance(self._retriever, OutlinesIndex):
            return None
        with blaming(self.owner, "outline()"):
            return self._retriever.outline(count, dimension)

    def in_shards(self, count: int, dimension: int | None) -> IndexShards | None:
        """Return the build of the index over N keys in shards; None if one process must build it."""
        backend = self._retriever
        if dimension is None or not isinstance(backend, BuildsInShards):
            return None
        with blaming(self.owner, "divides()"):
            divides = backend.divides(count, dimension)
        return IndexShards(backend, self.owner, self.capabilities) if divides else None

    def merge(self, shards: IndexShards, filled: Filled, count: int, dimension: int) -> None:
        """Make the index of filled shards over N keys, in place of `build`; `save` follows.

        Raises:
            RetrieverError, OSError: as `build`.
        """
        self._use(None, None)
        with blaming(self.owner, "merge()", f"merging the index of {count:,} {self._unit}"):
            shards.backend.merge(filled)
        self._use(dimension, count)

    def build(self, keys: object) -> None:
        """Build the index over N keys; N may be 0.

        Args:
            keys: a KeySource; or by itself what the retriever reads: a VectorSource, numpy array or torch tensor (any
                device) [N, D] of float16, bfloat16, float32 or float64, or a TextSource such as a list of str. Both
                are read in blocks, each checked as it is read.

        Raises:
            InvalidVectorsError: vectors that are not two-dimensional, not floating point, of width 0, or with a value
                that is NaN, infinite or above 1e15; nothing of the earlier index is usable afterwards.
            InvalidTextsError: texts that are none, too few, or not str.
            RetrieverError: the backend failed, or ran out of memory.
            OSError: the disk is full or cannot be used.
        """
        checked = checked_keys(keys, self.capabilities)
        count = len(checked)
        dimension = checked.vectors.shape[1] if self.capabilities.reads_vectors else None
        self._use(None, None)
        if count:
            if dimension is not None:
                self.check_vectors(count, dimension)
            width = "" if dimension is None else f" of width {dimension:,}"
            with blaming(self.owner, "build()", f"building the index of {count:,} {self._unit}{width}"):
                self._retriever.build(checked)
        self._use(dimension, count)

    def add(self, keys: object) -> None:
        """Add M keys to the index, with the ids from `next_id` on; M may be 0.

        Args:
            keys: as for `build`; vectors have the width of those in the index.

        Raises:
            InvalidVectorsError, InvalidTextsError, OSError: as `build`; the index is not usable if it had begun.
            RetrieverError: nothing built or loaded yet, the retriever cannot add, it failed, or it ran out of memory.
        """
        retriever, next_id = self._retriever, self._next_id_to("add")
        if not self.capabilities.add or not isinstance(retriever, AddsKeys):
            raise RetrieverError(f"{self.owner} cannot add keys to its index; build it again over all keys.")
        checked = checked_keys(keys, self.capabilities)
        dimension = checked.vectors.shape[1] if self.capabilities.reads_vectors else None
        if dimension != self.dimension:
            raise InvalidVectorsError(
                f"vectors have {dimension} columns, but the index was built over vectors of {self.dimension}; embed "
                "them with the embedder that made the index."
            )
        count, live = len(checked), self._live
        if not next_id:
            self.build(checked)
        elif count:
            self._check_process()
            self._use(None, None)
            with blaming(self.owner, "add()", f"adding {count:,} {self._unit} to the index"):
                retriever.add(checked)
            self._use(dimension, next_id + count, None if live is None else np.append(live, np.ones(count, bool)))

    def remove(self, ids: object) -> None:
        """Remove keys from the index; all others keep their ids.

        Args:
            ids: whole numbers [r] of keys in the index, such as a list or an array; r may be 0.

        Raises:
            UsageError: ids that are not whole numbers, or that are not in the index.
            RetrieverError: nothing built or loaded yet, the retriever cannot remove, or it failed; the index is not
                usable then.
        """
        retriever, next_id = self._retriever, self._next_id_to("remove")
        if not self.capabilities.remove or not isinstance(retriever, RemovesKeys):
            raise RetrieverError(f"{self.owner} cannot remove keys from its index; build it again without them.")
        live = np.ones(next_id, bool) if self._live is None else self._live.copy()
        checked, dimension = checked_ids(ids, live), self.dimension
        if len(checked):
            self._check_process()
            self._use(None, None)
            with blaming(self.owner, "remove()"):
                retriever.remove(checked)
            live[checked] = False
            self._use(dimension, next_id, live)

    def search(self, queries: object, k: SupportsIndex) -> Neighbours:
        """Find the k nearest keys of each of q queries.

        Args:
            queries: `retroflow.protocols.Queries`; or by itself what the retriever reads: a numpy array or torch
                tensor (any device) [q, D] of float16, bfloat16, float32 or float64, or a list of str. q may be 0.
            k: an integer of at least 1; more than N is allowed and padded.

        Returns:
            Neighbours with ids int64 [q, k] and scores float32 [q, k] as `retroflow.protocols.Neighbours` says.

        Raises:
            InvalidVectorsError: vectors of a wrong rank, dtype or width, non-finite values, or a bad k.
            InvalidTextsError: texts that are none or not str.
            RetrieverError: nothing built or loaded yet, a forked child of a retriever that is not fork-safe, a
                backend that failed, or an answer that breaks the contract.
        """
        self._next_id_to("search")
        k = checked_k(k)
        checked = checked_queries(queries, self._retriever.capabilities, self.dimension)
        count = len(checked)
        if count == 0 or self._count == 0:
            return all_padding(count, k)
        self._check_process()
        try:
            answer = self._retriever.search(checked, k)
        except BaseException:
            doing = f"searching {len(self):,} {self._unit} with {count:,} queries for {k:,} each"
            with blaming(self.owner, "search()", doing):  # entered only now: it takes a microsecond
                raise
        return self._checked_answer(answer, (count, k))

    def score(self, queries: object, ids: Int64Array) -> Float32Array:
        """Score given keys for each of q queries, as `search` would.

        Args:
            queries: as for `search`.
            ids: int64 [q, f], each -1 or in the index.

        Returns:
            Float32 [q, f], -inf where the id is -1.

        Raises:
            RetrieverError: the retriever cannot score given keys, or it failed.
        """
        self._next_id_to("score")
        if not isinstance(self._retriever, ScoresKeys):
            raise RetrieverError(f"{self.owner} cannot score given keys.")
        checked = checked_queries(queries, self.capabilities, self.dimension)
        self._check_process()
        with blaming(self.owner, "score()", f"scoring {ids.shape[-1]:,} {self._unit} for {len(checked):,} queries"):
            return self._retriever.score(checked, ids)

    def save(self, folder: Path) -> None:
        """Write the index into folder (made if missing, must be empty): retriever.json and the backend's files.

        Raises:
            RetrieverError: nothing built, folder not empty, or the backend failed to write, wrote beside the folder
                or left a link in it.
            OSError: the disk is full or cannot be used.
        """
        next_id = self._next_id_to("save")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RetrieverError(f'{self.owner}: save("{folder}") needs an empty folder, and it holds files.')
        backend_folder = folder / BACKEND_FOLDER
        backend_folder.mkdir()
        if next_id:
            self._check_process()
            with blaming(self.owner, "save()", f"saving the index of {len(self):,} {self._unit}"):
                self._retriever.save(backend_folder)
        if fault := fault_of_files(folder):
            raise RetrieverError(
                f"{self.owner}: save() left what cannot be moved with the index: {fault}. This is a bug of the "
                "retriever; an index is files in the folder that save() is given, and nothing else."
            )
        description = {
            "format_version": FORMAT_VERSION,
            "protocol_version": PROTOCOL_VERSION,
            "owner": self.owner,
            "metric": self.capabilities.metric,
            "dimension": self.dimension,
            "next_id": next_id,
            "removed": [] if self._live is None else ranges_of(~self._live),
            "build": self.fingerprint(),
            "crc32": checksums(backend_folder),
        }
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Load what `save` wrote; the folder may have been moved.

        Raises:
            DamagedDataError: a file is missing, truncated or not what `save` writes.
            RetrieverError: the index was built with another metric.
        """
        folder = Path(folder)
        self._use(None, None)
        description = read_description(folder / DESCRIPTION_FILE)
        if description["metric"] != self.capabilities.metric:
            raise RetrieverError(
                f'{self.owner}: the index in "{folder}" was built with metric "{description["metric"]}", and the '
                f'retriever is set to "{self.capabilities.metric}"; set retriever.build.metric, or rebuild.'
            )
        if checksums(folder / BACKEND_FOLDER) != description["crc32"]:
            raise DamagedDataError(
                f'The files in "{folder / BACKEND_FOLDER}" are not, byte by byte, those that {description["owner"]} '
                "wrote. Delete the artifact and run `retroflow prepare` again."
            )
        if description["next_id"]:
            self._load_backend(folder / BACKEND_FOLDER, written_by=description["owner"])
        live = without(description["removed"], description["next_id"])
        self._use(description["dimension"], description["next_id"], live)

    def _use(self, dimension: int | None, next_id: int | None, live: NDArray[np.bool_] | None = None) -> None:
        """Note which keys are in the index; a `next_id` of None makes it unusable."""
        self.dimension, self.next_id, self._live, self._process_id = dimension, next_id, live, os.getpid()
        self._count = (next_id or 0) if live is None else int(live.sum())

    def _next_id_to(self, doing: str) -> int:
        if self.next_id is None:
            raise RetrieverError(f"{self.owner}: {doing}() before build() or load(); there is no index to {doing}.")
        return self.next_id

    @property
    def _unit(self) -> str:
        """Name of its content in messages."""
        return "vectors" if self.capabilities.reads_vectors else "texts"

    def fingerprint(self) -> dict[str, object]:
        """Return the retriever's additions to the fingerprint of its index, as JSON values."""
        with blaming(self.owner, "fingerprint()"):
            values: object = self._retriever.fingerprint()
        if not isinstance(values, dict):
            raise RetrieverError(
                f"{self.owner}: fingerprint() must return a dict of JSON values, not {type(values).__name__}; "
                "{} if nothing but its options changes the index."
            )
        try:
            plain: dict[str, object] = json.loads(json.dumps(values, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise RetrieverError(f"{self.owner}: fingerprint() must hold JSON values only; {error}.") from error
        return plain

    def _load_backend(self, folder: Path, *, written_by: str) -> None:
        with blaming(self.owner, "load()", f'reading the index in "{folder}"'):
            try:
                self._retriever.load(folder)
            except (RetroflowError, ImportError):
                raise
            except Exception as error:
                if is_out_of_memory(error) or is_state_of_the_disk(error):
                    raise
                raise DamagedDataError(
                    f'{self.owner} cannot read the index in "{folder}" (written by {written_by}): '
                    f"{described(error)}. Delete the artifact and run `retroflow prepare` again."
                ) from error

    def _check_process(self) -> None:
        if self.capabilities.fork_safe or os.getpid() == self._process_id:
            return
        raise RetrieverError(
            f"{self.owner}: this index was opened in process {self._process_id} and is used in its forked child "
            f"{os.getpid()}, where the library may hang; call load() in the child, or start it by spawn."
        )

    def _checked_answer(self, answer: object, shape: tuple[int, int]) -> Neighbours:
        fault = fault_of_answer(answer, shape, self.next_id or 0, self._live)
        if fault is not None or not isinstance(answer, tuple):
            raise RetrieverError(
                f"{self.owner}: search() broke the retriever contract: {fault}. This is a bug of the retriever, not "
                "of the recipe; please report it to its authors (docs/writing-a-retriever.md has the rules)."
            )
        return answer if isinstance(answer, Neighbours) else Neighbours(*answer)
