"""Rows that ranks have of a tensor, and the checkpoint that is made of them."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from retroflow.runs.checkpoint_shards import join_shards, rows_between, rows_of_rank, split_shard


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 8, 9])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_cut_rows_as_torch_chunk_does(num_rows, world_size):
    whole = torch.arange(3.0 * num_rows).view(num_rows, 3)
    cut = [whole[slice(*rows_of_rank(num_rows, rank, world_size))] for rank in range(world_size)]
    chunks = [*whole.chunk(world_size), *[whole[:0]] * world_size][:world_size]
    assert all(torch.equal(one, other) for one, other in zip(cut, chunks, strict=True))


@pytest.mark.parametrize("num_rows", [1, 2, 5, 9])
@pytest.mark.parametrize("before", [1, 2, 3, 4])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_rows_are_found_whoever_wrote_them(num_rows, before, after):
    whole = torch.arange(2.0 * num_rows).view(num_rows, 2)
    pieces = [whole[slice(*rows_of_rank(num_rows, rank, before))] for rank in range(before)]
    found = [rows_between(pieces, *rows_of_rank(num_rows, rank, after)) for rank in range(after)]
    assert torch.equal(torch.cat(found), whole)
    assert all(rows.shape[1:] == whole.shape[1:] for rows in found)


def test_what_is_split_is_joined(mesh):
    torch.manual_seed(1)
    weights, moments, buffer = torch.randn(5, 3), torch.randn(5, 3), torch.randn(2)
    checkpoint = {
        "state_dict": {"weights": distribute_tensor(weights, mesh, [Shard(0)]), "buffer": buffer},
        "optimizer_states": [{"state": {"weights": {"moments": distribute_tensor(moments, mesh, [Shard(0)])}}}],
        "step": 3,
    }
    head, shard = split_shard(checkpoint)
    assert head["state_dict"]["weights"] is None and torch.equal(head["state_dict"]["buffer"], buffer)
    assert set(shard) == {("state_dict", "weights"), ("optimizer_states", 0, "state", "weights", "moments")}
    shards = [{place: rows[:3] for place, rows in shard.items()}, {place: rows[3:] for place, rows in shard.items()}]
    join_shards(head, shards, below="state_dict")
    assert torch.equal(head["state_dict"]["weights"], weights)
    assert head["optimizer_states"][0]["state"]["weights"]["moments"] is None
    join_shards(head, shards)
    assert torch.equal(head["optimizer_states"][0]["state"]["weights"]["moments"], moments) and head["step"] == 3


def test_other_placements_are_refused(mesh):
    with pytest.raises(ValueError, match=r"only Shard\(0\) can be stored"):
        split_shard({"state_dict": {"weights": distribute_tensor(torch.ones(2), mesh, [Replicate()])}})
