"""FSDP2 in torch: build a model so that every rank holds a shard of each parameter."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from retroflow.distributed.tied_weights import share_as, shared_names


def build_sharded(
    build: Callable[[], Any], mesh: DeviceMesh, *, prepare: Callable[[nn.Module], None], bf16: bool = False
) -> Any:
    """Build a model of which every rank has a shard; only rank 0 ever holds all of it.

    State that can only be computed from unsharded weights, such as a fingerprint, is read from rank 0 by
    `unsharded_state()` and set on every rank by `load_unsharded_state(state)`.

    Args:
        build: makes the model with its initial weights on the CPU, or without weights on the meta device.
        mesh: one axis, all ranks.
        prepare: changes the layers before they are sharded.
        bf16: gather the weights of layers in bfloat16, in which autocast multiplies anyway: half the
            traffic, and no copy of every weight from forward to backward. The gains of norms are rounded, too. Shards,
            summed gradients, and parameters outside layers (embeddings) stay in float32.

    Returns:
        The model on the mesh's devices; its parameters equal those of `build` on rank 0.
    """
    whole: dict[str, Tensor] = {}
    facts_of_rank_0: list[Any] = [None]
    if mesh.get_rank() == 0:
        with torch.device("cpu"):
            built = build()
        whole = {name: value.detach() for name, value in (*built.named_parameters(), *built.named_buffers())}
        facts_of_rank_0 = [(shared_names(built), built.unsharded_state())]
        del built
    dist.broadcast_object_list(facts_of_rank_0, src=0)
    shared, facts = facts_of_rank_0[0]
    with torch.device("meta"):
        model = build()
    share_as(model, shared)
    if facts:
        model.load_unsharded_state(facts)
    prepare(model)
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for part in model.blocks_to_shard:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")
    model.to_empty(device=mesh.device_type)
    for name, parameter in model.named_parameters():
        placed = cast(DTensor, parameter)
        full = torch.empty(placed.shape, dtype=placed.dtype, device=placed.device)
        if name in whole:
            full.copy_(whole.pop(name))
        fill(placed, distribute_tensor(full, mesh, placed.placements))  # rank 0's is the one that is scattered
    for name, buffer in model.named_buffers():
        if name in whole:
            buffer.copy_(whole[name])
        dist.broadcast(buffer, src=0)
    return model


@torch.no_grad()
def fill(parameter: DTensor, values: Tensor) -> None:
    """Copy values into a sharded parameter."""
    parameter.copy_(values)
