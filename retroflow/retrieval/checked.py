"""The wrapper of every retriever: it checks input and answers.

The four libraries disagree about almost every bad input: fewer than k hits is id -1, id 0 or an exception, a wrong
width is an exception or an out-of-bounds read, NaN is ignored or ends the process. `CheckedRetriever` wraps every
retriever, built-in or plugin. It refuses bad input before native code sees it, and answers that break the contract of
`retroflow.protocols`, with the retriever's name. It repairs nothing.

Shapes: q queries, N keys, D embedding width, k neighbours.
"""

import errno
import json
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import SupportsIndex, get_args

import numpy as np

from retroflow.errors import (
    DamagedDataError,
    InvalidVectorsError,
    MissingExtraError,
    RetrieverError,
    RetroflowError,
    UsageError,
    is_out_of_memory,
    words_of,
)
from retroflow.protocols import (
    PROTOCOL_VERSION,
    Capabilities,
    ChecksVectors,
    Float32Array,
    Int64Array,
    Metric,
    Neighbours,
    QueriedBy,
    Retriever,
)
from retroflow.retrieval.keys import checked_keys, checked_queries
from retroflow.retrieval.saved_index import (
    BACKEND_FOLDER,
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    checksums,
    fault_of_files,
    read_description,
)

_STATE_OF_THE_DISK = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE)
)
"""Errors that are not a bug; they remain OSErrors, so that a caller who knows the folder adds the remedy."""


