"""Compare a run of `fit`: its validation split, and its neighbours or those of another database."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.comparison.subject import Embedded, Subject, evenly_spaced, vectors_of, without_vectors
from retroflow.components import TRACKERS, create
from retroflow.database.snapshot import Snapshot, named_version
from retroflow.distributed.ranks import ALONE
from retroflow.errors import UsageError
from retroflow.pipeline.lookups import open_search
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import Placement, place
from retroflow.protocols import ReportTable, VectorSource
from retroflow.runs.checkpoint_files import checksum_path
from retroflow.store.atomic import canonical_json
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.tracking.background import GuardedTracker
from retroflow.training.evaluate import RunToMeasure, run_to_measure
from retroflow.training.job import Job
from retroflow.training.summary import tracked


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
            "passages": self._passages,
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

    @cached_property
    def _passages(self) -> str | None:
        """Fingerprint of the version in which a run with data.format=qa finds passages; None if it reads none there."""
        named = self.opened.described.located(self.opened.recipe.section("data")).get("passages")
        if named is None or self.opened.database is not None:
            return None
        return Snapshot.open(*named_version(named)).version.fingerprint

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
            search=job.search if self._has_index(job) else None,
            reads=job.options.retrieval,
            check=check,
            vectors=self._vectors(job),
        )

    @property
    def retriever(self) -> dict[str, Any]:
        """As in `Plan`."""
        database = self.opened.database
        if database is not None:
            return dict(database.snapshot.identity.sections["retriever"])
        return dict(self.opened.recipe.section("retriever"))

    def mirror(self, table: ReportTable) -> None:
        """Show a table in the run's tracker, as its report was shown; what fails there is said and stops nothing."""
        tracker = GuardedTracker(create(TRACKERS, self.opened.recipe.section("tracker")))
        tracker.start(tracked(self.opened.run.path, self.opened.described.identity, {}))
        tracker.show_report([table], self.opened.record.steps)
        tracker.finish({})

    def embedded(self) -> Embedded:
        """As in `Plan`; the pipeline makes and keeps them.

        Raises:
            UsageError: the run reads another database.
            RetroflowError: as `prepare`.
        """
        if self.opened.database is not None:
            raise UsageError(without_vectors(self.opened.database.snapshot))
        words = [*self.opened.recipe.overrides(), "retriever.name=exact"]
        checkpoint = str(self.opened.checkpoint)
        recipe, prepared = run_to_measure(self.opened.run.path, words, checkpoint=checkpoint).prepared()
        search = open_search(recipe, prepared)
        assert search.embedder is not None and prepared.train_embeddings is not None
        return Embedded(search.embedder, EmbeddingStore.open(prepared.train_embeddings))

    def _has_index(self, job: Job) -> bool:
        """Whether anything can be looked up: a run without retrieval has no index, nor has one with data.format=qa."""
        return self.opened.database is not None or job.prepared is None or job.prepared.index is not None

    def _vectors(self, job: Job) -> Callable[[], VectorSource] | None:
        if self.opened.database is not None:
            return vectors_of(self.opened.database.snapshot)
        folder = None if job.prepared is None else job.prepared.train_embeddings
        return None if folder is None else partial(EmbeddingStore.open, folder)
