"""Checks of what goes into a search: vectors and queries, block by block, before native code sees them.

Shapes: N vectors, D embedding width.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import InvalidVectorsError
from retroflow.protocols import VectorSource

# A squared distance sums D terms of up to (2 x)^2 in float32 (largest 3.4e38): up to this magnitude it stays
# finite for every D below 8e7.
LARGEST_MAGNITUDE = 1.0e15

_FLOAT32 = np.dtype(np.float32)

_ONE_THREAD = 10_000
"""Numbers up to which OpenBLAS computes a dot product on the calling thread (interface/dot.c)."""

_TENSOR_DTYPES = ("torch.float16", "torch.bfloat16", "torch.float32", "torch.float64")

Scalars = NDArray[np.floating[Any]]


class CheckedSource:
    """Vectors [N, D] whose every block is checked as it is read: float16 or float32, finite, of width D.

    It has `shape`, `len()` and slices. Anything else raises an error that explains this to the author of a retriever,
    whose tests with arrays passed.
    """

    def __init__(self, vectors: object) -> None:
        if isinstance(vectors, np.ndarray) or _is_tensor(vectors):
            self._vectors: Any = vectors
        elif isinstance(vectors, VectorSource):
            self._vectors = vectors
        else:
            raise InvalidVectorsError(_wrong_type("vectors", vectors))
        shape = tuple(int(size) for size in self._vectors.shape)
        if len(shape) != 2:
            raise InvalidVectorsError(_wrong_rank("vectors", shape))
        if shape[1] == 0:
            raise InvalidVectorsError("vectors have 0 columns; an embedding needs at least one.")
        self.shape: tuple[int, ...] = shape
        checked_vectors(self._vectors[0:0], "vectors")  # a wrong dtype is known without reading anything

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: object, /) -> Scalars:
        if not isinstance(rows, slice):
            raise TypeError(
                f"vectors[{_shown(rows)}]: vectors are read by slices alone, vectors[start:stop]; one row is "
                "vectors[row : row + 1]."
            )
        start, stop, step = rows.indices(len(self))
        block = checked_vectors(self._vectors[rows], "vectors")
        expected = (len(range(start, stop, step)), self.shape[1])
        if block.shape != expected:
            raise InvalidVectorsError(
                f"vectors[{start}:{stop}] has shape {list(block.shape)}, and the source's shape "
                f"{list(self.shape)} promises {list(expected)}."
            )
        check_finite(block, "vectors", start)
        return block

    def __array__(self, dtype: object = None, copy: object = None) -> Scalars:
        raise TypeError(
            "vectors are no array, for they may be larger than memory: read and copy blocks, vectors[start:stop]."
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what libraries and copy look for
            raise AttributeError(name)
        raise AttributeError(
            f"vectors.{name}: vectors have shape, len() and slices and nothing else; a block vectors[start:stop] is a "
            "numpy array of float16 or float32."
        )


def _shown(rows: object) -> str:
    shown = repr(rows)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def _is_tensor(value: object) -> bool:
    # A tensor can only exist where torch is imported already: numpy users do not pay for importing it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def checked_vectors(value: Any, name: str) -> Scalars:
    """Return value as an array [rows, D] of float16 or float32, or say what is wrong with it."""
    if type(value) is np.ndarray and value.dtype is _FLOAT32 and value.ndim == 2:
        return value
    if _is_tensor(value):
        if str(value.dtype) not in _TENSOR_DTYPES:
            raise InvalidVectorsError(_wrong_dtype(name, str(value.dtype)))
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if not isinstance(value, np.ndarray):
        raise InvalidVectorsError(_wrong_type(name, value))
    if value.ndim != 2:
        raise InvalidVectorsError(_wrong_rank(name, value.shape))
    if value.dtype in (np.float16, np.float32):
        return value
    if value.dtype == np.float64:
        with np.errstate(over="ignore"):  # an overflow becomes inf, which the finite check reports with its row
            return value.astype(np.float32)
    raise InvalidVectorsError(_wrong_dtype(name, str(value.dtype)))


def check_finite(block: Scalars, name: str, first_row: int) -> None:
    """Refuse NaN, infinity and magnitudes whose squares overflow; one pass each for minimum and maximum.

    A small block passes at once if the sum of its squares is small enough, which takes a third of the time.
    """
    if block.size == 0:
        return
    if block.size <= _ONE_THREAD and block.dtype is _FLOAT32:
        flat = block.ravel()
        if flat.dot(flat) <= LARGEST_MAGNITUDE**2:  # False for NaN too
            return
    largest = max(-float(block.min()), float(block.max()))
    if largest <= LARGEST_MAGNITUDE:  # False for NaN too
        return
    bad = ~(np.abs(block.astype(np.float32)) <= LARGEST_MAGNITUDE)
    row, column = (int(position[0]) for position in np.nonzero(bad))
    raise InvalidVectorsError(
        f"{name}[{first_row + row}, {column}] is {block[row, column]}; every value must be finite and at most "
        f"{LARGEST_MAGNITUDE:.0e} in magnitude (float32 squares must not overflow). "
        f"{int(bad.any(axis=1).sum())} row(s) of this block are affected."
    )


def _wrong_type(name: str, value: object) -> str:
    return (
        f"{name} must be a numpy array or torch tensor, not {type(value).__name__}; "
        "convert it with numpy.asarray(values, dtype=numpy.float32)."
    )


def _wrong_rank(name: str, shape: tuple[int, ...]) -> str:
    hint = "; a single vector v is v[None, :]" if len(shape) == 1 else ""
    return f"{name} must have 2 dimensions [rows, width], not {len(shape)} (shape {list(shape)}){hint}."


def _wrong_dtype(name: str, dtype: str) -> str:
    return f"{name} must be float16, bfloat16, float32 or float64, not {dtype}; convert them deliberately."
