"""`retroflow curve`: the loss of a model against one thing that is varied, on the same text and the same tokens.

The points lie as rows in the folder of the comparison that `retroflow compare` makes of the same model, text and
sequences: "off" and "on" are shared with it, and a point that was measured is never measured again.

Shapes: m tokens of a chunk, k neighbours.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.comparison.compare import STOPPED, compare, fingerprint_of, locked
from retroflow.comparison.comparison import Comparison
from retroflow.comparison.curve_file import CURVES_FOLDER, Curve
from retroflow.comparison.measuring import measure_rows
from retroflow.comparison.other_searches import OtherSearches
from retroflow.comparison.row_file import RowFile, read_row, row_path
from retroflow.comparison.rows import Measured, OpenRow, reading
from retroflow.comparison.subject import Plan, Subject, Table
from retroflow.comparison.table import Measurements
from retroflow.components import create_retriever, retriever_section
from retroflow.console import say
from retroflow.data.windows import WindowTable
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import MissingExtraError, UsageError
from retroflow.evaluation.attribution import at_random, random_windows
from retroflow.evaluation.leakage import THRESHOLD
from retroflow.evaluation.modes import MODES, Mode
from retroflow.store.atomic import canonical_json
from retroflow.training.lightning_output import quiet_lightning

ALPHA = "alpha"

Read = Callable[[Subject, OtherSearches], tuple[Table, dict[str, Any]]]
"""What is read at a point, and facts about it for the curve's file."""

RANDOM = "random"


@dataclass(frozen=True)
class Point:
    """A place on the axis.

    Attributes:
        x: in the unit of the axis.
        label: for people.
        made_of: JSON values that decide on the numbers, beside the subject's.
        read: what the model reads.
    """

    x: float
    label: str
    made_of: Sequence[Any]
    read: Read

    @property
    def name(self) -> str:
        """Of its row."""
        return "-".join(["curve", *map(str, self.made_of)])


@dataclass(frozen=True)
class Axis:
    """Something that the loss is measured against.

    Attributes:
        unit: of x.
        default: words for its points.
        points: makes them from words; gets the section of the database's retriever and the chunk length m, too.
    """

    unit: str
    default: tuple[str, ...]
    points: Callable[[Sequence[str], Mapping[str, Any], int], list[Point]]


def _k_points(words: Sequence[str], section: Mapping[str, Any], m: int) -> list[Point]:
    ks = sorted({_whole(word, "k") for word in words})
    wide: list[Table] = []

    def read(k: int) -> Read:
        def table(subject: Subject, searches: OtherSearches) -> tuple[Table, dict[str, Any]]:
            prepared = subject.splits.validation_neighbours
            if not wide and subject.step is None and prepared.shape[1] >= ks[-1]:
                wide.append(prepared)
            if not wide:
                wide.append(searches.find(searches.own, ks[-1]))
            return _best(wide[0], k), {}

        return table

    return [Point(k, str(k), ["k", k], read(k)) for k in ks]


def _best(table: Table, k: int) -> Table:
    """Return the k best of the neighbours in a table."""
    if isinstance(table, WindowTable):
        return replace(table, ids=table.ids[..., :k])
    return None if table is None else table[:, :k]


def _size_points(words: Sequence[str], section: Mapping[str, Any], m: int) -> list[Point]:
    def read(share: float) -> Read:
        def table(subject: Subject, searches: OtherSearches) -> tuple[Table, dict[str, Any]]:
            k = subject.splits.validation_neighbours.shape[1]
            if share == 1.0:
                count = len(subject.splits.database)
                documents = np.unique(subject.splits.database.document_ids[np.arange(count)])
                return subject.found, {"documents": len(documents), "chunks": count}
            search, facts = searches.of_documents(section, share)
            return searches.find(search, k), facts

        return table

    shares = sorted({_share(word) for word in words})
    return [Point(share, f"{100 * share:g}%", ["size", f"{share:g}"], read(share)) for share in shares]


