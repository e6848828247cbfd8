"""Lightning's strategy for a placement. FSDP2: each rank holds a shard of every parameter and optimizer state.

Lightning's ModelParallelStrategy leaves sharding to the model. Its checkpoints are either torch's own folders,
unverified and for the same strategy only, or number optimizer states in another order than an unsharded optimizer does.
So saving and loading are ours (docs/decisions/0022-strategies.md).
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from retroflow.errors import DamagedDataError, RetroflowError
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import Placement
from retroflow.runs.checkpoint_files import shard_path
from retroflow.runs.checkpoint_shards import Place, rows_between, rows_of_rank, split_shard, value_at
from retroflow.runs.checkpoints import open_shards, read_head, verify_checkpoint, write_checkpoint, write_shard


def make_strategy(placement: Placement, options: TrainerOptions) -> Any:
    """Make Lightning's strategy."""
    limit = timedelta(seconds=options.timeout_seconds)
    if placement.strategy == "ddp":
        # All ranks use the same parameters in every step (RetroModule ensures it), so none have to be searched for.
        return DDPStrategy(timeout=limit, broadcast_buffers=False)
    if placement.strategy == "fsdp":
        return ShardedStrategy(
            data_parallel_size=placement.world_size,
            tensor_parallel_size=1,  # Lightning's "auto" would cut matrices over the GPUs of a machine
            save_distributed_checkpoint=False,
            timeout=limit,
        )
    return "auto"


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints every other strategy can continue from."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the sharded weights."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """An optimizer's states, sharded as they are."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write this rank's shard; rank 0 writes the rest when all shards are on the disk.

        Raises:
            RetroflowError: on all ranks, if one of them cannot write.
        """
        path, rank, world_size = Path(filepath), self.global_rank, self.world_size
        head, shard = split_shard(checkpoint)
        own = shard_path(path, rank, world_size)
        shards: list[Any] = [None] * world_size
        dist.all_gather_object(shards, (own.name, *_attempted(lambda: write_shard(shard, own))))
        _refuse_failures([failure for _, _, failure in shards])
        if self.is_global_zero:
            write_checkpoint(head, path, {name: digest for name, digest, _ in shards})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load this rank's rows of a checkpoint; rows of other ranks are not read.

        Raises:
            DamagedDataError: it is damaged, or lacks a parameter.
            RetroflowError: the model refuses it, for example because it was trained on another base.
        """
        path = Path(checkpoint_path)
        failures: list[Any] = [None] * self.world_size
        check = partial(verify_checkpoint, path, rank=self.global_rank, world_size=self.world_size)
        dist.all_gather_object(failures, _attempted(check)[1])
        _refuse_failures(failures)
        stored = _StoredTensors(path)
        assert self.lightning_module is not None
        targets = self.lightning_module.state_dict()
        if missing := sorted(targets.keys() ^ stored.head["state_dict"].keys()):
            raise DamagedDataError(f"{path}: does not fit the model, which differs in {missing[0]}")
        # Through the model's own loading, where a RETRO-fit compares the fingerprint of its base.
        self.lightning_module.load_state_dict(
            {name: stored.laid_out(("state_dict", name), target) for name, target in targets.items()}
        )
        for number, optimizer in enumerate(self.optimizers):
            state, place = stored.head["optimizer_states"][number], ("optimizer_states", number, "state")
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            own = {
                index: {key: stored.laid_out((*place, index, key), parameters[index]) for key in values}
                for index, values in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": own})
        return stored.head


class _StoredTensors:
    """The tensors of a checkpoint on the disk, written by any number of ranks."""

    def __init__(self, path: Path) -> None:
        self.head = read_head(path)
        self._shards = open_shards(path, self.head)

    def laid_out(self, place: Place, parameter: Tensor) -> Tensor:
        """This rank's rows of a tensor that is sharded as a parameter is; a tensor that is stored whole as it is."""
        pieces = [shard[place] for shard in self._shards if place in shard] or [value_at(self.head, place)]
        if not isinstance(parameter, DTensor) or (len(pieces) == 1 and pieces[0].shape != parameter.shape):
            return pieces[0].to(parameter.device)
        mesh = parameter.device_mesh
        start, stop = rows_of_rank(parameter.shape[0], mesh.get_local_rank(), mesh.size())
        return DTensor.from_local(
            rows_between(pieces, start, stop).to(parameter.device),
            mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )


def _attempted(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Return result and None, or None and the error: the other ranks must know it before this one ends."""
    try:
        return action(), None
    except RetroflowError as error:
        return None, error


def _refuse_failures(failures: Sequence[Exception | None]) -> None:
    """Raise the first failure, on all ranks alike."""
    for failure in failures:
        if failure is not None:
            raise failure
