"""Lightning's interface to our checkpoints; a separate file, so that reading one does not load Lightning."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from retroflow.runs.checkpoint_files import checksum_path
from retroflow.runs.checkpoints import read_checkpoint, write_checkpoint


class AtomicIO(CheckpointIO):
    """Writes and reads checkpoints as `checkpoints` does."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
        checksum_path(Path(path)).unlink(missing_ok=True)