def _retriever_points(words: Sequence[str], section: Mapping[str, Any], m: int) -> list[Point]:
    def read(word: str, options: Mapping[str, Any]) -> Read:
        def table(subject: Subject, searches: OtherSearches) -> tuple[Table, dict[str, Any]]:
            k, found = subject.splits.validation_neighbours.shape[1], subject.found
            if word == RANDOM:
                return _at_random(found, subject), {"recall": searches.recall(None, k)}
            search = searches.own if word == section["name"] else searches.by(options)
            return searches.find(search, k), {"recall": searches.recall(search, k)}

        return table

    chosen = list(dict.fromkeys(words))
    sections = {word: {} if word == RANDOM else retriever_section(word, "values") for word in chosen}
    if words == AXES["retriever"].default:
        chosen = [word for word in chosen if word == RANDOM or _is_installed(word)]
    return [
        Point(place, word, ["retriever", word.replace("/", "-")], read(word, sections[word]))
        for place, word in enumerate(chosen)
    ]


def _at_random(found: Table, subject: Subject) -> Table:
    count = len(subject.splits.database)
    if isinstance(found, WindowTable):
        return random_windows(found, database_chunks=count, seed=subject.seed)
    return at_random(subject.splits.validation_neighbours, database_chunks=count, seed=subject.seed)


def _is_installed(name: str) -> bool:
    try:
        create_retriever({"name": name})
    except MissingExtraError as error:
        say(f"{name} is left out: {error}")
        return False
    return True


