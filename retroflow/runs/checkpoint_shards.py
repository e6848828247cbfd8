"""Checkpoints of a sharded model: the rows of every rank, separate from unsharded values.

A sharded tensor is divided along its first axis over the ranks, ceil(rows / ranks) rows each, the last ones shorter or
empty, as in torch.chunk and FSDP2. In the checkpoint it is replaced by None. Each rank's shard is a mapping from the
keys of the tensor to its rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

Place = tuple[str | int, ...]
"""The keys of a value in a checkpoint, such as ("state_dict", "model.embedding.weight")."""

RankShard = dict[Place, Tensor]
"""One rank's rows of each sharded tensor."""


def split_shard(checkpoint: Any) -> tuple[Any, RankShard]:
    """Separate this rank's rows from a checkpoint.

    Args:
        checkpoint: dicts, lists and plain values; its tensors are whole, or sharded along their first axis.

    Returns:
        A copy with None for sharded tensors and whole ones on the CPU; and the rows, on the CPU.
    """
    shard: RankShard = {}

    def without(value: Any, place: Place) -> Any:
        if isinstance(value, DTensor):
            if any(not placement.is_shard(0) for placement in value.placements):
                raise ValueError(f"{place}: placed as {value.placements}; only Shard(0) can be stored")
            shard[place] = value.to_local().detach().cpu()
            return None
        if isinstance(value, Tensor):
            return value.detach().cpu()
        if isinstance(value, dict):
            return {key: without(part, (*place, key)) for key, part in value.items()}
        if isinstance(value, list):
            return [without(part, (*place, number)) for number, part in enumerate(value)]
        return value

    return without(checkpoint, ()), shard


def join_shards(checkpoint: Any, shards: Sequence[Mapping[Place, Tensor]], *, below: str | None = None) -> None:
    """Put whole tensors back into a checkpoint.

    Args:
        checkpoint: as `split_shard` returned it; changed.
        shards: of all ranks, in their order.
        below: a first key; tensors under other keys remain None.
    """
    for place in shards[0] if shards else ():
        if below is None or place[0] == below:
            value_at(checkpoint, place[:-1])[place[-1]] = torch.cat([shard[place] for shard in shards])


def value_at(checkpoint: Any, place: Place) -> Any:
    """Follow the keys."""
    for key in place:
        checkpoint = checkpoint[key]
    return checkpoint


def rows_of_rank(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the first row of a rank's shard, and the row after its last."""
    length = -(-num_rows // world_size)
    return min(rank * length, num_rows), min((rank + 1) * length, num_rows)


def rows_between(pieces: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """Assemble rows of a tensor from its shards, and read no others.

    Args:
        pieces: float [s_i, ...] each, in their order.
        start: the first row.
        stop: the row after the last.

    Returns:
        float [stop - start, ...].
    """
    found, first = [], 0
    for piece in pieces:
        begin, end = max(start - first, 0), min(stop - first, piece.shape[0])
        if begin < end:
            found.append(piece[begin:end])
        first += piece.shape[0]
    return torch.cat(found) if found else pieces[0][:0]
