"""Make an artifact of a stage: every block is a piece, a file of its own, and one process joins them.

Under the artifact's lock a process makes what all blocks need (a tokenizer, a fitted embedder). Blocks are made without
the lock: all of them by a process alone, every n-th by shard i of n. Whoever finds all pieces takes the lock again and
joins them. A process may be killed anywhere: every file appears by a rename.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path
from typing import Any, Protocol

from retroflow.console import progress, say
from retroflow.errors import StepDone, Unfinished
from retroflow.pipeline.sharing import Shard, Sharing
from retroflow.store.array_file import Array
from retroflow.store.artifact import building, commit, finished_manifest, locked
from retroflow.store.manifest import Manifest
from retroflow.store.pieces import Pieces, discard_pieces, has_shards, pieces_folder

FIRST_POLL, LONGEST_POLL = 0.2, 5.0


@dataclass(frozen=True)
class Block:
    """A block that can be made.

    Attributes:
        size: units of progress in it.
        make: gives its rows of every array, by file name without ".npy".
        source: hash of what it is made from, where the stage's inputs and its number do not say that.
    """

    size: int
    make: Callable[[], dict[str, Array]]
    source: str = ""


class Stage(Protocol):
    """An artifact to be made.

    Attributes:
        kind: chunks, embeddings, index or neighbours.
        doing: what making a block is called: "embed chunks". Empty for a stage without blocks.
        unit: what a block's size counts, in the plural.
        final_errors: errors after which these inputs cannot succeed: what was begun is removed.
        inputs: what the artifact is named by.
        parents: the artifacts it is made from, as in its manifest.
    """

    kind: str
    doing: str
    unit: str
    final_errors: tuple[type[Exception], ...]
    inputs: dict[str, Any]
    parents: dict[str, dict[str, str]]

    def begin(self, partial: Path) -> Mapping[str, Any]:
        """Make in the partial folder what all blocks need, or load it if it is there; the lock is held.

        Returns:
            JSON values: what the blocks depend on, beside `inputs` and `parents`.
        """
        ...

    def size(self) -> int | None:
        """Units in all blocks, None if that is not known beforehand."""
        ...

    def blocks(self) -> Iterator[Block]:
        """Every block, in a fixed order; one that is not made costs little."""
        ...

    def join(self, partial: Path, pieces: Pieces, sources: Sequence[str]) -> Manifest:
        """Write the artifact's files from the pieces of all blocks, whose sources these are; the lock is held."""
        ...


def row_blocks(
    lengths: Mapping[str, int], rows_per_block: int, make: Callable[[str, slice], dict[str, Array]]
) -> Iterator[Block]:
    """Cut splits of these lengths into blocks of rows, each made by `make(split, rows)`."""
    for split, length in lengths.items():
        for start in range(0, length, rows_per_block):
            rows = slice(start, min(start + rows_per_block, length))
            yield Block(rows.stop - start, bind(make, split, rows))


def make_artifact(stage: Stage, folder: Path, sharing: Sharing) -> bool:
    """Make a stage's artifact unless it is there; continue what was begun by other processes, or before a kill.

    Args:
        stage: what to make.
        folder: the artifact's folder.
        sharing: the part of this process in it.

    Returns:
        Whether this process has finished it.

    Raises:
        Unfinished: blocks of others are missing, and none came for `sharing.wait` seconds; or it is a merge, and
            blocks are missing.
        StepDone: it is a shard that goes one step only, and its blocks are made.
    """
    if folder.exists():
        return False
    sources = None
    if stage.doing and sharing.merge and not sharing.step and not has_shards(folder):
        raise _refuse_to_merge(stage.kind, set(), [], 0)
    if stage.doing and sharing.shard is not None:
        sources = _make_shard(stage, folder, sharing, sharing.shard)
    elif sharing.shard is not None and sharing.step:
        raise StepDone(f"{folder.name}: it is not divided; --merge --step makes it.")
    elif not stage.doing and (sharing.merge or sharing.shard is not None):
        say(f"{folder.name}: one process makes it, since its kind is not divided over shards (docs/scale.md)")
    with building(folder, say) as partial:
        if partial is None:
            return False
        try:
            manifest = finished_manifest(partial)
            if manifest is None or manifest.parents != stage.parents:
                manifest = _finish(stage, folder, partial, sources, sharing)
        except stage.final_errors:
            shutil.rmtree(partial, ignore_errors=True)
            if not has_shards(folder):  # other shards may still be able to read their part of the corpus
                discard_pieces(folder)
            raise
        commit(partial, manifest, folder)
    return True


def _begin(stage: Stage, folder: Path, partial: Path) -> Pieces:
    """Begin a stage under its lock; pieces that were made from anything else are not seen."""
    basis = {"parents": stage.parents, **stage.begin(partial)}
    pieces = Pieces(pieces_folder(folder, basis))
    pieces.folder.mkdir(parents=True, exist_ok=True)
    return pieces


