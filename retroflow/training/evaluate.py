"""`retroflow evaluate`: measure a checkpoint of a run, with overrides if given; the run's own report is kept."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from retroflow.components import recipe_schema
from retroflow.console import say
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.database.neighbours import NumberedLike, neighbours_of
from retroflow.database.snapshot import Snapshot, named_version
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import DamagedDataError, GenerationError, RetroflowError, UsageError
from retroflow.evaluation.report import Report
from retroflow.generation.database import check_fits
from retroflow.generation.former_owner import naming_former_owner, retriever_of_run
from retroflow.pipeline.lookups import LiveSearch
from retroflow.pipeline.prepare import Prepared, expected_fingerprints, prepare
from retroflow.pipeline.recorded import open_recorded
from retroflow.pipeline.splits import Splits
from retroflow.recipe import Recipe, load
from retroflow.runs.checkpoint_files import checkpoint_step
from retroflow.runs.checkpoints import read_head
from retroflow.runs.description import RunDescription, flat
from retroflow.runs.folder import RunFolder, write_report
from retroflow.runs.record import TrainingSummary, record_in
from retroflow.runs.resuming import identity, refuse_other_weights
from retroflow.runs.trained_model import load_checkpoint_weights, open_checkpoint
from retroflow.store.atomic import canonical_json
from retroflow.store.disk import why_not_writable
from retroflow.store.sealed_json import read_sealed
from retroflow.training.final_report import measure_model
from retroflow.training.job import Job, make_job
from retroflow.training.lightning_output import quiet_lightning
from retroflow.training.questions import with_passages

_ALONE = {"trainer.strategy": "auto", "trainer.devices": 1, "trainer.nodes": 1}
"""One process evaluates, however the model was trained."""

_NO_DIFFERENCE = ("data.artifacts_folder", "data.num_workers", "trainer.runs_folder", "tracker.")
"""Keys, or their beginnings, that change no number of a report."""

_PREPARED_SECTIONS = ("corpus.", "embedder.", "retriever.", "neighbours.", "data.")
_NOT_PREPARED = ("data.sequence_chunks", "neighbours.step")


@dataclass(frozen=True)
class Evaluation:
    """A new report of a run.

    Attributes:
        run_folder: the run.
        report: the result.
        file: where it was written; None if it was not.
        failure: why it could not be written, so that the result is not lost.
    """

    run_folder: Path
    report: Report
    file: Path | None
    failure: RetroflowError | None = None


def evaluate(
    run_folder: Path, overrides: Sequence[str] = (), *, checkpoint: str | None = None, output: Path | None = None
) -> Evaluation:
    """Measure a checkpoint of a run over the whole validation split.

    Only a measurement of the last step of a finished run, as it was trained, writes the run's report.json. Any other
    gets a separate file beside it.

    Args:
        run_folder: a run folder of `fit`.
        overrides: `key=value` changes to the run's recipe, such as trainer.device=cpu.
        checkpoint: a step or a path; None for the newest.
        output: where to write the report instead of into the run folder.

    Raises:
        UsageError: not a run folder, no such checkpoint, or overrides that do not fit it.
        DamagedDataError: the checkpoint or an artifact is damaged, or the run folder's files do not belong together.
        RetroflowError: a loss is not finite, or it is clear from the start that `output` cannot be written.
    """
    opened = run_to_measure(run_folder, overrides, checkpoint=checkpoint)
    run, record = opened.run, opened.record
    own = run.path / _report_name(record, opened.changed)
    keeps = _can_be_kept(own) if output is None else _check_output(output, run, own)
    with StopRequests() as requests, quiet_lightning():
        with requests.at_once("stopped while preparing; the same command continues where it stopped"):
            job = opened.job()
        remedy = "the same command starts again"
        report = measure_model(job, record, opened.checkpoint, requests, overrides=opened.changed, remedy=remedy)
    if not keeps:
        return Evaluation(run.path, report, None)
    try:
        write_report(output or own, report.to_json())
    except RetroflowError as error:
        return Evaluation(run.path, report, None, error)
    return Evaluation(run.path, report, output or own)


@dataclass(frozen=True)
class RunToMeasure:
    """A checkpoint of a run, with overrides; nothing large is read yet.

    Attributes:
        described: the run, with the overrides' artifacts folder.
        checkpoint: the file.
        recipe: with the overrides.
        changed: dotted keys whose values differ from the run's, if they can change a number; "database" among them.
        record: how it was trained.
        database: read in place of the run's own; None for that.
    """

    described: RunDescription
    checkpoint: Path
    recipe: Recipe
    changed: dict[str, Any]
    record: TrainingSummary
    database: "OtherDatabase | None"

    @property
    def run(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.described.folder)

    def prepared(self) -> tuple[Recipe, Prepared]:
        """Open or make the artifacts; returns the recipe with paths that exist here, too.

        Raises:
            RetroflowError: as `evaluate`.
        """
        own_changes = {key: value for key, value in self.changed.items() if key != "database"}
        prepared = _prepared_for(self.described, self.recipe, own_changes)
        return _located(self.described, self.recipe), prepared

    def job(self) -> Job:
        """Open or make the data, and build the model with the checkpoint's weights.

        Raises:
            RetroflowError: as `evaluate`.
        """
        recipe, prepared = self.prepared()
        job = make_job(recipe, prepared=prepared, keeps_run=False)
        if self.database is not None:
            splits = _retrieving_from(self.database, job, self.recipe.values["neighbours"]["k"])
            job = replace(job, splits=splits, search=partial(search_of, self.database.snapshot))
        job.module.configure_model()
        load_checkpoint_weights(job.module, self.checkpoint)
        return job


def run_to_measure(run_folder: Path, overrides: Sequence[str] = (), *, checkpoint: str | None = None) -> RunToMeasure:
    """Find a checkpoint and apply overrides; arguments and errors as of `evaluate`."""
    described, path = open_checkpoint(Path(run_folder), checkpoint)
    head = read_head(path)
    overrides, database = _named_database(overrides)
    recipe = _recipe_of(RunFolder(described.folder), overrides)
    changed = _changed(described, recipe)
    if database is not None:
        changed["database"] = database.name
    described = _with_folder(described, recipe.values["data"]["artifacts_folder"])
    record = record_in(path, head, steps=checkpoint_step(path))
    return RunToMeasure(described, path, recipe, changed, record, database)


@dataclass(frozen=True)
class OtherDatabase:
    """A database that is read in place of the run's own.

    Attributes:
        folder: as it was given.
        snapshot: its version.
    """

    folder: str
    snapshot: Snapshot

    @property
    def name(self) -> str:
        """What the report calls it."""
        version = self.snapshot.version
        return f"{self.snapshot.folder}@{version.number} ({version.fingerprint[:16]})"


def _named_database(overrides: Sequence[str]) -> tuple[list[str], OtherDatabase | None]:
    """Take the word `database=PATH` out of overrides."""
    key = "database="
    named = [word.removeprefix(key) for word in overrides if word.startswith(key)]
    if not named:
        return list(overrides), None
    snapshot = Snapshot.open(*named_version(named[-1]))
    return [word for word in overrides if not word.startswith(key)], OtherDatabase(named[-1], snapshot)


def search_of(snapshot: Snapshot) -> LiveSearch:
    """Return the search of a database's version with tokens."""
    return LiveSearch(snapshot.identity.tokenizer, snapshot.identity.embedder, snapshot.search)


