"""Next-token loss of a hidden state, without keeping the logits of the whole batch.

Shapes: t tokens, d features, v vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100
# Logits that exist at one time, 128 MiB in float32: 4,096 tokens of a vocabulary of 8,192, 1,048 of one of 32,000.
LOGITS_AT_ONCE = 1 << 25


def token_losses(hidden: Tensor, output: Tensor, targets: Tensor) -> Tensor:
    """Give the loss of each token in nats, 0 where its target is IGNORED.

    Args:
        hidden: float [t, d], the decoder's normalised last states.
        output: float [v, d], the output matrix.
        targets: int64 [t], values in [0, v) or IGNORED.

    Returns:
        float32 [t] (float64 for a float64 model). Above LOGITS_AT_ONCE logits they are computed again in the backward
        pass, a part at a time: a third more work in this one product for memory that no longer grows with the batch.
    """
    tokens_at_once = max(1, LOGITS_AT_ONCE // output.shape[0])
    if hidden.shape[0] <= tokens_at_once:
        return _losses(hidden, output, targets)
    parts = [
        checkpoint(_losses, part, output, target, use_reentrant=False)
        for part, target in zip(hidden.split(tokens_at_once), targets.split(tokens_at_once), strict=True)
    ]
    return torch.cat(parts)


def _losses(hidden: Tensor, output: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, output)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
