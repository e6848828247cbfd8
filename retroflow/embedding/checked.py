"""The wrapper of every embedder: it names the embedder in errors and checks its answers."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retroflow.errors import ComponentError, InvalidVectorsError
from retroflow.protocols import Embedder, Float32Array
from retroflow.registry import Entry, blaming, stated_fingerprint

T = TypeVar("T")


class CheckedEmbedder:
    """An embedder whose errors name it; satisfies `retroflow.protocols.Embedder`.

    Args:
        embedder: the wrapped embedder.
        name: its name in a recipe.
        entry: its line of the registry.

    Attributes:
        owner: name and distribution, as in messages ("letters (my-package 1.0)").
    """

    def __init__(self, embedder: Embedder, *, name: str, entry: Entry) -> None:
        self.owner = f"{name} ({entry.owner})"
        self._embedder, self._entry = embedder, entry

    @property
    def dimension(self) -> int:
        """Width D of the vectors.

        Raises:
            ComponentError: the embedder has none, or an impossible one.
        """
        dimension: Any = self._call("dimension", lambda: self._embedder.dimension)
        if not isinstance(dimension, int) or dimension < 1:
            raise ComponentError(f"embedder {self.owner}: dimension is {dimension!r}; it must be an int of 1 or more.")
        return dimension

    def fit(self, texts: Iterable[str]) -> None:
        """As `Embedder.fit`."""
        self._call("fit()", lambda: self._embedder.fit(texts))

    def embed(self, texts: list[str]) -> Float32Array:
        """As `Embedder.embed`.

        Raises:
            InvalidVectorsError: the result is not an array [len(texts), D].
        """
        vectors: Any = self._call("embed()", lambda: self._embedder.embed(texts))
        shape = (len(texts), self.dimension)
        if not isinstance(vectors, np.ndarray):
            raise InvalidVectorsError(
                f"embedder {self.owner}: embed() must return a numpy array, not {type(vectors).__name__}."
            )
        if vectors.shape != shape or vectors.dtype.kind != "f":
            raise InvalidVectorsError(
                f"embedder {self.owner}: embed() gave {vectors.dtype} {list(vectors.shape)}; float32 {list(shape)} is "
                "needed."
            )
        return vectors

    def save(self, folder: Path) -> None:
        """As `Embedder.save`."""
        self._call("save()", lambda: self._embedder.save(folder))

    def load(self, folder: Path) -> None:
        """As `Embedder.load`."""
        self._call("load()", lambda: self._embedder.load(folder))

    def fingerprint(self) -> dict[str, object]:
        """Return the embedder's fingerprint, checked to be JSON; a plugin's with the distribution it is from."""
        return stated_fingerprint(f"embedder {self.owner}", self._entry, self._embedder.fingerprint)

    def _call(self, action: str, call: Callable[[], T]) -> T:
        with blaming(f"embedder {self.owner}: {action} failed", self._entry):
            return call()
