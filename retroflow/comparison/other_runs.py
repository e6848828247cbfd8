"""Other runs as rows of a comparison: models that were trained otherwise, measured on the same tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.comparison.probe import probe
from retroflow.comparison.rows import Measured, reading
from retroflow.comparison.run_plan import RunPlan
from retroflow.comparison.subject import Plan, Subject
from retroflow.errors import UsageError
from retroflow.evaluation.modes import Mode
from retroflow.protocols import Int64Array
from retroflow.store.atomic import canonical_json


@dataclass(frozen=True)
class OtherRun:
    """A run that another one is compared with.

    Attributes:
        plan: of the run.
        name: of its row.
    """

    plan: RunPlan
    name: str

    @cached_property
    def mode(self) -> Mode:
        """Its row."""
        retrieves = self.plan.opened.record.retrieval
        return Mode(
            self.name,
            f"another run, trained {'with' if retrieves else 'without'} retrieval",
            "its own, as found" if retrieves else "none",
            needs=(),
            passes=6 if retrieves else 1,
        )

    @property
    def made_of(self) -> str:
        """Fingerprint of what its numbers depend on, beside the compared tokens."""
        return hashlib.sha256(canonical_json(self.plan.definition)).hexdigest()

    def measured(self, subject: Subject) -> Measured:
        """Open the run's model for the compared sequences of `subject`; as in `rows.ROWS`.

        Raises:
            RetroflowError: it cannot be opened, or fails the causality probe.
        """
        own = self.plan.open(subject.check)
        splits = replace(own.splits, sequence_chunks=subject.splits.sequence_chunks)
        own = replace(own, splits=splits, sequences=subject.sequences, seed=subject.seed)
        probe(own)
        found = reading(own, own.found if own.reads else None)

        def nats(sequences: Int64Array) -> NDArray[np.float32]:
            own.model.forget()
            return found.nats(sequences)

        facts: dict[str, Any] = {
            "run": str(self.plan.opened.run.path),
            "training": asdict(self.plan.opened.record),
        }
        return Measured(nats, facts)


def other_runs(plan: Plan, folders: Sequence[str | Path]) -> dict[str, OtherRun]:
    """Return other runs by the names of their rows: name and number, after the folder of runs where two are alike.

    Args:
        plan: of the run that they are compared with.
        folders: of the others; the newest checkpoint of each is measured, on the device and in the precision of `plan`.

    Raises:
        UsageError: one was prepared with another text, tokenizer or chunk length, or is named twice.
        RetroflowError: one is no run, or is damaged.
    """
    if folders and not isinstance(plan, RunPlan):
        raise UsageError(f"against='{folders[0]}': only a run can be compared with runs; leave it out.")
    found: dict[str, OtherRun] = {}
    for folder in map(str, folders):
        assert isinstance(plan, RunPlan)
        precision = "bf16" if plan.placement.uses_bf16 else "fp32"
        words = [f"trainer.device={plan.placement.accelerator}", f"trainer.precision={precision}"]
        other = RunPlan.of(Path(folder), words, sequences=None, checkpoint=None)
        ours, theirs = (each.opened.described.fingerprints["chunks"] for each in (plan, other))
        if ours != theirs:
            raise UsageError(
                f"against='{folder}': it has another text, tokenizer or chunk length (chunks-{theirs}, not "
                f"chunks-{ours}), so that its losses are of other tokens; name a run of the same corpus and data."
            )
        *_, runs, recipe, number = (path := other.opened.run.path.resolve()).parts
        name = f"{recipe}-{number}"
        if name in found:
            name = f"{runs}-{name}"
        if name in found or path in [each.plan.opened.run.path.resolve() for each in found.values()]:
            raise UsageError(f"against='{folder}': it is named already; leave it out.")
        found[name] = OtherRun(other, name)
    return found
