"""Stages whose result is arrays of known length: filled in blocks of rows by one process, or by many in shares."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retroflow.console import progress
from retroflow.pipeline.sharing import Block, Key, Sharing, refuse_to_merge
from retroflow.store.array_file import Array, ArraySpec
from retroflow.store.blocks import BlockedArrays, marked_blocks
from retroflow.store.manifest import FileEntry
from retroflow.store.pieces import Pieces, noted_shards


@dataclass(frozen=True)
class Table:
    """Arrays in the making; a `retroflow.pipeline.sharing.Work`.

    Attributes:
        kind: of the artifact.
        partial: the folder to make them in; blocks that an earlier run finished there are kept.
        pieces: where shards leave their blocks.
        specs: split -> its arrays, all with the same number of rows.
        rows_per_block: rows of every block but the last of a split.
        make: gives the rows of every array, by file name, for (split, rows); depends on nothing else.
        verb: what is done: "embed".
    """

    kind: str
    partial: Path
    pieces: Path
    specs: Mapping[str, Sequence[ArraySpec]]
    rows_per_block: int
    make: Callable[[str, slice], dict[str, Array]]
    verb: str
    unit: str = "chunks"

    @property
    def doing(self) -> str:
        """As in `Work`."""
        return f"{self.verb} chunks"

    def done(self) -> set[Key]:
        """As in `Work`."""
        return {Key(split, number) for split in self.specs for number in marked_blocks(self.partial, split)}

    def blocks(self) -> Iterator[Block]:
        """As in `Work`."""
        for split, specs in self.specs.items():
            num_rows = specs[0].shape[0]
            for number, start in enumerate(range(0, num_rows, self.rows_per_block)):
                rows = slice(start, min(start + self.rows_per_block, num_rows))
                yield Block(Key(split, number), "", rows.stop - rows.start, self._making(split, rows))

    def _making(self, split: str, rows: slice) -> Callable[[], dict[str, Array]]:
        return lambda: self.make(split, rows)

    def fill(self, sharing: Sharing) -> dict[str, FileEntry]:
        """Fill the arrays: with the blocks that are there, with pieces, and with blocks made now.

        The artifact's lock must be held.

        Returns:
            The manifest entries.

        Raises:
            Unfinished: it is a merge, and pieces are missing.
        """
        files: dict[str, FileEntry] = {}
        lacking: set[Key] = set()
        for split in self.specs:
            files |= self._fill_split(split, sharing, lacking)
        if lacking:
            places = {block.key: place for place, block in enumerate(self.blocks())}
            missing = {key: place for key, place in places.items() if key in lacking}
            raise refuse_to_merge(self.kind, noted_shards(self.pieces), missing, len(places))
        return files

    def _fill_split(self, split: str, sharing: Sharing, lacking: set[Key]) -> dict[str, FileEntry]:
        specs, pieces = self.specs[split], Pieces(self.pieces / split)
        num_rows, names = specs[0].shape[0], {spec.name for spec in specs}
        with BlockedArrays(self.partial, split, specs, self.rows_per_block) as blocks:
            missing = blocks.missing()
            with progress(f"{self.verb} {split} chunks", num_rows, self.unit) as advance:
                advance(num_rows - sum(blocks.rows(block).stop - blocks.rows(block).start for block in missing))
                for block in missing:
                    rows = blocks.rows(block)
                    arrays = pieces.find(block)
                    if arrays is None or arrays.keys() != names:
                        if sharing.merge:
                            lacking.add(Key(split, block))
                            continue
                        arrays = self.make(split, rows)
                    blocks.write(block, arrays)
                    advance(rows.stop - rows.start)
            return {} if lacking else blocks.entries()
