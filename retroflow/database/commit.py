"""Commits: a new version is written beside the old ones, and appears when current.json is swapped.

Nothing that a version consists of is ever changed. A killed writer leaves files that no version has; the next one
removes them before it begins.
"""

import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from retroflow.console import Advance, progress, say
from retroflow.database.erasure import ERASED_FOLDER, forget_erased, record_erased
from retroflow.database.identity import Identity
from retroflow.database.lock import writing
from retroflow.database.searching import needs_index
from retroflow.database.snapshot import Snapshot, current_of
from retroflow.database.view import View
from retroflow.pipeline.embeddings import ChunkTexts
from retroflow.protocols import Int64Array
from retroflow.retrieval.keys import Keys
from retroflow.store.array_file import Array
from retroflow.store.artifact import INDEX_FOLDER, VERIFIED_FOLDER, commit
from retroflow.store.atomic import canonical_json, sync_tree, write_file
from retroflow.store.hashing import describe_tree
from retroflow.store.manifest import PARTS_FOLDER, Manifest
from retroflow.store.segment import SEGMENT, Segment, StoredDocument, write_segment
from retroflow.store.versions import (
    STATES_FOLDER,
    VERSIONS_FOLDER,
    Current,
    Hold,
    Part,
    SegmentState,
    Version,
    hold_alone,
    read_version,
    version_file,
    version_numbers,
    write_dead,
    write_records,
)

MOST_SEGMENTS = 8
MOST_DEAD = 0.2
KEPT_SECONDS = 7 * 24 * 3600.0
CARRIED_CHUNKS = 4096
_INDEX = "index"


@contextmanager
def changing(folder: Path, verb: str) -> Iterator["Writer"]:
    """Yield the one writer of a database; what a killed one left is removed first.

    Args:
        folder: of the database.
        verb: the command, for other writers and for the version.

    Raises:
        UsageError: no database.
        RetroflowError: somebody else writes, or the disk cannot be written.
    """
    current_of(folder)
    with writing(folder, verb):
        remove_leftovers(folder)
        writer = Writer(Snapshot.open(folder), verb)
        try:
            yield writer
        except BaseException:
            with suppress(OSError):  # a full disk gets its space back
                remove_leftovers(folder)
            raise
        finally:
            writer.before.close()


