"""Which run is continued from which checkpoint, and whether the checkpoint belongs to the recipe."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError, UsageError
from retroflow.pipeline.prepare import expected_fingerprints
from retroflow.recipe import Recipe
from retroflow.runs.checkpoint_files import checkpoint_step, list_checkpoints
from retroflow.runs.checkpoints import newest_verified, read_head, verify_checkpoint
from retroflow.runs.description import flat, not_a_run
from retroflow.runs.folder import RunFolder, list_runs, new_run, write_description
from retroflow.runs.schedules import Schedule, in_force, lengthened, schedules_of
from retroflow.version import __version__

LAST = Path("last")
"""Value of `resume` for the last unfinished run of the recipe."""

BINDING_SECTIONS = ("seed", "model", "optimizer")
BINDING_KEYS = (
    "data.sequence_chunks",
    "trainer.max_steps",
    "trainer.batch_size",
    "trainer.retrieval",
    "trainer.retrieval_dropout",
    "trainer.random_neighbours",
    "trainer.random_target",
    "trainer.distil",
)
"""Keys that must be equal in a run and its checkpoints, besides the artifacts; others may change."""


@dataclass(frozen=True)
class ResumePoint:
    """Where training begins.

    Attributes:
        run: the run folder.
        checkpoint: to load first, None for a new start.
        step: optimizer steps already done.
        schedules: the run's, oldest first; more than one if it was lengthened.
        is_finished: whether the run is already trained and evaluated.
    """

    run: RunFolder
    checkpoint: Path | None = None
    schedules: tuple[Schedule, ...] = ()
    is_finished: bool = False

    @property
    def step(self) -> int:
        return checkpoint_step(self.checkpoint) if self.checkpoint else 0


Identity = dict[str, Any]
"""What a run and its checkpoints are bound to, as JSON values; see `identity`."""


def identity(recipe: Recipe, fingerprints: Mapping[str, str], training: Mapping[str, Any]) -> Identity:
    """What a run is: recipe, artifacts, version, and the facts of its training.

    Args:
        recipe: the recipe.
        fingerprints: of its artifacts.
        training: from `record.facts_of`.
    """
    return {
        "recipe": recipe.to_yaml(),
        "values": _plain(recipe.values),
        "fingerprints": dict(fingerprints),
        "version": __version__,
        "training": dict(training),
    }


def _plain(values: Mapping[str, Any]) -> Any:
    """As JSON values, so that they are equal to those read back from run.json."""
    return json.loads(json.dumps(values, default=str))


def choose_start(
    recipe: Recipe,
    this: Identity,
    *,
    runs_folder: Path,
    resume: Path | None,
    say: Callable[[str], None],
    hold: Callable[[RunFolder], object] = lambda run: None,
) -> ResumePoint:
    """Make a new run, or find the one to continue.

    Args:
        recipe: the present recipe.
        this: its `identity`.
        runs_folder: where runs lie.
        resume: None for a new run, `LAST`, a run folder, or a checkpoint. A named run may continue with another
            `trainer.max_steps`; then its recipe.yaml is replaced and an old report is renamed.
        say: called with what is resumed and what was skipped.
        hold: locks a run before its checkpoints are listed: a job that is being preempted may still write one while its
            successor starts.

    Raises:
        UsageError: there is no such run, or it was made by another recipe.
        DamagedDataError: the named checkpoint, or every checkpoint of the run, is damaged.
    """
    if resume is None:
        return _begin(recipe, this, runs_folder, hold)
    if resume != LAST:
        return _named_start(resume, this, say, hold)
    unfinished = _unfinished(runs_folder, recipe.name)
    if matching := [run for run in unfinished if _fits(run, this)]:
        hold(matching[0])
        if matching[0].is_finished:  # while this process waited
            return choose_start(recipe, this, runs_folder=runs_folder, resume=resume, say=say, hold=hold)
        return _continue(matching[0], _newest(matching[0], say), this, say)
    if finished := _finished_as(this, runs_folder, recipe.name):
        return _nothing_to_do(finished, say)
    if unfinished:
        refuse_other_recipe(unfinished[0].path, unfinished[0].identity(), this)
    say(f"no unfinished run of '{recipe.name}' in {runs_folder}; starting a new one")
    return _begin(recipe, this, runs_folder, hold)


def check_resume(
    recipe: Recipe,
    resume: Path,
    *,
    fingerprints_of: Callable[[Recipe], Mapping[str, str]] = expected_fingerprints,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Refuse what `choose_start` would refuse, before anything is prepared.

    Args:
        recipe: the present recipe.
        resume: as for `choose_start`.
        fingerprints_of: returns the fingerprints of a recipe's artifacts.
        environment: shows whether this is one of several processes. These make no artifact, and need not all read the
            corpus for its fingerprint.

    Raises:
        UsageError: there is no such run, or every run that could be continued was made by another recipe or other text.
        DamagedDataError: the description of a run cannot be read.
    """
    folder = Path(os.path.expanduser(recipe.section("trainer")["runs_folder"]))
    now = {"values": _plain(recipe.values)}
    if resume != LAST:
        run = _named_run(resume)
        path = resume if resume.is_file() else next(iter(list_checkpoints(run.checkpoints)), None)
        step, stored = checkpoint_step(path) if path else 0, run.identity()
        _refuse_unless_lengthened(resume, stored, stored | now, step)
        if not _is_one_of_several(environment):
            now["fingerprints"] = dict(fingerprints_of(recipe))
            _refuse_unless_lengthened(resume, stored, stored | now, step)
        return
    runs = _unfinished(folder, recipe.name)
    fitting = [run for run in runs if _fits(run, now)]
    if not fitting and _finished_as(now, folder, recipe.name):
        return
    if fitting and not _is_one_of_several(environment):
        now["fingerprints"] = dict(fingerprints_of(recipe))
        runs, fitting = fitting, [run for run in fitting if _fits(run, now)]
    if runs and not fitting:
        stored = runs[0].identity()
        refuse_other_recipe(runs[0].path, stored, stored | now)


