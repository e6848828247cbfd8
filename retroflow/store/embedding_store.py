"""The embeddings of one split, read in ranges of rows.

Shapes: N chunks, D embedding width.
"""

import os
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retroflow.store.agreement import check_shapes, num_rows
from retroflow.store.artifact import open_artifact
from retroflow.store.manifest import damaged


class EmbeddingStore:
    """One split of an embeddings artifact; a `retroflow.protocols.VectorSource`.

    Rows are read, not mapped: an index build reads all of them, and mapped pages would count as its memory.

    Attributes:
        shape: (N, D).
    """

    def __init__(self, folder: Path) -> None:
        artifact, split = folder.parent, folder.name
        manifest = open_artifact(artifact, kind="embeddings")
        name = f"{split}/embeddings.npy"
        if name not in manifest.files:
            raise damaged(artifact / "manifest.json", f'it has no split "{split}"', artifact)
        rows, dimension = num_rows(manifest)[split], int(manifest.info["dimension"])
        check_shapes(artifact, manifest, {name: (rows, dimension)})
        entry = manifest.files[name]
        self.path = artifact / name
        self.shape: tuple[int, ...] = entry.shape
        self._header_bytes = entry.header_bytes
        self._artifact = artifact

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a split's folder, `embeddings-<fingerprint>/train` or `/valid`, checked.

        Raises:
            RetroflowError: there is no such artifact.
            DamagedDataError: its bytes differ from what was written.
        """
        return cls(Path(folder).absolute())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> NDArray[np.float16]:
        """Read rows; float16 [stop - start, D], a copy that may be changed."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"rows: a slice of step {step} given; allowed: step 1.")
        stop = max(start, stop)
        vectors = np.empty((stop - start, self.shape[1]), dtype=np.float16)
        if start == stop:
            return vectors
        buffer = memoryview(vectors.reshape(-1).view(np.uint8).data)
        offset = self._header_bytes + start * self.shape[1] * vectors.itemsize
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            while buffer:
                part = os.preadv(descriptor, [buffer], offset)
                if part == 0:
                    raise damaged(self.path, "it has become shorter", self._artifact)
                buffer, offset = buffer[part:], offset + part
        finally:
            os.close(descriptor)
        return vectors
