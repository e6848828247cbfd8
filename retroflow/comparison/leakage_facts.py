"""How much of the compared text stands in what the model has read, kept beside the rows in leakage.npz.

Each chunk is compared with the 10 nearest chunks of the database (Borgeaud et al. 2022, section 2.6), and with all text
of the database and of the training split; its document with their documents.

Shapes: S sequences, l chunks of a sequence, m tokens of a chunk, c chunks of the text among them.
"""

import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.comparison.subject import Subject
from retroflow.comparison.table import Measurements
from retroflow.comparison.text_facts import overlaps_with
from retroflow.console import progress, say
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.evaluation.leakage import ALPHAS, NEAREST, THRESHOLD, bits_per_byte_up_to
from retroflow.evaluation.near_duplicates import NearDuplicates, similar_documents, words_of
from retroflow.evaluation.shared_runs import hashed, least_leak, longest_runs_anywhere
from retroflow.pipeline.lookups import nearest_chunks, own_documents
from retroflow.protocols import Int64Array
from retroflow.store.chunk_store import ChunkSource
from retroflow.store.sealed_arrays import write_numbers

LEAKAGE_FILE = "leakage.npz"
NOT_LOOKED_FOR = 'Near-duplicate documents were not looked for, which needs: pip install "retroflow[eval]".'

_NEAREST = f"nearest_{NEAREST}"

DEFINITIONS = {
    "neighbours": "overlap with the neighbours that were found for the chunk, and their continuations; with lookups "
    "more often than once a chunk, with those that its tokens read",
    _NEAREST: f"overlap with the {NEAREST} nearest chunks of the database, and their continuations",
    "database": "overlap with any text of the database but the sequence's own documents; runs of an eighth of a chunk "
    "and more, also across its ends",
    "training": "the same with the training split, if that is not the database",
    "alpha": "bits_per_byte and chunks are of the chunks whose overlap is alpha or less; the token after a sequence "
    "counts with its last chunk, so that those of 1 are the table's",
}