def _fits(run: RunFolder, this: Identity) -> bool:
    """Whether a run agrees with an identity, of which only a part may be known."""
    stored = run.identity()
    return not differences(stored, stored | this)


def _is_one_of_several(environment: Mapping[str, str]) -> bool:
    return any(environment.get(name, "1") != "1" for name in ("WORLD_SIZE", "SLURM_NTASKS"))


def _unfinished(runs_folder: Path, name: str) -> list[RunFolder]:
    return [run for run in list_runs(runs_folder, name) if not run.is_finished and run.description.exists()]


def _finished_as(this: Identity, runs_folder: Path, name: str) -> RunFolder | None:
    """Return the newest finished run of the same recipe and artifacts."""
    for run in list_runs(runs_folder, name):
        with suppress(DamagedDataError):  # of a run that is not used
            if run.is_finished and _fits(run, this):
                return run
    return None


def _begin(recipe: Recipe, this: Identity, runs_folder: Path, hold: Callable[[RunFolder], object]) -> ResumePoint:
    run = new_run(runs_folder, recipe.name)
    hold(run)
    write_description(run, this, {})
    return ResumePoint(run)


def _nothing_to_do(run: RunFolder, say: Callable[[str], None]) -> ResumePoint:
    say(
        f"{run.path} is finished, so nothing is trained; this is its report. For a new run do not resume; to "
        f"train this one longer, resume {run.path} with a larger trainer.max_steps"
    )
    return ResumePoint(run, is_finished=True)


def _named_start(
    path: Path, this: Identity, say: Callable[[str], None], hold: Callable[[RunFolder], object]
) -> ResumePoint:
    run = _named_run(path)
    hold(run)
    stored = run.identity()
    reported = run.reported_training().get("steps", 0)
    if path.is_dir() and run.is_finished and reported >= _max_steps(this) and not differences(stored, this):
        return _nothing_to_do(run, say)
    if path.is_file():
        verify_checkpoint(path)
        checkpoint: Path | None = path
    else:
        checkpoint = _newest(run, say)
        if checkpoint is None and run.is_finished:
            raise UsageError(f"{run.path} is finished and has no checkpoint to continue from; start a new run.")
    step = checkpoint_step(checkpoint) if checkpoint else 0
    _refuse_unless_lengthened(path, stored, this, step)
    start = _continue(run, checkpoint, this, say)
    if step < _max_steps(this) and run.is_finished:  # from now on it is not
        run.report.replace(run.report.with_name(f"report-step-{reported:08d}.json"))
    return start


def _newest(run: RunFolder, say: Callable[[str], None]) -> Path | None:
    return newest_verified(run.checkpoints, say=say) if list_checkpoints(run.checkpoints) else None


