"""The build of an index in shards: trained once, filled by many processes, ended by `CheckedRetriever.merge`."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from retroflow.protocols import BuildsInShards, Capabilities
from retroflow.retrieval.blame import blaming
from retroflow.retrieval.keys import checked_keys

Filled = Callable[[], Iterable[Mapping[str, NDArray[Any]]]]
"""Gives what the shards were filled with, in order; see `BuildsInShards.merge`."""


class IndexShards:
    """A retriever that builds its index in shards; its failures name it.

    Args:
        backend: the retriever.
        owner: its name with its distribution.
        capabilities: what it declares.
    """

    def __init__(self, backend: BuildsInShards, owner: str, capabilities: Capabilities) -> None:
        self.backend, self._owner, self._capabilities = backend, owner, capabilities

    def train(self, keys: object, folder: Path) -> None:
        """Write what filling needs into an empty folder; keys as for `CheckedRetriever.build`."""
        checked = checked_keys(keys, self._capabilities)
        with blaming(self._owner, "train()", f"training the index for {len(checked):,} keys"):
            self.backend.train(checked, folder)

    def open_trained(self, folder: Path) -> None:
        """Read what `train` wrote."""
        with blaming(self._owner, "open_trained()"):
            self.backend.open_trained(folder)

    def fill(self, keys: object) -> dict[str, NDArray[Any]]:
        """Return what the index holds of the keys of a shard; keys as for `CheckedRetriever.build`."""
        checked = checked_keys(keys, self._capabilities)
        with blaming(self._owner, "fill()", f"filling the index with {len(checked):,} keys"):
            return self.backend.fill(checked)
