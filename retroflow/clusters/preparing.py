"""`retroflow prepare --on CLUSTER`: rounds of a merge and all shards, until a merge finds everything made.

A merge is one job: it joins what the shards have made, makes what is not divided (the tokenizer, an index that one
process builds) and begins the next stage. Then every shard makes its blocks of that stage. No job waits for another, so
any number of shards runs on any number of processors. What is done is known by the files alone
(retroflow/pipeline/stages.py): a second call continues where the first one was, whatever was killed.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from retroflow.clusters.cluster import Cluster, Ended, Job, Running
from retroflow.clusters.options import Shares, open_cluster
from retroflow.console import progress, say
from retroflow.errors import DamagedDataError, MissingExtraError, RetroflowError, Unfinished, UsageError
from retroflow.pipeline.options import DataOptions
from retroflow.pipeline.prepare import Prepared, Stage, expected_fingerprints, prepare, prepare_words, say_stage
from retroflow.recipe import Recipe
from retroflow.store.artifact import LOGS_FOLDER

FIRST_POLL, LONGEST_POLL = 0.1, 5.0
SEEN_SECONDS = 60.0
"""Until the artifacts of the jobs must be seen here; a network file system may show them late."""

MOST_ROUNDS = 12
"""Four stages are divided; a merge that was preempted, or blocks that were damaged, cost a round more."""

UNFINISHED = Unfinished.exit_code
_SAME_FOR_ALL = (UsageError.exit_code, MissingExtraError.exit_code)
_NO_USE_AGAIN = (*_SAME_FOR_ALL, DamagedDataError.exit_code)


def prepare_on(recipe: Recipe, shares: Shares, *, report: Callable[[Stage], None] = say_stage) -> Prepared:
    """Make what is missing of a recipe's artifacts with a cluster, as `retroflow.pipeline.prepare.prepare` would.

    Args:
        recipe: as it was loaded from its file; the jobs load it again, with its overrides, in this working folder.
        shares: the cluster, and the number of shards.
        report: called with every stage at the end.

    Raises:
        MissingExtraError, UsageError: the cluster cannot be used, or the recipe does not work.
        RetroflowError: a job failed, and failed again as often as allowed; finished work is kept.
    """
    artifacts = Path(os.path.expanduser(DataOptions(**recipe.section("data")).artifacts_folder)).absolute()
    names = {f"{kind}-{fingerprint}" for kind, fingerprint in expected_fingerprints(recipe).items()}
    if not all((artifacts / name).exists() for name in names):
        logs = artifacts / LOGS_FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        cluster = open_cluster(shares, logs)
        logs.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(logs / ".lock"):  # `retroflow clean` leaves the folder alone
                say(f"{shares.count} shards on {cluster.name}; a log for each in {logs}")
                _rounds(cluster, shares, prepare_words(recipe), logs)
        finally:
            cluster.close()
        _check_made(artifacts, names, cluster.name, logs)
    return prepare(recipe, report=report)


def _check_made(artifacts: Path, names: Collection[str], cluster: str, logs: Path) -> None:
    """Refuse to go on where the jobs have made other artifacts, which this machine would then make by itself."""
    deadline = time.monotonic() + SEEN_SECONDS
    while missing := sorted(set(names) - set(os.listdir(artifacts))):
        if time.monotonic() > deadline:
            raise RetroflowError(
                f"--on {cluster}: the jobs have ended, and {artifacts / missing[0]} is not there. They made artifacts "
                "of other names: they see another corpus, or have other versions, than this machine; or the corpus was "
                f"changed meanwhile. Compare the names in the logs, in {logs}."
            )
        time.sleep(FIRST_POLL)


def _rounds(cluster: Cluster, shares: Shares, words: Sequence[str], logs: Path) -> None:
    def job(number: int, name: str, *flags: str) -> Job:
        log = logs / f"round-{number}-{name.replace(' ', '-').replace('/', '-of-')}.log"
        return Job(name, (*words, *flags, "--step"), Path.cwd(), log)

    for number in range(1, MOST_ROUNDS + 1):
        merge = job(number, "merge", "--merge")
        (code,) = _run(cluster, [merge], shares.retries, (0, UNFINISHED)).values()
        if code == 0:
            return
        last = _last_line(merge.log).partition(". ")[0].rstrip(".")
        say(f"round {number}: {last}")
        shards = [f"{place}/{shares.count}" for place in range(1, shares.count + 1)]
        _run(cluster, [job(number, f"shard {shard}", "--shard", shard) for shard in shards], shares.retries, (0,))
    raise RetroflowError(
        f"--on {cluster.name}: not complete after {MOST_ROUNDS} rounds ({last}). If the recipe, the corpus or "
        f"retroflow was changed meanwhile, run the same command again; the logs are in {logs}."
    )


@dataclass
class _Failure:
    job: Job
    ended: Ended

    def __str__(self) -> str:
        code = self.ended.exit_code
        if code is None:
            how = f"was {'cancelled' if self.ended.is_cancelled else 'lost'} ({self.ended.reason})"
        else:
            how = f"failed with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
        return f"{self.job.name} {how}; the last line of its log {self.job.log}: {_last_line(self.job.log)}"


def _run(cluster: Cluster, jobs: Sequence[Job], retries: int, done: Collection[int]) -> dict[Job, int]:
    """Run jobs to their end, those that fail again; returns their exit codes, which are among `done`."""
    codes, failures, tries = dict[Job, int](), list[_Failure](), Counter[Job]()
    running = dict[Job, Running](zip(jobs, cluster.submit(jobs), strict=True))
    poll = FIRST_POLL
    try:
        with progress(f"{len(jobs)} jobs on {cluster.name}", len(jobs), "jobs") as advance:
            while running:
                for job, one in list(running.items()):
                    ended = one.ended()
                    if ended is None:
                        continue
                    del running[job]
                    tries[job] += 1
                    poll = FIRST_POLL
                    if ended.exit_code is not None and ended.exit_code in done:
                        codes[job] = ended.exit_code
                        advance(1)
                        continue
                    failure = _Failure(job, ended)
                    if ended.exit_code in _SAME_FOR_ALL:
                        raise _refuse([failure])
                    if ended.is_cancelled or ended.exit_code in _NO_USE_AGAIN or tries[job] > retries:
                        failures.append(failure)
                        continue
                    say(f"submitted again ({tries[job]} of {retries}): {failure}")
                    (running[job],) = cluster.submit([job])
                time.sleep(poll if running else 0)
                poll = min(poll * 1.5, LONGEST_POLL)
    finally:
        for one in running.values():
            one.cancel()
    if failures:
        raise _refuse(failures)
    return codes


def _refuse(failures: Sequence[_Failure]) -> RetroflowError:
    more = f"{len(failures) - 1} more failed. " if len(failures) > 1 else ""
    return RetroflowError(f"{failures[0]}\n{more}Mend the cause and run the same command again: finished work is kept.")


def _last_line(log: Path) -> str:
    """The last line that a job printed, without the word "error"."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].removeprefix("error: ") if lines else "it printed nothing"
