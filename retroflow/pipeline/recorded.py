"""Artifacts that somebody has written down by fingerprint, opened without their recipe's corpus or embedder."""

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
        RetroflowError: what `folder_of` raises, or one is not there.
        DamagedDataError: one has other bytes than were written, or was made from others.
    """
    wanted = set(kinds)
    stages: list[Stage] = []
    for kind in KINDS:
        if kind not in wanted:
            continue
        started = time.monotonic()
        folder = folder_of(kind)
        manifest = open_artifact(folder, kind=kind)
        # An index that was built again may have other bytes and is as good (pipeline/prepare.py).
        parents = {
            stage.kind: parent_of(stage.manifest, by_content=stage.kind != "index")
            for stage in stages
            if stage.kind in manifest.parents
        }
        check_parents(folder, manifest, parents)
        stages.append(Stage(folder, manifest, False, time.monotonic() - started))
    return prepared_of(*stages)