def _finish(stage: Stage, folder: Path, partial: Path, sources: list[str] | None, sharing: Sharing) -> Manifest:
    """Join all pieces; `sources` are those of a shard that found every piece there."""
    pieces = _begin(stage, folder, partial)
    if stage.doing and sharing.step and not pieces.present() and not pieces.shards():
        raise Unfinished(f"{folder.name}: ready for its shards (--shard i/n --step).")
    if sources is None or any(pieces.find(*each) is None for each in enumerate(sources)):
        sources = _make_blocks(stage, pieces, None, merge=sharing.merge)
    return stage.join(partial, pieces, sources)


def _make_blocks(stage: Stage, pieces: Pieces, shard: Shard | None, *, merge: bool = False) -> list[str]:
    """Make the blocks of a shard, or all, that are not there; returns the source of every block.

    Raises:
        Unfinished: it is a merge, and some are missing.
    """
    sources, missing = list[str](), list[int]()
    doing = stage.doing if shard is None else f"{stage.doing}, shard {shard}"
    with progress(doing, stage.size() if shard is None else None, stage.unit) as advance:
        for number, block in enumerate(stage.blocks()):
            sources.append(block.source)
            if shard is not None and not shard.owns(number):
                continue
            if pieces.find(number, block.source) is None:
                if merge:
                    missing.append(number)
                    continue
                pieces.write(number, block.make(), block.source)
            advance(block.size)
    if missing:
        raise _refuse_to_merge(stage.kind, pieces.shards(), missing, len(sources))
    return sources


def _make_shard(stage: Stage, folder: Path, sharing: Sharing, shard: Shard) -> list[str] | None:
    """Make a shard's blocks and wait for the others'; returns their sources, None if the artifact is there by then."""
    with building(folder, say) as partial:
        if partial is None:
            return None
        pieces = _begin(stage, folder, partial)
        pieces.note_shard(shard.number, shard.count)
    try:
        # Two processes with the same shard: the second waits and finds the blocks of the first.
        with locked(folder.parent, f"{folder.name}.shard-{shard.number}-of-{shard.count}", say):
            sources = _make_blocks(stage, pieces, shard)
    except FileNotFoundError:
        if folder.exists():  # another has joined all, and discarded the pieces
            return None
        raise
    if sharing.step and not folder.exists():
        raise StepDone(f"{folder.name}: the blocks of shard {shard} are made; after all shards comes --merge --step.")
    _wait(stage.kind, folder, pieces, len(sources), sharing, shard)
    return sources


def _wait(kind: str, folder: Path, pieces: Pieces, total: int, sharing: Sharing, shard: Shard) -> None:
    missing = set(range(total)) - pieces.present()
    if not missing or folder.exists():
        return
    if sharing.wait:
        say(
            f"{folder.name}: shard {shard} is done; waiting for {_shards(missing, shard.count)} "
            f"({len(missing)} of {total} blocks); stops when none comes for {sharing.wait:g} s (--wait)"
        )
    deadline, poll = time.monotonic() + sharing.wait, FIRST_POLL
    with progress(f"wait for {kind}", len(missing), "blocks") as advance:
        while missing and not folder.exists():
            if time.monotonic() >= deadline:
                since = f"none came for {sharing.wait:g} s" if sharing.wait else "--wait 0 waits for none"
                raise Unfinished(
                    f"{folder.name}: shard {shard} is done; {len(missing)} of {total} blocks are missing, of "
                    f"{_shards(missing, shard.count)} ({since}). Run the same command with --shard for those, "
                    "then this one again: it continues here. Shards that run at the same time wait for each other."
                )
            time.sleep(min(poll, max(0.0, deadline - time.monotonic())))
            poll = min(poll * 1.5, LONGEST_POLL)
            left = missing - pieces.present()
            if len(left) < len(missing):
                advance(len(missing) - len(left))
                missing, deadline = left, time.monotonic() + sharing.wait


def _refuse_to_merge(kind: str, shards: set[tuple[int, int]], missing: list[int], total: int) -> Unfinished:
    """The error of a merge that finds blocks missing; `shards` are those that have begun."""
    if not shards:
        return Unfinished(
            f"--merge: no shard of {kind} was begun. Run the same command with --shard 1/n to --shard n/n first, or "
            "without --merge to make everything in this process."
        )
    # Shards of different n may have begun: name those of the n that lacks the fewest.
    count = min({count for _, count in shards}, key=lambda count: (len({number % count for number in missing}), count))
    return Unfinished(
        f"--merge: {len(missing)} of {total} blocks of {kind} are missing, of {_shards(missing, count)}. Run the same "
        "command with --shard in place of --merge for each of them, then merge again; without --merge this process "
        "makes them itself."
    )


def _shards(missing: Iterable[int], count: int) -> str:
    numbers = sorted({number % count + 1 for number in missing})
    shown = ", ".join(f"{number}/{count}" for number in numbers[:8])
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"{'shard' if len(numbers) == 1 else 'shards'} {shown}{more}"