class Writer:
    """Commits versions.

    Attributes:
        before: the newest version.
    """

    def __init__(self, before: Snapshot, verb: str) -> None:
        self.before, self._verb = before, verb

    def commit(
        self,
        removed: Sequence[int],
        added: Iterable[dict[str, Array]],
        changed: Mapping[str, int],
        *,
        moved: Mapping[int, StoredDocument] | None = None,
        verb: str = "",
    ) -> Snapshot:
        """Commit a version; returns it, opened.

        Args:
            removed: numbers of the documents of `before` that are not in it; read after `added`.
            added: blocks of documents that are, for `write_segment`.
            changed: how many documents were added, replaced and removed.
            moved: numbers of documents of `before` that have another title or source, and their records.
            verb: what made it, if not the command.
        """
        before, folder, number = self.before, self.before.folder, self.before.version.number + 1
        identity = before.identity
        for name in (PARTS_FOLDER, STATES_FOLDER, VERSIONS_FOLDER):
            (folder / name).mkdir(exist_ok=True)
        new = self._write_segment(identity, number, iter(added))
        moved = moved or {}
        fingerprint = int(before.version.fingerprint, 16)
        fingerprint -= sum_of(before.view.document(one) for one in [*removed, *moved])
        fingerprint += sum_of(moved.values())
        segments = self._segments_after(np.array(removed, dtype=np.int64), moved, number)
        if new is not None:
            fingerprint += sum_of(new.documents())
            part = Part(new.folder.name, new.manifest.content)
            segments.append(SegmentState(part, new.num_documents, len(new)))
        version = Version(
            number=number,
            created=time.time(),
            verb=verb or self._verb,
            changed=dict(changed),
            fingerprint=f"{fingerprint % (1 << 256):064x}",
            identity=before.version.identity,
            segments=tuple(segments),
        )
        if not identity.searches_segments and segments:
            version = replace(version, index=self._index_of(version))
        content = version.render()
        write_file(folder / VERSIONS_FOLDER / version.file_name, content)
        tags = current_of(folder).tags if before.version.number else {}
        Current(number, hashlib.sha256(content).hexdigest(), tags).write(folder)
        before.close()
        self.before = Snapshot.open(folder)
        return self.before

    def compact(self, segments: Sequence[int]) -> Snapshot:
        """Commit a version in which the documents of some segments are one segment, without the removed ones."""
        view = self.before.view
        numbers = view.in_segments(segments).tolist()
        with progress("compact", len(numbers), "documents") as advance:
            blocks = carried_blocks(view, [(one, view.document(one)) for one in numbers], self.before.identity)
            return self.commit(numbers, _reporting(blocks, advance), {}, verb="compact")

    def settle(self) -> None:
        """Keep segments, removed documents and old versions within bounds."""
        merge = segments_to_merge(self.before.version)
        if merge:
            say(f"joining {len(merge)} of {len(self.before.version.segments)} segments")
            self.compact(merge)
        prune(self.before.folder, time.time() - KEPT_SECONDS)

    def _segments_after(
        self, removed: Int64Array, moved: Mapping[int, StoredDocument], number: int
    ) -> list[SegmentState]:
        """The segments that still have documents when some are removed, and others have other records."""
        states, before = [], self.before
        for place, (state, segment, dead) in enumerate(
            zip(before.version.segments, before.segments, before.dead, strict=True)
        ):
            gone = before.view.places_in(place, removed)
            if len(gone):
                dead = np.union1d(dead, gone)
                if len(dead) == segment.num_documents:
                    continue
                name = f"{number:08d}-{state.part.name}.npy"
                counts = segment.starts[dead + 1] - segment.starts[dead]
                state = replace(
                    state,
                    dead_documents=len(dead),
                    dead_chunks=int(counts.sum()),
                    dead=name,
                    dead_sha256=write_dead(before.folder, name, dead),
                )
            records = before.view.by_place(place, moved)
            if records:
                name = f"{number:08d}-{state.part.name}.json"
                digest = write_records(before.folder, name, {**segment.replaced, **records})
                state = replace(state, records=name, records_sha256=digest)
            states.append(state)
        return states

    def _write_segment(self, identity: Identity, number: int, blocks: Iterator[dict[str, Array]]) -> Segment | None:
        def save_index(segment: Segment, folder: Path) -> bool:
            if not needs_index(identity.capabilities, len(segment)):
                return False
            retriever = identity.new_retriever()
            say(f"building the index with {retriever.owner}, {len(segment):,} chunks")
            retriever.build(Keys(segment.embeddings))
            retriever.save(folder)
            return True

        info = {"chunk_length": identity.chunk_length, "dimension": identity.dimension}
        plan = Manifest(SEGMENT, {"database": identity.database, "segment": number}, info=info)
        return write_segment(self.before.folder / PARTS_FOLDER / plan.name, plan, blocks, save_index)

    def _index_of(self, version: Version) -> Part:
        """Build an index over all chunks of a version, unless the one before has the same."""
        before = self.before.version
        if before.index is not None and before.fingerprint == version.fingerprint:
            return before.index
        folder, identity = self.before.folder, self.before.identity
        view = Snapshot(folder, version).view
        inputs = {"database": identity.database, "index": version.number}
        plan = Manifest(_INDEX, inputs)
        target = folder / PARTS_FOLDER / plan.name
        partial = target.with_name(f"{target.name}.partial")
        partial.mkdir()
        retriever = identity.new_retriever()
        say(f"building the index with {retriever.owner}, {len(view):,} chunks")
        retriever.build(keys_of(view, identity))
        retriever.save(partial / INDEX_FOLDER)
        sync_tree(partial)
        manifest = Manifest(_INDEX, inputs, files=describe_tree(partial / INDEX_FOLDER, INDEX_FOLDER))
        commit(partial, manifest, target)
        return Part(target.name, manifest.content)


def keys_of(view: View, identity: Identity) -> Keys:
    """Return the chunks of a version as keys, in the order of its view."""
    vectors = None if identity.dimension is None else view.embeddings(identity.dimension)
    texts = ChunkTexts(view, identity.tokenizer) if identity.capabilities.reads_texts else None
    return Keys(vectors, texts)


def carried_blocks(
    view: View, documents: Iterable[tuple[int, StoredDocument]], identity: Identity
) -> Iterator[dict[str, Array]]:
    """Yield stored documents as blocks for `write_segment`, neither cut nor embedded again.

    Args:
        view: has the documents.
        documents: number of each, and the record that it gets.
        identity: of the database.
    """
    numbers, records, count = list[int](), list[bytes](), 0
    for number, record in documents:
        numbers.append(number)
        records.append(record.to_bytes())
        count += int(view.starts[number + 1] - view.starts[number])
        if count >= CARRIED_CHUNKS:
            yield _carried(view, numbers, records, identity.dimension)
            numbers, records, count = [], [], 0
    if numbers:
        yield _carried(view, numbers, records, identity.dimension)