def _named_run(path: Path) -> RunFolder:
    if path.is_file():
        run = RunFolder(path.parent.parent)
        checkpoint_step(path)
        if path.parent != run.checkpoints or not run.description.exists():
            raise UsageError(
                f"resume='{path}': not in a run folder; give <run folder>/checkpoints/<checkpoint>, or the run folder."
            )
        return run
    run = RunFolder(path)
    if not run.description.exists():
        raise UsageError(f"resume='{path}': neither a checkpoint nor a run folder. {not_a_run(path)}")
    return run


def _continue(run: RunFolder, path: Path | None, this: Identity, say: Callable[[str], None]) -> ResumePoint:
    stored = run.identity()
    if path is None:
        say(f"{run.path} has no checkpoint yet; starting it again from step 0")
        return ResumePoint(run)
    step, schedules = checkpoint_step(path), schedules_of(stored)
    refuse_other_recipe(path, read_head(path).get("retroflow", {}), identity_at(step, this, schedules))
    say(f"continuing {run.path} from step {step}")
    return ResumePoint(run, path, lengthened(schedules, step=step, max_steps=_max_steps(this)))


def _max_steps(identity: Identity) -> int:
    return int(identity["values"]["trainer"]["max_steps"])


def identity_at(step: int, identity: Identity, schedules: Sequence[Schedule]) -> Identity:
    """Return the identity of a step's checkpoint in a run that was lengthened later."""
    return _with_max_steps(identity, in_force(schedules, step).max_steps) if schedules else identity


def _with_max_steps(identity: Identity, max_steps: int) -> Identity:
    values = identity["values"]
    return identity | {"values": values | {"trainer": values["trainer"] | {"max_steps": max_steps}}}


def _refuse_unless_lengthened(path: Path, stored: Identity, this: Identity, step: int) -> None:
    """Raise UsageError unless nothing differs, or only `trainer.max_steps` and there are steps left to train."""
    if not differences(stored, this):
        return
    refuse_other_recipe(path, _with_max_steps(stored, _max_steps(this)), this)
    if _max_steps(this) <= step:
        raise UsageError(
            f"trainer.max_steps: {_max_steps(this)} given, and {path} has {step} steps done; give more than {step} to "
            "train it longer."
        )


def refuse_other_recipe(path: Path, stored: Identity, this: Identity) -> None:
    """Raise UsageError, naming every differing key, unless `stored` may be continued as `this`."""
    if found := differences(stored, this):
        raise UsageError(
            f"{path} belongs to another recipe; these differ:\n{_listed(found)}\n"
            "use its own recipe (recipe.yaml in its run folder), or start a new run."
        )


def refuse_other_weights(what: Path, stored: Identity, this: Identity) -> None:
    """Raise UsageError unless the model and the tokens of `this` are those of the training of `what`."""
    found = differences(stored, this)
    if any(line.startswith(("model.", "fingerprint of chunks", "it carries")) for line in found):
        raise UsageError(
            f"{what} was trained with another model or other chunks; these differ:\n{_listed(found)}\n"
            "leave these overrides out; the packages a corpus is read from must have the same versions."
        )


def _listed(found: list[str]) -> str:
    """The differences, one a line; if the chunks differ and no value does, the text has changed."""
    lines = [f"  {line}" for line in found]
    is_other_text = any(line.startswith("fingerprint of chunks") for line in found)
    if is_other_text and not any(line.startswith(("corpus.", "data.")) for line in found):
        lines.append("  the recipe's values are the same, so the text of the corpus or the tokenizer has changed since")
    return "\n".join(lines)


def differences(stored: Identity, this: Identity) -> list[str]:
    """Return lines "key: stored value there, this value here" for all differences that are not allowed."""
    if not stored:
        return ["it carries no recipe at all"]
    there, here = flat(stored["values"]), flat(this["values"])
    prints_there, prints_here = stored["fingerprints"], this["fingerprints"]
    artifacts_differ = prints_there != prints_here
    prepared_sections = ("corpus", "embedder", "retriever", "neighbours", "data") if artifacts_differ else ()
    keys = [
        key
        for key in sorted(there.keys() | here.keys())
        if key in BINDING_KEYS or key.split(".")[0] in (*BINDING_SECTIONS, *prepared_sections)
    ]
    lines = [
        f"{key}: {there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} here"
        for key in keys
        if there.get(key, "absent") != here.get(key, "absent")
    ]
    for kind in sorted(prints_there.keys() | prints_here.keys()):
        if prints_there.get(kind) != prints_here.get(kind):
            lines.append(f"fingerprint of {kind}: {prints_there.get(kind)} there, {prints_here.get(kind)} here")
    return lines