def _retrieving_from(database: OtherDatabase, job: Job, k: int) -> Splits:
    """Return the job's data with neighbours from another database."""
    splits, identity = job.splits, database.snapshot.identity
    if not job.options.retrieval:
        raise UsageError(f"database={database.folder}: the run retrieves nothing, so a database changes nothing.")
    tokenizer = load_tokenizer(str(splits.tokenizer))
    check_fits(
        database.snapshot.folder,
        (identity.tokenizer_fingerprint, identity.chunk_length),
        (tokenizer, splits.valid_chunks.chunk_length),
        "retroflow db build DB",
    )
    if splits.answers_only:
        return with_passages(splits, database.snapshot, k)
    found = neighbours_of(database.snapshot, splits.valid_chunks, tokenizer, k)
    return replace(
        splits,
        validation_neighbours=found.ids,
        validation_scores=found.scores,
        other_database=NumberedLike(database.snapshot.view, splits.valid_chunks),
    )


def _recipe_of(run: RunFolder, overrides: Sequence[str]) -> Recipe:
    if not run.recipe.exists():
        raise UsageError(f"{run.path}: {run.recipe.name} is missing. Restore it from {run.description}.")
    alone = [f"{key}={value}" for key, value in _ALONE.items()]
    with naming_former_owner("retriever", retriever_of_run(run.path)):
        return load(run.recipe, [*alone, *overrides], schema=recipe_schema())


