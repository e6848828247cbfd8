"""Build everything that the training of a recipe needs: the composition root of this room."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from retroflow.components import MODELS, TRACKERS, create
from retroflow.distributed.ranks import ALONE, Ranks
from retroflow.pipeline.chunks import check_a_sequence
from retroflow.pipeline.lookups import LiveSearch, open_search
from retroflow.pipeline.options import NeighbourOptions
from retroflow.pipeline.prepare import Prepared, Stage, prepare, say_stage
from retroflow.pipeline.splits import Splits, open_splits
from retroflow.planning.model_check import check_model
from retroflow.planning.options import OptimizerOptions, TrainerOptions
from retroflow.planning.placement import Placement, place
from retroflow.planning.runs_folder import check_runs_folder, runs_folder_of
from retroflow.recipe import Recipe
from retroflow.runs.record import facts_of
from retroflow.runs.resuming import ResumePoint, identity
from retroflow.runs.schedules import with_schedules
from retroflow.tracking.background import GuardedTracker
from retroflow.training.lightning_module import RetroModule
from retroflow.training.questions import with_passages


@dataclass(frozen=True)
class Job:
    """The objects of a recipe's training.

    Attributes:
        name: the recipe's name.
        seed: the recipe's seed.
        options: the trainer section; `retrieval` is False too if the model cannot read neighbours.
        num_workers: processes that load batches.
        placement: device and precision.
        splits: the data.
        module: the training step, with its model.
        tracker: mirror of the metrics.
        identity: identifies the run and its checkpoints.
        prepared: the artifacts of the splits.
        step: tokens between two lookups in evaluation; None for a chunk's.
        search: opens the database for them.
    """

    name: str
    seed: int
    options: TrainerOptions
    num_workers: int
    placement: Placement
    splits: Splits
    module: RetroModule
    tracker: GuardedTracker
    identity: dict[str, Any]
    prepared: Prepared | None = None
    step: int | None = None
    search: Callable[[], LiveSearch] | None = None

    @property
    def runs_folder(self) -> Path:
        return runs_folder_of(self.options.runs_folder)


def make_job(recipe: Recipe, *, ranks: Ranks = ALONE, prepared: Prepared | None = None, keeps_run: bool = True) -> Job:
    """Check the options, prepare what is missing, and put the parts together.

    Args:
        recipe: the checked recipe.
        ranks: of this process.
        prepared: the artifacts, if another process has prepared them.
        keeps_run: whether a run folder will be made or written to.

    Raises:
        RetroflowError: the recipe cannot be trained; options are checked before anything is prepared.
    """
    options = TrainerOptions(**recipe.section("trainer"))
    optimizer = OptimizerOptions(**recipe.section("optimizer"))
    placement = place(options, ranks)
    if keeps_run:
        check_runs_folder(runs_folder_of(options.runs_folder))
    check_model(recipe, options, placement)
    tracker = create(TRACKERS, recipe.section("tracker"))
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    data: dict[str, Any] = recipe.section("data")
    prepared = prepared or prepare(recipe, report=lambda stage: _report(stage, data["sequence_chunks"]))
    splits = open_splits(prepared, sequence_chunks=data["sequence_chunks"])
    m = splits.train_chunks.chunk_length
    neighbours = NeighbourOptions(**recipe.section("neighbours"))
    step = neighbours.step_for(m)
    config = create(
        MODELS,
        recipe.section("model"),
        vocabulary_size=splits.train_chunks.vocabulary_size,
        chunk_length=m,
    )
    module = RetroModule(model=config, optimizer=optimizer, trainer=options, seed=recipe.values["seed"])
    options, seed = replace(options, retrieval=module.retrieves), recipe.values["seed"]
    if data["format"] == "qa":
        step, splits = m, replace(splits, answers_only=True)
        if options.retrieval:
            splits = with_passages(splits, data["passages"], neighbours.k)
    return Job(
        name=recipe.name,
        seed=seed,
        options=options,
        num_workers=data["num_workers"],
        placement=placement,
        splits=splits,
        module=module,
        tracker=GuardedTracker(tracker),
        identity=identity(recipe, prepared.fingerprints, facts_of(options, placement, module.outline, seed)),
        prepared=prepared,
        step=None if step == m else step,
        search=partial(open_search, recipe, prepared),
    )


def _report(stage: Stage, sequence_chunks: int) -> None:
    """Report a finished stage; refuse too few chunks before they are embedded."""
    say_stage(stage)
    if stage.kind == "chunks":
        check_a_sequence(stage.manifest, sequence_chunks)


def bound(job: Job, start: ResumePoint) -> Job:
    """Return the job with the schedules of its run in its checkpoints."""
    return replace(job, identity=with_schedules(job.identity, start.schedules))
