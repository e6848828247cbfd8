"""Making an artifact: what is begun is continued, unless it was begun from something else."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retroflow.errors import CorpusError
from retroflow.pipeline.sharing import ALONE, Shard, Sharing
from retroflow.pipeline.stages import Block, make_artifact, row_blocks
from retroflow.store.artifact import artifact_folder, open_artifact
from retroflow.store.manifest import Manifest
from retroflow.store.pieces import Pieces, join_pieces


class Squares:
    """Squares of 0 to 9, in blocks of 4 rows; notes which were made."""

    kind, doing, unit = "chunks", "square numbers", "numbers"
    final_errors: tuple[type[Exception], ...] = (CorpusError,)

    def __init__(self, parent: str = "a", fails_at: int | None = None) -> None:
        self.inputs: dict[str, Any] = {"version": 1}
        self.parents = {"embeddings": {"fingerprint": "f", "content": parent}}
        self.made: list[int] = []
        self._fails_at = fails_at

    def begin(self, partial: Path) -> dict[str, Any]:
        return {}

    def size(self) -> int:
        return 10

    def blocks(self) -> Iterator[Block]:
        return row_blocks({"train": 10}, 4, self._make)

    def join(self, partial: Path, pieces: Pieces, sources: Sequence[str]) -> Manifest:
        return Manifest(self.kind, self.inputs, self.parents, files=join_pieces(partial, pieces, sources))

    def _make(self, split: str, rows: slice) -> dict[str, np.ndarray]:
        if rows.start == self._fails_at:
            raise CorpusError("no number")
        self.made.append(rows.start)
        return {f"{split}/squares": np.arange(rows.start, rows.stop) ** 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return artifact_folder(tmp_path, "chunks", {"version": 1})


def test_a_process_alone_makes_every_block_once(folder: Path) -> None:
    stage = Squares()
    assert make_artifact(stage, folder, ALONE) and stage.made == [0, 4, 8]
    assert np.load(folder / "train/squares.npy").tolist() == [number**2 for number in range(10)]
    assert not make_artifact(Squares(), folder, ALONE)


def test_blocks_that_are_there_are_not_made_again_unless_they_are_of_other_parents(folder: Path) -> None:
    for made in ([0, 4, 8], []):
        stage = Squares()
        stage.join = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            make_artifact(stage, folder, ALONE)
        assert stage.made == made
    other = Squares(parent="b")
    assert make_artifact(other, folder, ALONE) and other.made == [0, 4, 8]


def interrupted(*given: object) -> Manifest:
    raise KeyboardInterrupt


def test_a_manifest_of_other_parents_that_was_not_renamed_is_no_artifact(folder: Path) -> None:
    make_artifact(Squares(), folder, ALONE)
    folder.rename(folder.with_name(f"{folder.name}.partial"))
    same = Squares()
    assert make_artifact(same, folder, ALONE) and same.made == []
    folder.rename(folder.with_name(f"{folder.name}.partial"))
    other = Squares(parent="b")
    assert make_artifact(other, folder, ALONE) and other.made == [0, 4, 8]
    assert open_artifact(folder).parents == other.parents


def test_an_error_that_will_come_again_leaves_nothing_but_the_blocks_of_shards(folder: Path) -> None:
    with pytest.raises(CorpusError):
        make_artifact(Squares(fails_at=4), folder, ALONE)
    assert list(folder.parent.glob("chunks-*")) == []
    with pytest.raises(CorpusError):
        make_artifact(Squares(fails_at=4), folder, Sharing(Shard(2, 2), wait=0))
    with pytest.raises(CorpusError):
        make_artifact(Squares(fails_at=4), folder, ALONE)
    assert [path.name for path in folder.parent.glob("chunks-*")] == [f"{folder.name}.pieces"]
