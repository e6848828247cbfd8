"""Preparing by many: which share is whose, and what to do when the others are not done.

A stage's work is cut in blocks. Shard i of n makes every n-th block, beginning with the i-th, as pieces
(retroflow.store.pieces); whoever finds all of them there joins them. docs/preparing.md is the guide.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from retroflow.console import progress, say
from retroflow.errors import Unfinished, UsageError
from retroflow.store.array_file import Array
from retroflow.store.artifact import building, locked
from retroflow.store.manifest import Manifest
from retroflow.store.pieces import Pieces, has_shards, note_shard

DEFAULT_WAIT = 600.0
FIRST_POLL, LONGEST_POLL = 0.2, 5.0
MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Shard:
    """Share `number` of `count`, from 1 to `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def owns(self, place: int) -> bool:
        """Say whether the block at this place of a stage's order, from 0, is of this share."""
        return place % self.count == self.number - 1

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> "Shard":
        """Read "i/n", or "auto": what torchrun, a SLURM array or srun has put into the environment.

        Raises:
            UsageError: it is neither, or i is not in 1 to n, or "auto" is given where nothing says which share.
        """
        if text == "auto":
            return cls._of_environment(environment)
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        shard = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= shard.number <= shard.count <= MOST_SHARDS:
            raise UsageError(
                f'--shard: given "{text}", allowed i/n with 1 <= i <= n <= {MOST_SHARDS}, or auto. Shares count from '
                "1: three processes are --shard 1/3, --shard 2/3 and --shard 3/3."
            )
        return shard

    @classmethod
    def _of_environment(cls, environment: Mapping[str, str]) -> "Shard":
        def number(name: str) -> int:
            try:
                return int(environment[name])
            except ValueError:
                raise UsageError(
                    f'--shard auto: {name} is "{environment[name]}", not a number. Give --shard i/n.'
                ) from None

        if {"RANK", "WORLD_SIZE"} <= environment.keys():  # torchrun
            return cls.parse(f"{number('RANK') + 1}/{number('WORLD_SIZE')}")
        if {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"} <= environment.keys():
            step = number("SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in environment else 1
            place = (number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN")) // max(1, step)
            return cls.parse(f"{place + 1}/{number('SLURM_ARRAY_TASK_COUNT')}")
        if {"SLURM_PROCID", "SLURM_NTASKS"} <= environment.keys():  # srun
            return cls.parse(f"{number('SLURM_PROCID') + 1}/{number('SLURM_NTASKS')}")
        raise UsageError(
            "--shard auto: neither RANK and WORLD_SIZE (torchrun), nor SLURM_ARRAY_TASK_ID, nor SLURM_PROCID is set. "
            "Give --shard i/n."
        )


@dataclass(frozen=True)
class Sharing:
    """How this process takes part in preparing; by default it makes everything itself.

    Attributes:
        shard: the share of every stage's blocks that it makes; None for all of them.
        merge: make no block, only join what shards have made.
        wait: seconds that a shard waits for the others without any new block, before it stops.
        command: if not empty, this process must make nothing; what makes it, for the message that refuses to.
    """

    shard: Shard | None = None
    merge: bool = False
    wait: float = DEFAULT_WAIT
    command: str = ""

    def __post_init__(self) -> None:
        """Check the combination."""
        if self.merge and self.shard is not None:
            raise UsageError("--merge: given together with --shard. A merge makes no share; leave one of them out.")
        if not 0 <= self.wait < float("inf"):
            raise UsageError(f"--wait: given {self.wait}, allowed 0 or more seconds. 0 never waits.")


ALONE = Sharing()


class Key(NamedTuple):
    """A block: its group of pieces, and its number in it."""

    group: str
    number: int


@dataclass(frozen=True)
class Block:
    """A block that can be made.

    Attributes:
        key: which it is.
        source: what it is made from, where that is not clear from the key.
        size: units of progress in it.
        make: gives its rows of every array.
    """

    key: Key
    source: str
    size: int
    make: Callable[[], dict[str, Array]]


class Work(Protocol):
    """What a stage hands out in blocks.

    Attributes:
        pieces: the folder of its pieces.
        doing: what a share of it is called: "cut documents into chunks".
        unit: what a block's size counts.
    """

    @property
    def pieces(self) -> Path: ...

    @property
    def doing(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def blocks(self) -> Iterator[Block]:
        """Every block, in a fixed order; those of others cost little."""
        ...

    def done(self) -> set[Key]:
        """Blocks that need no piece, since a run without shares has written them."""
        ...


class SharedStage(Protocol):
    """A stage in the making, begun under its artifact's lock.

    Attributes:
        work: its blocks.
    """

    @property
    def work(self) -> Work: ...

    def intact(self) -> bool:
        """Say whether what was made at the beginning (tokenizer, fitted embedder) is still there."""
        ...

    def finish(self, inputs: dict[str, Any], sharing: Sharing) -> Manifest:
        """Join all blocks, making those that are missing unless this is a merge; the lock must be held."""
        ...


def take_part(
    folder: Path,
    parents: Mapping[str, Mapping[str, str]],
    begin: Callable[[Path], SharedStage],
    sharing: Sharing,
) -> SharedStage | None:
    """Make a shard's share of a stage, and wait until the others have made theirs; nothing without a shard.

    Returns early if the artifact is finished meanwhile.

    Args:
        folder: the artifact's folder.
        parents: what it is made from, as in its manifest.
        begin: opens the stage in the partial folder.
        sharing: this process's share.

    Returns:
        The stage, to be finished under the artifact's lock.

    Raises:
        Unfinished: others' blocks are missing, and none came for `sharing.wait` seconds; or it is a merge of a stage
            that no shard has begun.
    """
    if sharing.merge and not has_shards(folder):
        raise refuse_to_merge(_kind_of(folder), set(), {}, 0)
    shard = sharing.shard
    if shard is None:
        return None
    with building(folder, say, parents) as partial:
        if partial is None:
            return None
        stage = begin(partial)
        stage.work.pieces.mkdir(parents=True, exist_ok=True)
        note_shard(stage.work.pieces, shard.number, shard.count)
    try:
        # Two processes with the same share: the second waits and finds the blocks of the first.
        with locked(folder.parent, f"{folder.name}.shard-{shard.number}-of-{shard.count}", say):
            places = _make_share(stage.work, shard)
    except FileNotFoundError:
        if folder.exists():  # another has joined all, and discarded the pieces
            return None
        raise
    _wait(folder, stage.work, places, sharing, shard)
    return stage


def finish(
    partial: Path,
    begin: Callable[[Path], SharedStage],
    begun: SharedStage | None,
    inputs: dict[str, Any],
    sharing: Sharing,
) -> Manifest:
    """Finish a stage under its artifact's lock, with what this process has begun of it if that is still there."""
    stage = begun if begun is not None and begun.intact() else begin(partial)
    return stage.finish(inputs, sharing)


def _kind_of(folder: Path) -> str:
    return folder.name.partition("-")[0]


def _make_share(work: Work, shard: Shard) -> dict[Key, int]:
    """Make the blocks of a shard that are not there; returns the place of every block that needs a piece."""
    done, places = work.done(), dict[Key, int]()
    with progress(f"{work.doing}, share {shard}", None, work.unit) as advance:
        for place, block in enumerate(work.blocks()):
            if block.key in done:
                continue
            places[block.key] = place
            if shard.owns(place):
                pieces = Pieces(work.pieces / block.key.group)
                if pieces.find(block.key.number, block.source) is None:
                    pieces.write(block.key.number, block.make(), block.source)
                advance(block.size)
    return places


def _missing(work: Work, keys: Iterable[Key]) -> list[Key]:
    """Those of the blocks that are not there, as a piece or otherwise."""
    keys, done = list(keys), work.done()
    present = {group: Pieces(work.pieces / group).present() for group in {key.group for key in keys}}
    return [key for key in keys if key.number not in present[key.group] and key not in done]


def _wait(folder: Path, work: Work, places: Mapping[Key, int], sharing: Sharing, shard: Shard) -> None:
    missing = _missing(work, places)
    if not missing or folder.exists():
        return
    if sharing.wait:
        say(
            f"{folder.name}: share {shard} is done; waiting for {_shares(missing, places, shard.count)} "
            f"({len(missing)} of {len(places)} blocks); stops when none comes for {sharing.wait:g} s (--wait)"
        )
    deadline, poll = time.monotonic() + sharing.wait, FIRST_POLL
    with progress(f"wait for {_kind_of(folder)}", len(missing), "blocks") as advance:
        while missing and not folder.exists():
            if time.monotonic() >= deadline:
                since = f"none came for {sharing.wait:g} s" if sharing.wait else "--wait 0 waits for none"
                raise Unfinished(
                    f"{folder.name}: share {shard} is done; {len(missing)} of {len(places)} blocks are missing, of "
                    f"{_shares(missing, places, shard.count)} ({since}). Run the same command with --shard for those, "
                    "then this one again: it continues here. Shares that run at the same time wait for each other."
                )
            time.sleep(min(poll, max(0.0, deadline - time.monotonic())))
            poll = min(poll * 1.5, LONGEST_POLL)
            left = _missing(work, missing)
            if len(left) < len(missing):
                advance(len(missing) - len(left))
                missing, deadline = left, time.monotonic() + sharing.wait


def refuse_to_merge(kind: str, noted: set[tuple[int, int]], missing: Mapping[Key, int], total: int) -> Unfinished:
    """The error of a merge that finds blocks missing.

    Args:
        kind: the artifact's kind.
        noted: the shards that have begun.
        missing: place of every missing block.
        total: number of blocks.
    """
    if not noted:
        return Unfinished(
            f"--merge: no share of {kind} was begun. Run the same command with --shard 1/n to --shard n/n first, or "
            "without --merge to make everything in this process."
        )
    counts = {count for _, count in noted}
    # Whoever cut the work differently before: the cut that lacks the fewest shares.
    count = min(counts, key=lambda each: (len({place % each for place in missing.values()}), each))
    return Unfinished(
        f"--merge: {len(missing)} of {total} blocks of {kind} are missing, of "
        f"{_shares(list(missing), missing, count)}. Run the same command with --shard in place of --merge for each of "
        "them, then merge again; without --merge this process makes them itself."
    )


def _shares(missing: list[Key], places: Mapping[Key, int], count: int) -> str:
    numbers = sorted({places[key] % count + 1 for key in missing})
    shown = ", ".join(f"{number}/{count}" for number in numbers[:8])
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"{'share' if len(numbers) == 1 else 'shares'} {shown}{more}"
