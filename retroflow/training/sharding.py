"""FSDP2: a share of every parameter, gradient and optimizer state on each rank, whole ones in checkpoints.

Lightning's ModelParallelStrategy leaves sharding to the model. It would write a folder of shards around
`AtomicIO`, or number optimizer states by another order than an unsharded optimizer does; so saving and loading are
ours, one parameter at a time (docs/decisions/0022-strategies.md).
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from retroflow.errors import DamagedDataError
from retroflow.training.checkpoints import read_checkpoint
from retroflow.training.tying import share_as, shared_names


def build_sharded(build: Callable[[], nn.Module], mesh: DeviceMesh, *, prepare: Callable[[nn.Module], None]) -> Any:
    """Build a model of which every rank has a share; no rank but the first ever holds the whole of it.

    A model that keeps what only whole weights tell, such as their fingerprint, gives it by `facts_of_whole()` and takes
    it by `learn(facts)`: those of rank 0's are given to all.

    Args:
        build: makes the model with its first weights, on the CPU; on the meta device with none.
        mesh: one axis, all ranks.
        prepare: changes the blocks before they are sharded.

    Returns:
        The model on the mesh's devices; its parameters equal those that `build` gives to rank 0.
    """
    whole: dict[str, Tensor] = {}
    told: list[Any] = [None]
    if mesh.get_rank() == 0:
        with torch.device("cpu"):
            built = build()
        whole = {name: value.detach() for name, value in (*built.named_parameters(), *built.named_buffers())}
        told = [(shared_names(built), _facts_of(built))]
        del built
    dist.broadcast_object_list(told, src=0)
    shared, facts = told[0]
    with torch.device("meta"):
        model = build()
    share_as(model, shared)
    if facts:
        cast(Any, model).learn(facts)
    prepare(model)
    for part in units(model):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")
    model.to_empty(device=mesh.device_type)
    for name, parameter in model.named_parameters():
        placed = cast(DTensor, parameter)
        full = torch.empty(placed.shape, dtype=placed.dtype, device=placed.device)
        if name in whole:
            full.copy_(whole.pop(name))
        _fill(placed, distribute_tensor(full, mesh, placed.placements))  # rank 0's is the one that is scattered
    for name, buffer in model.named_buffers():
        if name in whole:
            buffer.copy_(whole[name])
        dist.broadcast(buffer, src=0)
    return model


def units(model: Any) -> Iterator[nn.Module]:
    """The parts that are gathered, computed and given back as one: each decoder block, reader of a base, the encoder.

    What is in none of them belongs to the whole model, which is gathered once for a forward and a backward pass.
    Weights that are tied lie there: a parameter can be in one unit only.
    """
    yield from getattr(model, "blocks", ())
    yield from getattr(model, "readers", ())
    if getattr(model, "encoder", None) is not None:
        yield model.encoder


def _facts_of(model: Any) -> dict[str, Any]:
    facts: dict[str, Any] = model.facts_of_whole() if hasattr(model, "facts_of_whole") else {}
    return facts


@torch.no_grad()
def _fill(parameter: DTensor, values: Tensor) -> None:
    parameter.copy_(values)


def gathered(tensor: Tensor, *, keep: bool) -> Tensor | None:
    """Assemble a tensor from its shares, on all ranks together.

    Args:
        tensor: sharded, or whole on every rank.
        keep: whether this rank wants it, on the CPU.
    """
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu() if keep else None


def share_of(whole: Tensor, parameter: DTensor) -> Tensor:
    """This rank's share of a tensor that every rank has, laid out like a parameter of its shape."""
    if whole.shape != parameter.shape:
        return whole.to(parameter.device)
    return distribute_tensor(
        whole.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are those of every other strategy: whole tensors, optimizer states by parameter name."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather the weights; empty on ranks other than 0."""
        assert self.lightning_module is not None
        keep = self.is_global_zero
        states = {name: gathered(value, keep=keep) for name, value in self.lightning_module.state_dict().items()}
        return states if keep else {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Gather an optimizer's states under the names of their parameters; empty on ranks other than 0."""
        assert self.lightning_module is not None
        keep = self.is_global_zero
        names = {parameter: name for name, parameter in self.lightning_module.named_parameters()}
        states: dict[str, dict[str, Any]] = {}
        groups = []
        for group in optimizer.param_groups:
            groups.append({**group, "params": [names[parameter] for parameter in group["params"]]})
            for parameter in group["params"]:
                if own := optimizer.state.get(parameter):
                    states[names[parameter]] = {key: gathered(value, keep=keep) for key, value in own.items()}
        return {"state": states, "param_groups": groups} if keep else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, and put this rank's share of it in place; the rest stays on the disk.

        Raises:
            DamagedDataError: it does not verify, or lacks a parameter.
            RetroflowError: whatever the model refuses, such as weights that were trained on another base.
        """
        checkpoint = read_checkpoint(checkpoint_path, lazily=True)
        assert self.lightning_module is not None
        weights, targets = checkpoint["state_dict"], self.lightning_module.state_dict()
        if missing := sorted(targets.keys() ^ weights.keys()):
            raise DamagedDataError(f"{checkpoint_path}: does not fit the model, which differs in {missing[0]}")
        sharded = {name: target for name, target in targets.items() if isinstance(target, DTensor)}
        # What is whole goes through the model's own loading, where a RETRO-fit compares the fingerprint of its base.
        self.lightning_module.load_state_dict(
            {name: weights[name] for name in targets.keys() - sharded.keys()}, strict=False
        )
        for name, target in sharded.items():
            _fill(target, share_of(weights[name], target))
        parameters = cast(dict[str, DTensor], dict(self.lightning_module.named_parameters()))
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            for group, stored in zip(optimizer.param_groups, state["param_groups"], strict=True):
                group.update({key: value for key, value in stored.items() if key != "params"})
            if unknown := sorted(map(str, state["state"].keys() - parameters.keys())):
                raise DamagedDataError(
                    f"{checkpoint_path}: optimizer states are not named by parameter ({unknown[0]}), which those of an "
                    "older version are not; go on with trainer.strategy=auto or ddp until the next checkpoint"
                )
            for name, values in state["state"].items():
                parameter = parameters[name]
                optimizer.state[parameter] = {key: share_of(value, parameter) for key, value in values.items()}
        return checkpoint
