"""`retroflow fit --dry-run`: what a recipe would need; nothing is made, prepared or downloaded."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retroflow.errors import RetroflowError
from retroflow.pipeline.no_downloads import no_downloads
from retroflow.pipeline.preview import UNKNOWN, Preview, preview
from retroflow.planning.machine_memory import machine_memory
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import plan_placement
from retroflow.planning.plan import Plan, plan_of_recipe
from retroflow.planning.runs_folder import check_runs_folder, runs_folder_of
from retroflow.recipe import Recipe
from retroflow.store.disk import disk_size, nearest_existing


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run.

    Attributes:
        plan: the run.
        artifacts: what is prepared and what is missing.
        artifacts_folder, runs_folder: for artifacts and runs.
        checkpoints_bytes: maximum size of the run's checkpoints at one time.
        failure: the error with which `fit` would stop while preparing, such as a missing corpus; None if not known.
    """

    plan: Plan
    artifacts: Preview
    artifacts_folder: Path
    runs_folder: Path
    checkpoints_bytes: int
    failure: RetroflowError | None = None

    def lines(self) -> list[str]:
        """Describe it, one fact per line."""
        present, missing = ", ".join(self.artifacts.present), ", ".join(self.artifacts.missing)
        new = self.artifacts.new_bytes
        added = "an amount that is not known yet" if new is None else f"about {disk_size(new)}"
        lines = self.plan.lines()
        lines.append(f"prepared   {present or 'nothing'}; to be made: {missing or 'nothing'}")
        if missing:
            free = _free(self.artifacts_folder)
            lines.append(f"disk       {added} of artifacts in {self.artifacts_folder}, where {free} are free")
        lines.append(
            f"disk       {disk_size(self.checkpoints_bytes)} of checkpoints in {self.runs_folder}, where "
            f"{_free(self.runs_folder)} are free"
        )
        return [*lines, *(f"note       {note}" for note in self._notes()), "nothing was made"]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; null means unknown."""
        plan, memory, there = self.plan, self.plan.memory, machine_memory(self.plan.placement)
        return {
            "parameters": plan.outline.num_parameters,
            "retrieval_parameters": plan.outline.num_retrieval_parameters,
            "steps": plan.options.max_steps,
            "tokens": plan.total_tokens,
            "chunks": plan.chunks,
            "chunks_are_estimated": plan.is_estimate,
            "device": plan.placement.accelerator,
            "strategy": plan.placement.strategy,
            "processes": plan.placement.world_size,
            "precision": plan.placement.precision,
            "memory_bytes": memory.total,
            "memory_is_a_lower_bound": not memory.is_complete,
            "machine_memory_bytes": None if there is None else there.total,
            "machine_memory_free_bytes": None if there is None else there.free,
            "fits": None if there is None else memory.total <= there.total,
            "prepared": list(self.artifacts.present),
            "missing": list(self.artifacts.missing),
            "artifacts_bytes": self.artifacts.new_bytes,
            "checkpoints_bytes": self.checkpoints_bytes,
            "notes": [*self.plan.notes(), *self._notes()],
            "failure": None if self.failure is None else str(self.failure),
        }

    def _notes(self) -> list[str]:
        notes = list(self.artifacts.notes)
        placement, here = self.plan.placement, torch.cuda.device_count()
        if placement.accelerator == "cuda" and placement.devices > here:
            notes.append(f"this machine has {here} GPUs, the recipe needs {placement.devices}")
        needs = {self.artifacts_folder: self.artifacts.new_bytes or 0, self.runs_folder: self.checkpoints_bytes}
        for folder, needed in needs.items():
            free = shutil.disk_usage(nearest_existing(folder)).free
            if needed > free:
                notes.append(f"{folder} has {disk_size(free)} free, less than the {disk_size(needed)} needed there")
        return notes


def dry_run(recipe: Recipe) -> DryRun:
    """Find out what a recipe would need.

    Raises:
        RetroflowError: as `fit` before it reads the corpus.
    """
    options = TrainerOptions(**recipe.section("trainer"))
    placement = plan_placement(options)
    runs_folder = runs_folder_of(options.runs_folder)
    check_runs_folder(runs_folder)
    data: dict[str, Any] = recipe.section("data")
    artifacts, failure = UNKNOWN, None
    try:
        artifacts = preview(recipe, retrieval=options.retrieval)
    except RetroflowError as error:  # a model can be planned without its corpus on this machine
        failure = error
    try:
        with no_downloads():
            plan = plan_of_recipe(
                recipe,
                placement,
                vocabulary_size=artifacts.vocabulary_size or data["vocabulary_size"],
                chunks=artifacts.chunks,
                is_estimate=artifacts.is_estimate,
            )
    except RetroflowError as error:  # it may only follow from the vocabulary that is assumed instead
        raise failure or error from error
    return DryRun(
        plan=plan,
        artifacts=artifacts,
        artifacts_folder=Path(os.path.expanduser(data["artifacts_folder"])),
        runs_folder=runs_folder,
        # One more than are kept: the oldest is removed when the newest is complete.
        checkpoints_bytes=(options.keep_checkpoints + 1) * plan.checkpoint_bytes,
        failure=failure,
    )


def _free(folder: Path) -> str:
    return disk_size(shutil.disk_usage(nearest_existing(folder)).free)
