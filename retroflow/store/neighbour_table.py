"""The neighbours of every chunk of one split, memory-mapped.

Shapes: N chunks, k neighbours.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retroflow.store.agreement import check_shapes, num_rows
from retroflow.store.array_file import map_array
from retroflow.store.artifact import open_artifact
from retroflow.store.manifest import FileEntry, damaged


class NeighbourTable:
    """One split of a neighbours artifact.

    Attributes:
        ids: int64 [N, k], rows of the training chunks, best first, -1 if there is none.
        scores: float32 [N, k], higher is better, -inf where there is none.
        k: neighbours of a chunk.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileEntry]) -> None:
        artifact, split = folder.parent, folder.name
        names = (f"{split}/ids.npy", f"{split}/scores.npy")
        if names[0] not in files:
            raise damaged(artifact / "manifest.json", f'it has no split "{split}"', artifact)
        self.ids: NDArray[np.int64] = map_array(artifact, names[0], files[names[0]])
        self.scores: NDArray[np.float32] = map_array(artifact, names[1], files[names[1]])
        self.k = int(self.ids.shape[1])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a split's folder, `neighbours-<fingerprint>/train` or `/valid`, checked.

        Raises:
            RetroflowError: there is no such artifact.
            DamagedDataError: its bytes differ from what was written, or ids and scores do not fit together.
        """
        folder = Path(folder).absolute()
        manifest = open_artifact(folder.parent, kind="neighbours")
        table, split = cls(folder, manifest.files), folder.name
        shape = (num_rows(manifest)[split], int(manifest.info["k"]))
        check_shapes(folder.parent, manifest, {f"{split}/{name}.npy": shape for name in ("ids", "scores")})
        return table

    def __len__(self) -> int:
        return len(self.ids)