class CheckedRetriever:
    """A retriever that accepts any input and answers according to the contract, or raises.

    Attributes:
        owner: the retriever with its distribution, as in messages ("faiss (retroflow 0.1.0)").
        dimension: width D of the vectors; None before `build` or `load`, and if it reads no vectors.
    """

    def __init__(self, retriever: Retriever, *, owner: str) -> None:
        self.owner = owner
        with self._blame("capabilities"):
            _check_protocol(retriever, owner)
        self.dimension: int | None = None
        self._retriever = retriever
        self._count: int | None = None
        self._process_id = os.getpid()

    @property
    def capabilities(self) -> Capabilities:
        """The retriever's declared capabilities."""
        return self._retriever.capabilities

    def __len__(self) -> int:
        """Number of keys N in the index, 0 before `build` or `load`."""
        return self._count or 0

    def check_vectors(self, count: int | None, dimension: int) -> None:
        """Refuse options that cannot index N vectors of width D, before the vectors are made.

        Args:
            count: N, None if not known yet.
            dimension: D.

        Raises:
            RetroflowError: as the backend's `check_vectors`, if it is a `ChecksVectors`.
        """
        if isinstance(self._retriever, ChecksVectors):
            with self._blame("check_vectors()"):
                self._retriever.check_vectors(count, dimension)

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
        self.dimension, self._count = None, None
        if count:
            if dimension is not None:
                self.check_vectors(count, dimension)
            width = "" if dimension is None else f" of width {dimension:,}"
            with self._blame("build()", f"building the index of {count:,} {self._unit}{width}"):
                self._retriever.build(checked)
        self.dimension, self._count, self._process_id = dimension, count, os.getpid()

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
        if self._count is None:
            raise RetrieverError(f"{self.owner}: search() before build() or load(); there is no index to search.")
        k = _checked_k(k)
        checked = checked_queries(queries, self.capabilities, self.dimension)
        if self._count == 0 or len(checked) == 0:
            return _all_padding(len(checked), k)
        self._check_process()
        doing = f"searching {self._count:,} {self._unit} with {len(checked):,} queries for {k:,} each"
        with self._blame("search()", doing):
            answer = self._retriever.search(checked, k)
        return self._checked_answer(answer, (len(checked), k))

    def save(self, folder: Path) -> None:
        """Write the index into folder (made if missing, must be empty): retriever.json and the backend's files.

        Raises:
            RetrieverError: nothing built, folder not empty, or the backend failed to write, wrote beside the folder
                or left a link in it.
            OSError: the disk is full or cannot be used.
        """
        if self._count is None:
            raise RetrieverError(f"{self.owner}: save() before build() or load(); there is no index to save.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RetrieverError(f'{self.owner}: save("{folder}") needs an empty folder, and it holds files.')
        backend_folder = folder / BACKEND_FOLDER
        backend_folder.mkdir()
        if self._count:
            self._check_process()
            with self._blame("save()", f"saving the index of {self._count:,} {self._unit}"):
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
            "count": self._count,
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
        self.dimension, self._count = None, None
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
        if description["count"]:
            self._load_backend(folder / BACKEND_FOLDER, written_by=description["owner"])
        self.dimension, self._count = description["dimension"], description["count"]
        self._process_id = os.getpid()

    @property
    def _unit(self) -> str:
        """Name of its content in messages."""
        return "vectors" if self.capabilities.reads_vectors else "texts"

    def fingerprint(self) -> dict[str, object]:
        """Return the retriever's additions to the fingerprint of its index, as JSON values."""
        with self._blame("fingerprint()"):
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
        with self._blame("load()", f'reading the index in "{folder}"'):
            try:
                self._retriever.load(folder)
            except (RetroflowError, ImportError):
                raise
            except Exception as error:
                if is_out_of_memory(error) or _is_state_of_the_disk(error):
                    raise
                raise DamagedDataError(
                    f'{self.owner} cannot read the index in "{folder}" (written by {written_by}): '
                    f"{_described(error)}. Delete the artifact and run `retroflow prepare` again."
                ) from error

    def _check_process(self) -> None:
        if self.capabilities.fork_safe or os.getpid() == self._process_id:
            return
        raise RetrieverError(
            f"{self.owner}: this index was opened in process {self._process_id} and is used in its forked child "
            f"{os.getpid()}, where the library may hang; call load() in the child, or start it by spawn."
        )

    @contextmanager
    def _blame(self, call: str, doing: str = "") -> Iterator[None]:
        """Name the owner in any error of a backend.

        Args:
            call: the called method, such as "build()".
            doing: the same in words, for errors because of memory.
        """
        try:
            yield
        except KeyboardInterrupt:
            raise
        except RetroflowError as error:
            known = type(error) in (UsageError, RetrieverError, MissingExtraError, RetroflowError)
            if not known or self.owner.partition(" ")[0] in str(error):
                raise
            raise type(error)(f"{self.owner}: {error}") from error
        except BaseException as error:
            if is_out_of_memory(error):
                raise RetrieverError(
                    f"{self.owner}: out of memory while {doing or f'calling {call}'} ({_described(error)}). Use a "
                    "machine with more, or a retriever or options that need less: docs/retrievers.md."
                ) from error
            if isinstance(error, OSError) and error.errno is None:  # of a library's writer
                raise OSError(f"{self.owner}: {call} failed: {error}") from error
            if isinstance(error, OSError) and _is_state_of_the_disk(error):
                raise OSError(error.errno, f"{error.strerror}, in {call} of {self.owner}", error.filename) from error
            ended = "" if isinstance(error, Exception) else "it tried to end the process, "
            raise RetrieverError(f"{self.owner}: {call} failed: {ended}{_described(error)}") from error

    def _checked_answer(self, answer: object, shape: tuple[int, int]) -> Neighbours:
        fault = _fault_of_answer(answer, shape, len(self))
        if fault is not None or not isinstance(answer, tuple):
            raise RetrieverError(
                f"{self.owner}: search() broke the retriever contract: {fault}. This is a bug of the retriever, not "
                "of the recipe; please report it to its authors (docs/writing-a-retriever.md has the rules)."
            )
        return Neighbours(*answer)


def _check_protocol(retriever: object, owner: str) -> None:
    members = ("capabilities", "build", "search", "save", "load", "fingerprint")
    missing = [name for name in members if not hasattr(retriever, name)]
    if missing:
        raise RetrieverError(
            f"{owner}: {type(retriever).__name__} is not a Retriever, it lacks {', '.join(missing)} "
            "(the contract: retroflow/protocols/retrieval.py)."
        )
    capabilities = retriever.capabilities  # type: ignore[attr-defined]  # checked above
    if not isinstance(capabilities, Capabilities):
        raise RetrieverError(
            f"{owner}: capabilities must be a retroflow.protocols.Capabilities, not {type(capabilities).__name__}."
        )
    if capabilities.metric not in get_args(Metric):
        raise RetrieverError(
            f'{owner}: capabilities.metric is "{capabilities.metric}"; allowed: {" and ".join(get_args(Metric))}. '
            "A cosine is the inner product of vectors of length 1."
        )
    if capabilities.queried_by not in get_args(QueriedBy):
        raise RetrieverError(
            f"{owner}: capabilities.queried_by is {capabilities.queried_by!r}; allowed: "
            f"{' and '.join(get_args(QueriedBy))}."
        )
    if capabilities.reads_texts and capabilities.metric != "own":
        raise RetrieverError(
            f'{owner}: capabilities.metric is "{capabilities.metric}", which compares vectors, and queried_by is '
            f'"{capabilities.queried_by}"; declare metric="own".'
        )
    for name in ("exact", "deterministic", "fork_safe", "add", "remove"):
        value = getattr(capabilities, name)
        if not isinstance(value, bool):
            raise RetrieverError(f"{owner}: capabilities.{name} is {value!r}; allowed: True and False.")


def _is_state_of_the_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _STATE_OF_THE_DISK


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {words_of(error)}".removesuffix(": ")


def _checked_k(k: SupportsIndex) -> int:
    try:
        if isinstance(k, bool | np.bool_):
            raise TypeError
        number = operator.index(k)
    except TypeError:
        raise InvalidVectorsError(f"k must be an integer, not {k!r} of type {type(k).__name__}.") from None
    if number < 1:
        raise InvalidVectorsError(f"k must be at least 1, not {number}.")
    return number


def _fault_of_answer(answer: object, shape: tuple[int, int], count: int) -> str | None:
    """Return the rule of `Neighbours` that an answer breaks, or None."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        return f"it must return Neighbours(ids, scores), not {type(answer).__name__}"
    fault = _fault_of_array(answer[0], "ids", np.int64, shape) or _fault_of_array(
        answer[1], "scores", np.float32, shape
    )
    if fault:
        return fault
    ids: Int64Array = answer[0]
    scores: Float32Array = answer[1]
    missing = ids == -1
    if ids.min() < -1 or ids.max() >= count:
        worst = int(ids.min() if ids.min() < -1 else ids.max())
        return f"id {worst} is outside 0..{count - 1} (-1 means none)"
    if not np.array_equal(missing, scores == -np.inf):
        return "the score must be -inf exactly where the id is -1"
    if not np.isfinite(scores[~missing]).all():
        return "a score is NaN or infinite beside a valid id"
    if (missing[:, :-1] > missing[:, 1:]).any():
        return "a valid id follows a -1; padding belongs at the end of a row"
    if not (scores[:, 1:] <= scores[:, :-1]).all():
        return "scores increase along a row; the best (highest) comes first"
    ordered = np.sort(ids, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if repeated.any():
        return f"id {int(ordered[:, 1:][repeated][0])} occurs twice in a row"
    return None


def _fault_of_array(array: object, name: str, dtype: type, shape: tuple[int, int]) -> str | None:
    if not isinstance(array, np.ndarray) or isinstance(array, np.matrix | np.ma.MaskedArray):
        return f"{name} must be a plain numpy array, not {type(array).__name__}"
    if array.dtype != dtype:
        return f"{name} must be {np.dtype(dtype).name}, not {array.dtype}"
    if array.shape != shape:
        return f"{name} must have shape {list(shape)}, not {list(array.shape)}"
    return None


def _all_padding(rows: int, k: int) -> Neighbours:
    return Neighbours(np.full((rows, k), -1, np.int64), np.full((rows, k), -np.inf, np.float32))
