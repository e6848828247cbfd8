"""Checks of what retrievers declare and answer.

Shapes: q queries, k neighbours, n ids that were ever given to keys.
"""

import math
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import RetrieverError
from retroflow.protocols import (
    AddsKeys,
    Capabilities,
    Float32Array,
    Int64Array,
    Metric,
    Neighbours,
    QueriedBy,
    RemovesKeys,
    missing_members,
)

_FEW = 128
"""Numbers in an answer up to which Python is faster than numpy, whose functions take half a microsecond each."""

_INT64, _FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


def check_declaration(retriever: object, owner: str) -> None:
    """Refuse a retriever that lacks a member, or whose capabilities are wrong or promise what it does not have.

    Raises:
        RetrieverError: with its owner.
    """
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
    for name in ("exact", "deterministic", "fork_safe", "add", "remove", "erases"):
        value = getattr(capabilities, name)
        if not isinstance(value, bool):
            raise RetrieverError(f"{owner}: capabilities.{name} is {value!r}; allowed: True and False.")
    for declares, protocol in ((capabilities.add, AddsKeys), (capabilities.remove, RemovesKeys)):
        if declares and not isinstance(retriever, protocol):
            raise RetrieverError(
                f"{owner}: its capabilities promise what {type(retriever).__name__} does not have: "
                f"{', '.join(missing_members(retriever, protocol))}()."
            )


def fault_of_answer(answer: object, shape: tuple[int, int], next_id: int, live: NDArray[np.bool_] | None) -> str | None:
    """Return the rule of `Neighbours` that an answer breaks, or None.

    Args:
        answer: what a retriever returned.
        shape: (q, k).
        next_id: n.
        live: bool [n], whether the key with an id is in the index; None if all are.
    """
    if not isinstance(answer, tuple) or len(answer) != 2:
        return f"it must return Neighbours(ids, scores), not {type(answer).__name__}"
    ids: Int64Array
    scores: Float32Array
    ids, scores = answer
    fault = _fault_of_array(ids, "ids", _INT64, shape) or _fault_of_array(scores, "scores", _FLOAT32, shape)
    if fault:
        return fault
    if live is None and ids.size <= _FEW and _are_sound(ids.tolist(), scores.tolist(), next_id):
        return None
    missing = ids == -1
    if ids.min() < -1 or ids.max() >= next_id:
        worst = int(ids.min() if ids.min() < -1 else ids.max())
        return f"id {worst} is outside 0..{next_id - 1} (-1 means none)"
    removed = ids[:0] if live is None else ids[~missing & ~live[ids]]
    if len(removed):
        return f"id {int(removed[0])} was removed"
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


def _are_sound(ids: list[list[int]], scores: list[list[float]], next_id: int) -> bool:
    """Return whether no row lacks a neighbour or breaks a rule."""
    for row, of_row in zip(ids, scores, strict=True):
        ordered = sorted(row)
        if ordered[0] < 0 or ordered[-1] >= next_id or len(set(row)) < len(row):
            return False
        if of_row != sorted(of_row, reverse=True) or not math.isfinite(sum(of_row)):
            return False
    return True


def _fault_of_array(array: object, name: str, dtype: np.dtype[Any], shape: tuple[int, int]) -> str | None:
    if type(array) is np.ndarray and array.dtype is dtype and array.shape == shape:
        return None
    if not isinstance(array, np.ndarray) or isinstance(array, np.matrix | np.ma.MaskedArray):
        return f"{name} must be a plain numpy array, not {type(array).__name__}"
    if array.dtype != dtype:
        return f"{name} must be {dtype.name}, not {array.dtype}"
    return None if array.shape == shape else f"{name} must have shape {list(shape)}, not {list(array.shape)}"


def all_padding(rows: int, k: int) -> Neighbours:
    """Return the answer to searches that find nothing."""
    return Neighbours(np.full((rows, k), -1, np.int64), np.full((rows, k), -np.inf, np.float32))
