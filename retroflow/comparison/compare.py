"""`retroflow compare`: one table of a model beside its opponents, on the same text and the same tokens.

    FOLDER/subject.json      what is compared, with the result of the causality probe; sealed
    FOLDER/text.npz          documents, bytes and words of the compared tokens (text_facts.py)
    FOLDER/rows/NAME.npz     what was measured of each row so far, token by token (row_file.py)
    FOLDER/comparison.json   the table, as it was last printed; comparison.csv has the same columns

The folder is named by a fingerprint of the weights, the text, the neighbours and the sample. A command that is started
again measures only what is missing, and if nothing is, it opens no model.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from retroflow.comparison.comparison import Comparison
from retroflow.comparison.leakage_facts import LeakageFacts, leakage_of
from retroflow.comparison.measuring import measure_rows, sequences_of
from retroflow.comparison.other_runs import OtherRun, other_runs
from retroflow.comparison.probe import probe
from retroflow.comparison.row_file import read_row, row_path
from retroflow.comparison.row_options import RowOptions
from retroflow.comparison.rows import ROWS, OpenRow
from retroflow.comparison.run_plan import RunPlan
from retroflow.comparison.subject import Plan
from retroflow.comparison.table import Measurements
from retroflow.comparison.text_facts import TextFacts, facts_of
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.evaluation.modes import MODES, Mode
from retroflow.options.fitting import suggest
from retroflow.store.atomic import canonical_json
from retroflow.store.sealed_json import read_sealed, render_sealed, write_json, write_text
from retroflow.training.lightning_output import quiet_lightning

SUBJECT_FILE, TABLE_FILE, CSV_FILE = "subject.json", "comparison.json", "comparison.csv"
STOPPED = "stopped while comparing; the same command continues where it stopped"
ALL_ROWS = "all"
STATED = ("model", "database", "corpus", "probe")

DEFINITION = 2
"""To be raised when the same plan would get other numbers in all rows that read."""

SUBJECT_VERSION = 2
"""To be raised when subject.json, text.npz or leakage.npz would hold something else; rows are kept."""


def fingerprint_of(plan: Plan) -> str:
    """Return the SHA-256 of all that numbers of a plan depend on, but for the rows."""
    return hashlib.sha256(canonical_json([DEFINITION, plan.definition])).hexdigest()


def chosen(rows: Sequence[str] | None) -> list[Mode]:
    """Return the modes of some rows, in the table's order.

    Args:
        rows: their names, or "all"; None for those that are measured by default.

    Raises:
        UsageError: there is no such row.
    """
    rows = rows.split(",") if isinstance(rows, str) else rows
    if rows is None:
        return [mode for mode in MODES.values() if mode.is_default]
    for name in rows:
        if name not in MODES and name != ALL_ROWS:
            raise UsageError(
                f"rows='{name}': there is no such row.{suggest(name, MODES)} Known: {', '.join(MODES)}, all."
            )
    if not rows:
        raise UsageError(f"rows: none given. Known: {', '.join(MODES)}, all.")
    return [mode for mode in MODES.values() if mode.name in rows or ALL_ROWS in rows]


def compare(
    plan: Plan,
    *,
    rows: Sequence[str] | None = None,
    options: RowOptions | None = None,
    against: Sequence[str | Path] = (),
    output: str | Path | None = None,
    seed: int = 0,
    publish: bool = True,
) -> Comparison:
    """Measure what is missing, and make the table.

    Args:
        plan: what is compared.
        rows: as for `chosen`.
        options: sizes of rows; None for the usual ones.
        against: other runs, which become rows, too.
        output: folder of the comparison; None for one that the plan's fingerprint names.
        seed: of the bootstrap.
        publish: whether the table is written, and shown in a run's tracker if anything was measured for it.

    Raises:
        UsageError: a row is unknown or impossible for this model; the folder holds another comparison or is in use.
        RetroflowError: the causality probe failed, a loss is not finite, or the folder cannot be written.
        Preempted, Interrupted: a signal came; the same command continues.
    """
    fingerprint = fingerprint_of(plan)
    wanted = _Wanted(
        plan,
        chosen(rows),
        options or RowOptions(),
        other_runs(plan, against),
        folder=plan.folder / fingerprint[:16] if output is None else Path(output),
        fingerprint=fingerprint,
        by_name=rows is not None,
    )
    with locked(wanted.folder):
        stored = wanted.stored()
        found = stored and wanted.finished(stored, seed)
        is_new = stored is None or not found
        if stored is None or not found:
            with StopRequests() as requests, quiet_lightning():
                stored = _measure(wanted, requests, is_begun=stored is not None)
            found = wanted.finished(stored, seed)
        assert found is not None
        stated: dict[str, Any] = {key: stored[key] for key in STATED if key in stored}
        comparison = Comparison(found, stated, wanted.possible(stored)[1], wanted.folder)
        if publish:
            write_json(wanted.folder / TABLE_FILE, comparison.to_json())
            write_text(wanted.folder / CSV_FILE, comparison.to_csv())
    if publish and is_new and isinstance(plan, RunPlan):
        plan.mirror(comparison.to_table())
    return comparison


@dataclass(frozen=True)
class _Wanted:
    """What is to be in the table, and where it is kept."""

    plan: Plan
    modes: list[Mode]
    options: RowOptions
    others: dict[str, OtherRun]
    folder: Path
    fingerprint: str
    by_name: bool

    def stored(self) -> dict[str, Any] | None:
        """Read subject.json; None if there is none, or a damaged or an older one.

        Raises:
            UsageError: it is of another comparison.
        """
        with suppress(FileNotFoundError, DamagedDataError):
            stored = read_sealed(self.folder / SUBJECT_FILE, remedy="")
            if stored.get("fingerprint") != self.fingerprint:
                raise UsageError(
                    f"output='{self.folder}': it holds a comparison of other weights, text, neighbours or sequences; "
                    "give another folder."
                )
            return stored if stored.get("version") == SUBJECT_VERSION else None
        return None

    def possible(self, stored: dict[str, Any]) -> tuple[list[Mode], dict[str, str]]:
        """Return the rows that the model can have, and the others with the reason.

        Raises:
            UsageError: one that cannot be had was chosen by its name.
        """
        reasons = {
            "neighbours": "the model reads no neighbours",
            "states": "the model does not give its last states, or its text is questions (data.format=qa)",
            "search": "nothing can be looked up",
        }
        left_out = {
            mode.name: next(reasons[need] for need in mode.needs if not stored["has"][need])
            for mode in self.modes
            if not all(stored["has"][need] for need in mode.needs)
        }
        if self.by_name and left_out and len(self.modes) < len(MODES):
            name, why = next(iter(left_out.items()))
            raise UsageError(f"rows='{name}': it cannot be measured, because {why}. Leave it out.")
        others = [other.mode for other in self.others.values()]
        return [*(mode for mode in self.modes if mode.name not in left_out), *others], left_out

    def made_of(self, mode: Mode) -> str:
        """Return the fingerprint of all that the numbers of a row depend on."""
        own: Any = self.others[mode.name].made_of if mode.name in self.others else self.options.of(mode.name)
        values = [self.fingerprint, mode.name, mode.definition, mode.most_sequences, own]
        return hashlib.sha256(canonical_json(values)).hexdigest()

    def row(self, mode: Mode) -> OpenRow:
        """Return how a row is measured."""
        return self.others[mode.name].measured if mode.name in self.others else ROWS[mode.name]

    def finished(self, stored: dict[str, Any], seed: int) -> Measurements | None:
        """Read the rows; None if anything is missing."""
        text = TextFacts.read(self.folder)
        if text is None or LeakageFacts.read(self.folder) is None:
            return None
        modes, rows = self.possible(stored)[0], {}
        for mode in modes:
            row = read_row(row_path(self.folder, mode.name), self.made_of(mode))
            if row is None or len(row.sequences) < len(sequences_of(mode, text.sequences, stored["seed"])):
                return None
            rows[mode.name] = row
        return Measurements({mode.name: mode for mode in modes}, rows, text, seed)


def _measure(wanted: _Wanted, requests: StopRequests, *, is_begun: bool) -> dict[str, Any]:
    """Open the subject, probe it, and measure the rows; returns the content of subject.json.

    Args:
        wanted: what is to be in the table.
        requests: may stop it.
        is_begun: whether subject.json is there; if not, the other files can be of another comparison.
    """
    plan, folder = wanted.plan, wanted.folder
    with requests.at_once(STOPPED):
        subject = replace(plan.open(lambda: requests.stop_if_requested(STOPPED)), options=wanted.options)
        described = plan.stated | {
            "version": SUBJECT_VERSION,
            "fingerprint": wanted.fingerprint,
            "definition": plan.definition,
            "seed": subject.seed,
            "has": {
                "neighbours": subject.reads,
                # Prompts and keys would take a question's padding for text.
                "states": subject.gives_states and not subject.splits.answers_only,
                "search": subject.search is not None,
            },
        }
        possible, _ = wanted.possible(described)
        described["probe"] = probe(subject)
        if not is_begun or TextFacts.read(folder) is None:
            facts_of(subject).write(folder)
        if not is_begun or LeakageFacts.read(folder) is None:
            leakage_of(subject).write(folder)
        write_text(folder / SUBJECT_FILE, render_sealed(described, what=str(folder / SUBJECT_FILE)))
    measure_rows(subject, [(mode, wanted.row(mode), wanted.made_of(mode)) for mode in possible], folder)
    return described


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder of measurements, and keep other processes out of it.

    Raises:
        UsageError: another process has it.
        RetroflowError: it cannot be made.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(f"{folder}: another process is at work here; wait for it.") from error
    except OSError as error:
        raise RetroflowError(
            f"{folder}: cannot be written ({error.strerror}); give another folder with output='FOLDER'."
        ) from error
    try:
        yield
    finally:
        lock.release()