@dataclass(frozen=True)
class LeakageFacts:
    """What was found.

    Attributes:
        overlaps: kind as in `DEFINITIONS`, but for "neighbours" -> float64 [S, l], 0 to 1.
        near_duplicates: as `NearDuplicates.to_json`; None if datasketch is not installed.
        documents: number of each evaluated document -> its id.
    """

    overlaps: dict[str, NDArray[np.float64]]
    near_duplicates: dict[str, Any] | None
    documents: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write leakage.npz.

        Raises:
            RetroflowError: it cannot be written.
        """
        stream = io.BytesIO()
        about = json.dumps({"near_duplicates": self.near_duplicates, "documents": self.documents})
        arrays: dict[str, Any] = {"about": np.array(about), **self.overlaps}
        np.savez(stream, **arrays)
        write_numbers(folder / LEAKAGE_FILE, stream.getvalue())

    @classmethod
    def read(cls, folder: Path) -> "LeakageFacts | None":
        """Read leakage.npz; None if it is missing, damaged, or without near duplicates that can be found now."""
        try:
            with np.load(folder / LEAKAGE_FILE, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                found = cls({name: stored[name] for name in stored.files if name != "about"}, **about)
        except Exception:  # whatever is wrong with it, it is made again
            return None
        return None if found.near_duplicates is None and _has_datasketch() else found

    @property
    def statement(self) -> dict[str, Any]:
        """The near duplicates for `overlap_statement`."""
        return self.near_duplicates or {"statement": NOT_LOOKED_FOR}

    def to_json(self, found: Measurements, row: str) -> dict[str, Any]:
        """Return JSON values.

        Args:
            found: with the rows "off" and `row`.
            row: the row that is judged, shown as "on".
        """
        places = np.intersect1d(found.places(row), found.places("off"))
        is_text = np.arange(found.text.bytes.shape[1]) < found.text.chunks[places, None]
        nats = {name: _nats_of_chunks(found, key)[places][is_text] for name, key in (("on", row), ("off", "off"))}
        num_bytes = found.text.bytes[places][is_text]
        retrieved = {"neighbours": found.text.overlaps} if found.text.is_retrieved else {}
        overlaps = retrieved | self.overlaps
        of_kind = {}
        for kind, whole in overlaps.items():
            own = whole[places][is_text]
            of_kind[kind] = {
                "share_below_threshold": float((own < THRESHOLD).mean()),
                "chunks": [int((own <= alpha).sum()) for alpha in ALPHAS],
                "bits_per_byte": {name: bits_per_byte_up_to(own, of_mode, num_bytes) for name, of_mode in nats.items()},
            }
        main = _NEAREST if _NEAREST in of_kind else next(iter(of_kind))
        return {
            "threshold": THRESHOLD,
            "definitions": DEFINITIONS,
            "alpha": list(ALPHAS),
            "of": main,
            "bits_per_byte": of_kind[main]["bits_per_byte"],
            "chunks": of_kind[main]["chunks"],
            "with": of_kind,
            "leaks": self._leaks(found, overlaps),
            "near_duplicates": self.statement,
        }

    def _leaks(self, found: Measurements, overlaps: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
        """Return all chunks that leak, the longest runs first."""
        m, length = found.text.chunk_length, found.text.bytes.shape[1]
        longest = np.max(list(overlaps.values()), axis=0)
        order = np.argsort(-longest, axis=None, kind="stable")
        places, chunks = np.unravel_index(order[: int((longest >= THRESHOLD).sum())], longest.shape)
        leaks = []
        for place, chunk in zip(places.tolist(), chunks.tolist(), strict=True):
            document = int(found.text.documents[place, max(0, chunk * m - 1)])
            leaks.append(
                {
                    "chunk": int(found.text.sequences[place]) * length + chunk,
                    "document": self.documents.get(str(document)),
                    "tokens": {kind: round(whole[place, chunk] * m) for kind, whole in overlaps.items()},
                }
            )
        return leaks


def _nats_of_chunks(found: Measurements, row: str) -> NDArray[np.float64]:
    """Return float64 [S, l]; the token that follows a sequence is counted with its last chunk."""
    nats, _ = found.by_chunk(row)
    nats[:, -1] += found.nats(row)[:, -1]
    return nats


def leakage_of(subject: Subject) -> LeakageFacts:
    """Look for leakage in the compared sequences."""
    chunks, length = subject.splits.valid_chunks, subject.splits.sequence_chunks
    places = subject.sequences[:, None] * length + np.arange(length)  # [S, l]
    exists = places < len(chunks)
    rows = places[exists]  # [c]
    nearest = _nearest(subject, rows)
    overlaps = {} if nearest is None else {_NEAREST: nearest}
    sources: dict[str, ChunkSource] = {"database": subject.splits.database}
    if subject.splits.other_database is not None:
        sources["training"] = subject.splits.train_chunks
    excluded = own_documents(subject.splits, rows // length)  # what is never read
    for name, source in sources.items():
        whole = np.zeros(places.shape)
        with _watched(subject, f"looking for runs in the {name}", len(source), "chunks") as advance:
            runs = longest_runs_anywhere(
                chunks, rows, source, least=least_leak(chunks.chunk_length), excluded=excluded, advance=advance
            )
        whole[exists] = runs / chunks.chunk_length
        overlaps[name] = whole
    numbers = np.unique(chunks.document_ids[rows]).tolist()
    return LeakageFacts(
        overlaps, _near_duplicates(subject, rows, sources), {str(one): chunks.document(one).id for one in numbers}
    )


def _nearest(subject: Subject, rows: Int64Array) -> NDArray[np.float64] | None:
    """Return the overlap with the nearest chunks, float64 [S, l]; None if the database cannot be searched."""
    ids, splits = subject.splits.validation_neighbours, subject.splits
    if ids.shape[1] < NEAREST:
        if subject.search is None:
            return None
        search, ids = subject.search(), np.full((len(splits.valid_chunks), NEAREST), -1, dtype=np.int64)
        with _watched(subject, f"searching the {NEAREST} nearest chunks", len(rows), "chunks") as advance:
            ids[rows] = nearest_chunks(search, splits, rows, NEAREST, advance=advance)
    return overlaps_with(subject, ids[:, :NEAREST])


def _near_duplicates(subject: Subject, rows: Int64Array, sources: dict[str, ChunkSource]) -> dict[str, Any] | None:
    if not _has_datasketch():
        say(NOT_LOOKED_FOR)
        return None
    chunks, count, pairs = subject.splits.valid_chunks, 0, {}
    tokenizer = subject.splits.tokenizer
    words = hashed if tokenizer is None else words_of(load_tokenizer(str(tokenizer)))
    for name, source in sources.items():
        with _watched(subject, f"near duplicates in the {name}", len(chunks) + len(source), "chunks") as advance:
            count, pairs[name] = similar_documents(chunks, rows, source, words=words, advance=advance)
    if "training" not in sources:
        return NearDuplicates(count, pairs).to_json()
    training, database = subject.splits.train_chunks, subject.splits.database
    doing = "near duplicates of the training text in the database"
    with _watched(subject, doing, len(training) + len(database), "chunks") as advance:
        documents, found = similar_documents(training, None, database, words=words, advance=advance)
    return NearDuplicates(count, pairs, NearDuplicates(documents, {"database": found})).to_json()


def _has_datasketch() -> bool:
    return importlib.util.find_spec("datasketch") is not None


@contextmanager
def _watched(subject: Subject, doing: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    with progress(doing, total, unit) as shown:

        def advance(count: int) -> None:
            subject.check()
            shown(count)

        yield advance