def _carried(view: View, numbers: list[int], records: list[bytes], dimension: int | None) -> dict[str, Array]:
    chunks = np.concatenate([view.chunks_of(number) for number in numbers])
    arrays: dict[str, Array] = {
        "tokens": view.tokens[chunks],
        "lengths": view.lengths[chunks],
        "num_bytes": view.num_bytes[chunks],
        "starts": np.diff(view.starts)[numbers],
        "records": np.frombuffer(b"".join(records), dtype=np.uint8),
        "record_offsets": np.array([len(record) for record in records], dtype=np.int64),
    }
    return arrays if dimension is None else {**arrays, "embeddings": view.embeddings(dimension)[chunks]}


def _reporting(blocks: Iterable[dict[str, Array]], advance: Advance) -> Iterator[dict[str, Array]]:
    for block in blocks:
        count = len(block["starts"])
        yield block
        advance(count)


def sum_of(documents: Iterable[StoredDocument]) -> int:
    """Sum of hashes of documents: adding and removing them in any order gives the same."""
    hashed = (hashlib.sha256(canonical_json([one.id, one.title, one.sha256])).digest() for one in documents)
    return sum(int.from_bytes(digest, "big") for digest in hashed)


def segments_to_merge(version: Version) -> list[int]:
    """Return the segments that the policy merges: all but the largest, and it, too, if much of it is removed."""
    segments = version.segments
    if len(segments) < MOST_SEGMENTS and version.dead_share <= MOST_DEAD:
        return []
    largest = max(range(len(segments)), key=lambda place: segments[place].chunks)
    return [
        place for place, each in enumerate(segments) if place != largest or each.dead_chunks > MOST_DEAD * each.chunks
    ]


def prune(folder: Path, created_before: float) -> list[int]:
    """Delete versions, but never the newest, a tagged one, or one that is being read.

    Args:
        folder: of the database; the caller is its writer.
        created_before: seconds since 1970.

    Returns:
        The versions that were kept only because they are being read.
    """
    current = current_of(folder)
    kept, doomed = list[int](), list[tuple[int, Hold]]()
    for number in version_numbers(folder):
        if number == current.version or number in current.tags.values():
            continue
        if read_version(folder, number).created >= created_before:
            continue
        held = hold_alone(folder, number)
        if held is None:
            kept.append(number)
        else:
            doomed.append((number, held))
    if doomed:
        _record_erased(folder, [number for number, _ in doomed])
    for number, held in doomed:
        (folder / VERSIONS_FOLDER / version_file(number)).unlink()
        held.close()
    if doomed:
        remove_leftovers(folder)
        forget_erased(folder)
    return kept


def _record_erased(folder: Path, numbers: Sequence[int]) -> None:
    """Keep what proves that documents are erased, before the last versions with them are deleted."""
    versions = {number: read_version(folder, number) for number in version_numbers(folder)}
    kept = {name for number, version in versions.items() if number not in numbers for name in version.parts}
    states = {each.part.name: each.part for number in numbers for each in versions[number].segments}
    doomed = [
        Segment.open(folder / PARTS_FOLDER / part.name, part.content)
        for part in states.values()
        if part.name not in kept
    ]
    newest = Snapshot(folder, versions[max(versions)])
    record_erased(folder, doomed, newest, max(versions))


def remove_leftovers(folder: Path) -> None:
    """Remove everything that no version has; the caller is the writer."""
    current = current_of(folder)
    versions = []
    for number in version_numbers(folder):
        if number > current.version:
            (folder / VERSIONS_FOLDER / version_file(number)).unlink()
        else:
            versions.append(read_version(folder, number))
    parts = {name for version in versions for name in version.parts}
    states = {name for version in versions for name in version.states}
    for path in (folder / PARTS_FOLDER).iterdir():
        if path.name not in parts and path.name != VERIFIED_FOLDER:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (folder / PARTS_FOLDER / VERIFIED_FOLDER).glob("*"):
        if path.stem not in parts:
            path.unlink(missing_ok=True)  # readers write and rename there
    for path in (folder / STATES_FOLDER).glob("*"):
        if path.name not in states:
            path.unlink()
    for path in [
        *folder.glob("*.tmp"),
        *(folder / ERASED_FOLDER).glob("*.tmp"),
        *(folder / VERSIONS_FOLDER).glob("*.tmp"),
    ]:
        path.unlink()
