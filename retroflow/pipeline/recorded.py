"""Open artifacts by recorded fingerprints, without the corpus or embedder of their recipe."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from retroflow.pipeline.prepare import Prepared, Stage, prepared_of
from retroflow.store.artifact import check_parents, open_artifact, parent_of
from retroflow.store.manifest import KINDS


def open_recorded(folder_of: Callable[[str], Path], kinds: Iterable[str]) -> Prepared:
    """Open artifacts and check that they belong together.

    Args:
        folder_of: gives the folder of a kind.
        kinds: those to open, chunks among them.

    Raises:
        RetroflowError: as `folder_of`, or one is missing.
        DamagedDataError: the bytes of one differ from what was written, or it was made from others.
    """
    wanted = set(kinds)
    stages: list[Stage] = []
    for kind in KINDS:
        if kind not in wanted:
            continue
        started = time.monotonic()
        folder = folder_of(kind)
        manifest = open_artifact(folder, kind=kind)
        # A rebuilt index may have other bytes but is equivalent (pipeline/prepare.py).
        parents = {
            stage.kind: parent_of(stage.manifest, by_content=stage.kind != "index")
            for stage in stages
            if stage.kind in manifest.parents
        }
        check_parents(folder, manifest, parents)
        stages.append(Stage(folder, manifest, False, time.monotonic() - started))
    return prepared_of(*stages)
