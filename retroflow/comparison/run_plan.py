"""Compare a run of `fit`: its validation split, and its neighbours or those of another database."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.comparison.subject import Subject, evenly_spaced
from retroflow.distributed.ranks import ALONE
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import Placement, place
from retroflow.runs.checkpoint_files import checksum_path
from retroflow.store.atomic import canonical_json
from retroflow.training.evaluate import RunToMeasure, run_to_measure


@dataclass(frozen=True)
class RunPlan:
    """A `Plan` for a checkpoint of a run.

    Attributes:
        opened: the checkpoint, with overrides.
        sequences: most sequences to compare; None for all.
    """

    opened: RunToMeasure
    sequences: int | None

    @classmethod
    def of(
        cls, run_folder: Path, overrides: Sequence[str], *, sequences: int | None, checkpoint: str | None
    ) -> "RunPlan":
        """Check a run and overrides.

        Raises:
            RetroflowError: as `run_to_measure`.
        """
        return cls(run_to_measure(run_folder, overrides, checkpoint=checkpoint), sequences)

    @property
    def folder(self) -> Path:
        """As in `Plan`."""
        return self.opened.run.path / "comparisons"

    @cached_property
    def placement(self) -> Placement:
        """Device and precision."""
        return place(TrainerOptions(**self.opened.recipe.section("trainer")), ALONE)

    @property
    def definition(self) -> dict[str, Any]:
        """As in `Plan`; of the trainer's options only device and precision matter."""
        identity, changed = self.opened.described.identity, self.opened.changed
        return {
            "kind": "run",
            "checkpoint": self._digest,
            "identity": hashlib.sha256(canonical_json(identity)).hexdigest(),
            "changed": {key: str(value) for key, value in changed.items() if not key.startswith("trainer.")},
            "retrieval": self.opened.recipe.values["trainer"]["retrieval"],
            "device": self.placement.accelerator,
            "precision": self.placement.precision,
            "sequences": self.sequences,
        }

    @property
    def stated(self) -> dict[str, Any]:
        """As in `Plan`."""
        changed, record = self.opened.changed, self.opened.record
        prints = self.opened.described.fingerprints
        own = f"index-{prints['index']}" if "index" in prints else None
        return {
            "model": {
                "run": str(self.opened.run.path),
                "checkpoint": self.opened.checkpoint.name,
                "checkpoint_sha256": self._digest,
                "overrides": {key: str(value) for key, value in changed.items()},
                "device": self.placement.accelerator,
                "precision": self.placement.precision,
                "training": asdict(record),
            },
            "database": {"name": changed.get("database", own), "neighbours": self.opened.recipe.values["neighbours"]},
        }

    @property
    def _digest(self) -> str:
        return checksum_path(self.opened.checkpoint).read_text(encoding="utf-8").split()[0]

    def open(self, check: Callable[[], None]) -> Subject:
        """As in `Plan`."""
        job = self.opened.job()
        model = job.module.model.to(job.placement.device).eval()
        count = len(job.splits.validation())
        wanted = count if self.sequences is None else self.sequences
        sequences: Any = evenly_spaced(count, wanted, job.seed)
        return Subject(
            model=model,
            placement=job.placement,
            splits=job.splits,
            sequences=np.asarray(sequences, dtype=np.int64),
            seed=job.seed,
            batch_size=job.options.eval_batch_size,
            step=job.step if job.options.retrieval else None,
            search=job.search,
            reads=job.options.retrieval,
            check=check,
        )
