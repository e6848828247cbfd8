"""Lightning's strategy for a placement."""

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import Placement
from retroflow.training.sharded_strategy import ShardedStrategy


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