def _step_points(words: Sequence[str], section: Mapping[str, Any], m: int) -> list[Point]:
    def read(step: int) -> Read:
        def table(subject: Subject, searches: OtherSearches) -> tuple[Table, dict[str, Any]]:
            k = subject.splits.validation_neighbours.shape[1]
            if step == m:
                return subject.splits.validation_neighbours, {}
            return OtherSearches(replace(subject, step=step), lambda: searches.embedded).find(searches.own, k), {}

        return table

    if words == AXES["step"].default:
        words = [str(m // parts) for parts in (1, 2, 4) if m % parts == 0]
    steps = sorted({_whole(word, "step") for word in words}, reverse=True)
    for step in steps:
        if m % step:
            raise UsageError(f"values='{step}': lookups are so many tokens apart that a chunk of {m} is a multiple.")
    return [Point(step, str(step), ["step", step], read(step)) for step in steps]


def _whole(word: str, what: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(f"values='{word}': {what} must be a whole number from 1 on.")
    return int(word)


def _share(word: str) -> float:
    try:
        share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
    except ValueError:
        share = np.nan
    if not 0 < share <= 1:
        raise UsageError(f"values='{word}': give a share of the database above 0% and up to 100%.")
    return share


AXES = {
    "k": Axis("neighbours", ("1", "2", "4", "8", "16", "40"), _k_points),
    "size": Axis("share of the documents", ("1%", "10%", "100%"), _size_points),
    "retriever": Axis("retriever", ("exact", "faiss", "scann", "hnsw", "bm25", RANDOM), _retriever_points),
    "step": Axis("tokens", ("m", "m/2", "m/4"), _step_points),
}
"""What a curve of one model can be over, beside alpha."""


def curve(plan: Plan, over: str, values: Sequence[str] = (), *, output: Path | None = None, seed: int = 0) -> Curve:
    """Measure what is missing of a curve, and write its files.

    Args:
        plan: what is measured.
        over: one of `AXES`, or "alpha".
        values: words for its points, such as "8", "10%" or "hnsw"; the usual ones if there are none.
        output: folder for the curve; None for one beside the comparisons.
        seed: of the bootstrap.

    Raises:
        UsageError: there is no such axis or point, or the model reads no neighbours.
        RetroflowError: a retriever is not installed, or as `compare`.
    """
    check_axis(over)
    if over == ALPHA and values:
        raise UsageError("values: a curve over alpha has those of the paper, an eighth to all of a chunk.")
    if plan.definition.get("retrieval") is False:
        raise UsageError(f"over='{over}': the model reads no neighbours, so there is nothing to vary.")
    # random is measured for the warning that found neighbours are no better.
    comparison = compare(plan, rows=["off", "on", "random"], seed=seed, publish=False)
    made = _over_alpha(comparison) if over == ALPHA else _measured(plan, over, values, comparison, seed)
    made = replace(made, folder=output or plan.folder.parent / CURVES_FOLDER)
    made.write()
    return made


def check_axis(over: str) -> None:
    """Refuse a curve of one model that does not exist.

    Raises:
        UsageError: there is no such one.
    """
    if over not in (*AXES, ALPHA):
        raise UsageError(f"over='{over}': there is no such curve. Known: {', '.join([*AXES, ALPHA])}, training.")


def _measured(plan: Plan, over: str, values: Sequence[str], comparison: Comparison, seed: int) -> Curve:
    axis, text = AXES[over], comparison.measurements.text
    points = {point.name: point for point in axis.points(values or axis.default, plan.retriever, text.chunk_length)}
    modes = [_mode(point) for point in points.values()]
    fingerprint = fingerprint_of(plan)

    def made_of(mode: Mode) -> str:
        return hashlib.sha256(canonical_json([fingerprint, mode.name, plan.retriever])).hexdigest()

    def read() -> dict[str, RowFile] | None:
        rows = {mode.name: read_row(row_path(comparison.folder, mode.name), made_of(mode)) for mode in modes}
        there = {name: row for name, row in rows.items() if row and len(row.sequences) == len(text.sequences)}
        return there if len(there) == len(modes) else None

    with locked(comparison.folder):
        rows = read()
        if rows is None:
            with StopRequests() as requests, quiet_lightning():
                with requests.at_once(STOPPED):
                    subject = plan.open(lambda: requests.stop_if_requested(STOPPED))
                searches = OtherSearches(subject, plan.embedded)
                wanted = [(mode, _opened(points[mode.name], searches), made_of(mode)) for mode in modes]
                measure_rows(subject, wanted, comparison.folder)
            rows = read()
    assert rows is not None
    found = comparison.measurements
    by_name = {mode.name: mode for mode in modes}
    measured = Measurements({"off": MODES["off"], **by_name}, {"off": found.rows["off"], **rows}, text, seed)
    return _curve(over, axis.unit, [_values(points[name], measured, comparison) for name in points], comparison)


def _mode(point: Point) -> Mode:
    return replace(MODES["on"], name=point.name, neighbours=point.label)


def _opened(point: Point, searches: OtherSearches) -> OpenRow:
    def open_row(subject: Subject) -> Measured:
        table, facts = point.read(subject, searches)
        return replace(reading(subject, table), facts=facts)

    return open_row


def _values(point: Point, measured: Measurements, comparison: Comparison) -> dict[str, Any]:
    row = next(row for row in measured.table() if row.name == point.name)
    off = next(row for row in measured.table() if row.name == "off")
    return {
        "x": point.x,
        "label": point.label,
        "on": row.nats,
        "on_interval": measured.interval_of(point.name),
        "off": off.nats,
        "gain": row.gain,
        "gain_interval": row.gain_interval,
        "gain_without_overlap": _gain_without_overlap(point.name, measured, comparison),
        "bits_per_byte": row.bits_per_byte,
        "bits_per_byte_off": off.bits_per_byte,
        "recall": None,
        "seconds_per_token": row.seconds_per_token,
        "memory": row.memory,
        **row.facts,
    }


def _gain_without_overlap(name: str, measured: Measurements, comparison: Comparison) -> float | None:
    """Return the gain on chunks that share no run of an eighth of their length with any text of the database."""
    if comparison.leakage is None:
        return None
    (on, tokens), (off, _) = measured.by_chunk(name), measured.by_chunk("off")
    clean = comparison.leakage.overlaps["database"] < THRESHOLD
    count = int(tokens[clean].sum())
    return float((off - on)[clean].sum()) / count if count else None


def _over_alpha(comparison: Comparison) -> Curve:
    overlap = comparison.to_json()["overlap"]
    losses = (overlap["bits_per_byte"][mode] for mode in ("on", "off"))
    points = [
        {
            "x": alpha,
            "label": f"{alpha:.1%}",
            "on": on,
            "off": off,
            "gain": None if on is None else off - on,
            "bits_per_byte": on,
            "chunks": chunks,
        }
        for alpha, on, off, chunks in zip(overlap["alpha"], *losses, overlap["chunks"], strict=True)
    ]
    made = _curve(ALPHA, f"r(C) with {overlap['of']}", points, comparison)
    return replace(made, measure="bits per byte")


def _curve(over: str, unit: str, points: Sequence[dict[str, Any]], comparison: Comparison) -> Curve:
    text = comparison.measurements.text
    documents = len(np.unique(text.documents[text.documents >= 0]))
    return Curve(
        over=over,
        unit=unit,
        points=points,
        model=comparison.stated["model"] | {"database": comparison.stated["database"]},
        text=comparison.to_json()["text"],
        overlap_statement=comparison.overlap_statement,
        folder=comparison.folder,
        notes=[f"{len(text.sequences):,} of {text.of:,} sequences, {documents:,} documents.", *comparison.warnings],
    )
