"""`retroflow report`: everything that was measured of a run, and an inspector of some of its chunks, as one page.

Shapes: W windows, k neighbours, l chunks of a sequence.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.console import progress
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.data.windows import WindowTable
from retroflow.errors import RetroflowError
from retroflow.evaluation.attribution import SAME, without_effect
from retroflow.evaluation.measuring import evaluating
from retroflow.evaluation.stored_report import read_report
from retroflow.pictures.loss_plot import plot_losses
from retroflow.pictures.measured import (
    curves_of,
    facts_of,
    newest_comparison,
    overlap_rows,
    read_values,
    stored_curves,
    tables_of,
    training_curve,
    verdict_of,
)
from retroflow.pictures.page import write_page
from retroflow.pictures.plots import check_plot, plot_curve, plot_gains
from retroflow.pictures.reading import Lookups, Reading, copied, entry, read
from retroflow.pictures.token_classes import CLASSES, COPIED, LEAST_RUN, Breakdown, classes_of, pieces, position_names
from retroflow.pipeline.lookups import look_up
from retroflow.protocols import Float32Array, Int64Array
from retroflow.runs.checkpoint_files import checksum_path
from retroflow.runs.description import read_run
from retroflow.runs.folder import RunFolder, check_new_file
from retroflow.store.sealed_json import read_sealed
from retroflow.training.evaluate import run_to_measure
from retroflow.training.job import Job
from retroflow.training.lightning_output import quiet_lightning
from retroflow.version import __version__


def report_page(
    run: str | PathLike[str],
    output: str | Path,
    *,
    chunks: int = 40,
    sequences: int = 16,
    checkpoint: str | int | None = None,
    plots: str | Path | None = None,
) -> dict[str, Any]:
    """Write a page with a run's results, curves, and an inspector of its neighbours (docs/report.md).

    Args:
        run: a run with a report, or its folder.
        output: new file.
        chunks: how many the inspector shows; 0 opens no model.
        sequences: validation sequences that are read for the inspector and the breakdowns, evenly spaced.
        checkpoint: a step or a path, for the inspector; None for the newest.
        plots: folder for the table and the curves as PNG and SVG; None writes none.

    Returns:
        The page's data, as it is in the file, and its size in `bytes`.

    Raises:
        UsageError: not a run, a run without a report, or the file exists.
        RetroflowError: the run cannot be opened here, or a file cannot be written.
        MissingExtraError: plots are wanted, and matplotlib is not installed.
    """
    folder, file = Path(run), Path(output)
    check_new_file(file)
    data = stored_data(folder)
    if plots is not None:
        _write_plots(folder, data["tables"][0], Path(plots))
    if chunks:
        wanted = None if checkpoint is None else str(checkpoint)
        found = _read_sequences(folder, chunks, sequences, wanted, data)
        verdict, warnings = data["verdict"], found.pop("warnings", [])
        verdict["warnings"] += [warning for warning in warnings if warning not in verdict["warnings"]]
        data |= found | {"verdict": verdict | ({"level": "warning"} if warnings else {})}
    return data | {"bytes": write_page(data, file)}


def _write_plots(run_folder: Path, table: dict[str, Any], folder: Path) -> None:
    """Write gains.png, curve-NAME.png and training.png, and the same as SVG."""
    drawings: dict[str, Callable[[Path], None]] = {}
    if any(row["gain"] is not None for row in table["rows"]):
        drawings["gains"] = partial(plot_gains, table)
    drawings |= {f"curve-{curve['over']}": partial(plot_curve, curve) for curve in stored_curves(run_folder)}
    if training_curve(run_folder):
        drawings["training"] = partial(plot_losses, [run_folder])
    files = {folder / f"{name}{ending}": draw for name, draw in drawings.items() for ending in (".png", ".svg")}
    for file in files:
        check_plot(file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RetroflowError(f"plots='{folder}': cannot be made ({error.strerror}); give another folder.") from error
    for file, draw in files.items():
        draw(file)


def stored_data(run_folder: Path) -> dict[str, Any]:
    """Return what the run's files hold, in the form of the page.

    Raises:
        UsageError: not a run, or it has no report.
        DamagedDataError: a file was changed.
    """
    report, run = read_report(run_folder), read_run(run_folder)
    folder = RunFolder(run_folder)
    found = newest_comparison(run_folder)
    comparison = None if found is None else read_values(found, "compare_version")
    tables = tables_of(report, comparison)
    # A comparison without the rows on and off says nothing of what retrieval is worth.
    judged = comparison if comparison and {"on", "off"} <= {row["name"] for row in comparison["rows"]} else None
    overlap = report.values["by_overlap"] if judged is None else judged["overlap"]["buckets"]
    verdict = verdict_of(tables[0 if judged is comparison else 1], report.values, judged)
    said = {verdict["overlap"], *verdict["warnings"]}
    findings = {"Of the comparison": (comparison or {}).get("findings", []), "Of the validation": report.findings}
    left = {what: [each for each in sentences if each not in said] for what, sentences in findings.items()}
    described = read_sealed(folder.description, remedy="Restore it.")
    breakdowns = []
    if overlap:
        note = "longest run of tokens that a chunk shares with its retrieved text, as a share of the chunk"
        breakdowns.append({"name": "overlap", "title": "By overlap", "note": f"{note}", "rows": overlap_rows(overlap)})
    return {
        "page_version": 1,
        "kind": "report",
        "title": f"{run.name} {run_folder.resolve().name}",
        "made": {"retroflow": __version__, "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"},
        "verdict": verdict,
        "findings": {what: sentences for what, sentences in left.items() if sentences},
        "tables": tables,
        "breakdowns": breakdowns,
        "curves": curves_of(run_folder),
        "inspector": None,
        "facts": facts_of(run, report, described, folder.report),
        "definitions": report.values["definitions"] | (comparison or {}).get("definitions", {}),
        "report": report.values,
        "comparison": comparison,
    }


def _read_sequences(
    run_folder: Path, chunks: int, sequences: int, checkpoint: str | None, data: dict[str, Any]
) -> dict[str, Any]:
    """Read a sample of sequences: the inspector's entries, breakdowns after those that there are, and warnings."""
    with quiet_lightning():
        opened = run_to_measure(run_folder, checkpoint=checkpoint)
        job = opened.job()
    if job.splits.tokenizer is None:
        return {}
    model, tokenizer = job.module.model.to(job.placement.device), load_tokenizer(str(job.splits.tokenizer))
    m = job.splits.valid_chunks.chunk_length
    count = len(job.splits.validation())
    wanted = np.unique(np.linspace(0, count - 1, min(sequences, count)).astype(np.int64))
    breakdown, entries, averaged, is_cross, effect = Breakdown(), list[dict[str, Any]](), "", False, 0.0
    compared = newest_comparison(run_folder)
    num_compared = 0 if compared is None else _break_down_rows(breakdown, compared.parent, job, tokenizer)
    with evaluating(model), progress("reading", len(wanted), "sequences") as advance:
        for sequence, reading in _readings(job, model, tokenizer, wanted):
            if reading.lookups is not None:
                _break_down(breakdown, reading, m, only_copied=num_compared > 0)
                effect = max(effect, float(np.abs(reading.on - reading.off).max()))
            averaged, is_cross = reading.attention.averaged or averaged, reading.attention.adds_up_to_one or is_cross
            for chunk in range(1, len(reading.tokens) // m):
                found = entry(reading, chunk, m, tokenizer)
                if found["tokens"]:
                    entries.append(_placed(found, job, int(sequence)))
            advance(1)
    about = f"{len(wanted):,} of {count:,} validation sequences, evenly spaced, read when this page was made"
    inspector = {
        "about": about,
        "chunk_length": m,
        "least_run": LEAST_RUN,
        "averaged": averaged,
        "adds_up_to_one": is_cross,
        "retrieval": job.options.retrieval,
        "of": len(entries),
        "entries": _chosen(entries, chunks, job.seed),
    }
    of_rows = f"the {num_compared:,} sequences of the comparison" if num_compared else about
    found_breakdowns = _breakdowns(breakdown, m, about, of_rows) if job.options.retrieval else []
    warnings = [_of_checkpoints(opened.checkpoint, data)]
    if any(one["neighbours"] for one in entries) and effect <= SAME:
        warnings.append(without_effect(["off"]))
    return {
        "inspector": inspector,
        "breakdowns": [*data["breakdowns"], *found_breakdowns],
        "warnings": [warning for warning in warnings if warning is not None],
    }


def _of_checkpoints(checkpoint: Path, data: dict[str, Any]) -> str | None:
    """State that the results are of another checkpoint than the one that is inspected; None if they are not."""
    own = checksum_path(checkpoint).read_text(encoding="utf-8").split()[0]
    measured = {"report": data["report"]["measured"], "comparison": (data["comparison"] or {}).get("model", {})}
    others = [what for what, of in measured.items() if of.get("checkpoint_sha256") not in (None, own)]
    if not others:
        return None
    named = " and the ".join(others)
    return f"Other weights read the chunks below ({checkpoint.name}) than those that the {named} measured."


def _readings(job: Job, model: Any, tokenizer: Tokenizer, wanted: Int64Array) -> Iterator[tuple[int, Reading]]:
    splits, m = job.splits, job.splits.valid_chunks.chunk_length

    def document(row: int) -> Any:
        return splits.database.document(int(splits.database.document_ids[row]))

    table: Int64Array | WindowTable | None = splits.validation_neighbours if job.options.retrieval else None
    if table is not None and job.step is not None and job.search is not None:
        k = splits.validation_neighbours.shape[1]
        table = look_up(job.search(), splits, wanted, step=job.step, k=k, advance=lambda count: None)
    batches = splits.validation(table).in_order(1, wanted)
    for place, (sequence, batch) in enumerate(zip(wanted.tolist(), batches, strict=True)):
        lookups = None
        rows = slice(sequence * splits.sequence_chunks, sequence * splits.sequence_chunks + batch.tokens.shape[1] // m)
        if isinstance(table, WindowTable):
            scores = None if table.scores is None else table.scores[place]
            lookups = Lookups(table.ids[place], scores, table.step, document)
        elif table is not None:
            scores = None if splits.validation_scores is None else np.asarray(splits.validation_scores[rows])
            lookups = Lookups(np.asarray(table[rows]), scores, m, document)
        yield sequence, read(model, job.placement, tokenizer, batch, lookups)


def _placed(found: dict[str, Any], job: Job, sequence: int) -> dict[str, Any]:
    """Add where a chunk is."""
    row = sequence * job.splits.sequence_chunks + found["chunk"]
    chunks = job.splits.valid_chunks
    record = chunks.document(int(chunks.document_ids[row]))
    place = {"document": record.id, "title": record.title, "source": record.source, "sequence": sequence, "row": row}
    return place | found


def _chosen(entries: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Choose the chunks with the highest gain, those with the lowest, and random ones, a third each."""
    by_gain = sorted(entries, key=lambda one: -float(one["gain"]))
    third = min(count, len(entries)) // 3
    best, worst = by_gain[:third], by_gain[len(by_gain) - third :]
    others = by_gain[third : len(by_gain) - third]
    rest = min(count, len(entries)) - 2 * third
    drawn = np.sort(np.random.default_rng([seed, len(entries)]).permutation(len(others))[:rest])
    named = {"best": best, "random": [others[place] for place in drawn], "worst": worst}
    return [{"why": why} | one for why, of_why in named.items() for one in of_why]


def _break_down(breakdown: Breakdown, reading: Reading, m: int, *, only_copied: bool) -> None:
    """Add the tokens of a sequence that can have read something: those after its first chunk."""
    shown = np.flatnonzero(reading.predicted)
    shown = shown[shown >= m]
    on, off, is_copied = reading.on[shown], reading.off[shown], copied(reading, m)
    breakdown.add("copied", ["shared" if is_copied[position] else "not shared" for position in shown], on, off)
    if not only_copied:
        _add_tokens(breakdown, reading.classes, shown, (on, off), m)


def _break_down_rows(breakdown: Breakdown, folder: Path, job: Job, tokenizer: Tokenizer) -> int:
    """Add the tokens that `retroflow compare` has measured; returns the number of sequences, 0 without such rows."""
    try:
        rows = [np.load(folder / "rows" / f"{name}.npz", allow_pickle=False) for name in ("on", "off")]
        numbers, *places = np.intersect1d(*(row["sequences"] for row in rows), return_indices=True)
        nats = [row["token_nats"][place] for row, place in zip(rows, places, strict=True)]
    except (OSError, ValueError, KeyError):
        return 0
    m = job.splits.valid_chunks.chunk_length
    if nats[0].shape[1:] != (job.splits.sequence_chunks * m,):  # compared with other data.sequence_chunks
        return 0
    batches = job.splits.validation(None).in_order(1, numbers)
    for place, batch in enumerate(batches):
        tokens = batch.tokens[0].tolist()
        classes = classes_of(pieces(tokenizer, tokens), tokens, tokenizer.end_of_text)
        shown = np.flatnonzero(np.append(False, batch.targets[0, :-1].numpy() >= 0))
        shown = shown[shown >= m]
        _add_tokens(breakdown, classes, shown, (nats[0][place, shown - 1], nats[1][place, shown - 1]), m)
    return len(numbers)


def _add_tokens(
    breakdown: Breakdown, classes: Sequence[str], shown: Int64Array, nats: tuple[Float32Array, Float32Array], m: int
) -> None:
    names = position_names(m)
    breakdown.add("class", [classes[position] for position in shown], *nats)
    breakdown.add("position", [names[position % m] for position in shown], *nats)


def _breakdowns(breakdown: Breakdown, m: int, about: str, of_rows: str) -> list[dict[str, Any]]:
    first = "without the first chunk of each, which reads nothing"
    kinds = (
        ("copied", "By what can be copied", COPIED, f"runs of at least {LEAST_RUN} tokens; {about}"),
        ("class", "By kind of token", CLASSES, of_rows),
        ("position", "By position in the chunk", dict.fromkeys(position_names(m), ""), f"of {m} tokens; {of_rows}"),
    )
    return [
        {"name": name, "title": title, "note": f"{note}, {first}", "rows": breakdown.to_json(name, meanings)}
        for name, title, meanings, note in kinds
    ]