def _changed(described: RunDescription, recipe: Recipe) -> dict[str, Any]:
    """Return dotted keys whose values differ from the run's, if they can change a number."""
    before, now = flat(described.values), flat(recipe.values)
    keys = sorted(key for key in (before.keys() | now.keys()) - _ALONE.keys() if not key.startswith(_NO_DIFFERENCE))
    return {key: now.get(key) for key in keys if before.get(key) != now.get(key)}


def _report_name(record: TrainingSummary, changed: Mapping[str, Any]) -> str:
    if record.is_finished and not changed:
        return "report.json"
    name = f"report-step-{record.steps:08d}"
    if changed:
        name += "-" + hashlib.sha256(canonical_json(dict(changed))).hexdigest()[:8]
    return f"{name}.json"


def _can_be_kept(own: Path) -> bool:
    if not why_not_writable(own.absolute().parent):
        return True
    say(f"{own.parent} cannot be written: the report is shown but not saved; choose another file for it")
    return False


def _check_output(output: Path, run: RunFolder, own: Path) -> bool:
    """Refuse a file that must not or cannot be written, before minutes of measuring."""
    folder = output.absolute().parent
    is_a_report = output.name == run.report.name and (folder / run.description.name).exists()
    if is_a_report and output.resolve() != own.resolve():
        raise UsageError(
            f"output='{output}': a run's {output.name} is of its last step, as it was trained; choose another name."
        )
    if output.exists() and not output.is_dir() and not _is_report(output):
        raise UsageError(f"output='{output}': this file exists and is not a report of evaluate; choose another name.")
    if output.is_dir() or not folder.is_dir():
        reason = "is a folder" if output.is_dir() else f"there is no folder {folder}"
        raise UsageError(f"output='{output}': {reason}; give a file to write.")
    if why := why_not_writable(folder):
        raise RetroflowError(f"output='{output}': {folder} cannot be written ({why}); choose another folder.")
    return True


def _is_report(file: Path) -> bool:
    try:  # a device has no end
        return file.is_file() and "report_version" in read_sealed(file, remedy="")
    except DamagedDataError:
        return False


def _prepared_for(described: RunDescription, recipe: Recipe, changed: Mapping[str, Any]) -> Prepared:
    """Open the run's artifacts, or make those of the overrides; the chunks are always the run's."""
    refuse_other_weights(described.folder, described.identity, identity(recipe, described.fingerprints, {}))
    retrieval = recipe.values["trainer"]["retrieval"] and recipe.values["data"]["format"] == "text"
    wanted = list(described.fingerprints) if retrieval else ["chunks"]
    touched = [key for key in changed if key.startswith(_PREPARED_SECTIONS) and key not in _NOT_PREPARED]
    asked = ", ".join(f"{key}={changed[key]}" for key in touched)
    if retrieval and "neighbours" not in described.fingerprints:
        asked = ", ".join(filter(None, [asked, "trainer.retrieval=true"]))
    missing = ""
    if not asked:
        try:
            return open_recorded(described.artifact, wanted)
        except GenerationError as error:
            missing = str(error)
    here = _located(described, recipe)
    expected = _expected(here, asked, missing)
    refuse_other_weights(described.folder, described.identity, identity(recipe, expected, {}))
    anew = [kind for kind in expected if expected[kind] != described.fingerprints.get(kind)]
    if missing and anew:
        raise UsageError(f"{missing}\nWhat this makes here now would be other {', '.join(anew)}.")
    if anew:
        say(f"{', '.join(anew)}: not the run's, because of {asked}; made where they are missing")
    return prepare(here)


def _expected(recipe: Recipe, asked: str, missing: str) -> dict[str, str]:
    try:
        return expected_fingerprints(recipe)
    except RetroflowError as error:
        why = missing or f"{asked}: the run's own artifacts cannot be used for this."
        raise type(error)(f"{why}\nOthers cannot be made here: {error}") from error


def _with_folder(described: RunDescription, artifacts_folder: str) -> RunDescription:
    """Return the description, with the overrides' artifacts folder."""
    data = described.values["data"] | {"artifacts_folder": artifacts_folder}
    return replace(described, values=described.values | {"data": data})


def _located(described: RunDescription, recipe: Recipe) -> Recipe:
    """Return the recipe with paths that exist here, and the run's artifacts folder unless it is overridden."""
    values = {
        key: described.located(value) if isinstance(value, dict) else value for key, value in recipe.values.items()
    }
    folder = recipe.values["data"]["artifacts_folder"]
    if folder == described.identity["values"]["data"]["artifacts_folder"]:
        with suppress(GenerationError):
            folder = str(described.artifact("chunks").parent)
    values["data"]["artifacts_folder"] = folder
    return replace(recipe, values=values)
