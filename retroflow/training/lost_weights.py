"""Refuse to write a checkpoint of a model whose weights or loss are not finite."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from retroflow.data import Batch
from retroflow.errors import RetroflowError
from retroflow.evaluation.measuring import evaluating


def refuse_lost_weights(trainer: pl.Trainer, module: Any, batch: Batch) -> None:
    """Check the new weights of the step that just ended; their loss is not known yet.

    Called on all ranks at the same step; all of them raise.

    Args:
        trainer: computes as in training, and sums over the ranks.
        module: a `RetroModule`.
        batch: of the step; its loss with the new weights is computed once, for the cost of a forward pass.

    Raises:
        RetroflowError: a weight, or the loss, is not finite.
    """
    lost = [name for name, weight in module.model.named_parameters() if not _is_finite(weight)]
    nats = _nats(trainer, module, batch)
    found = torch.tensor([len(lost), float(not math.isfinite(nats))], device=module.device)
    lost_weights, lost_losses = trainer.strategy.reduce(found, reduce_op="sum").tolist()
    if not lost_weights and not lost_losses:
        return
    what = f"the loss is {nats}" if not lost_weights else "weights are not finite"
    where = f" (such as {lost[0]})" if lost else ""
    raise RetroflowError(
        f"After step {trainer.global_step} {what}{where}, so no checkpoint of it is written. Start a new run with "
        "a lower optimizer.learning_rate, more optimizer.warmup_steps, or an optimizer.epsilon that is not 0."
    )


def _is_finite(weight: Tensor) -> bool:
    own = weight.to_local() if isinstance(weight, DTensor) else weight
    return bool(torch.isfinite(own).all())


@torch.no_grad()
def _nats(trainer: pl.Trainer, module: Any, batch: Batch) -> float:
    """Return the summed loss of a batch from the model itself, not from the function compiled for training."""
    batch = batch if module.retrieves else batch.without_retrieval()
    with evaluating(module.model), trainer.precision_plugin.forward_context():
        losses = module.model.loss(batch.tokens, batch.targets, batch.retrieved, batch.retrieved_mask, batch.padding)
    return float(losses.sum())
