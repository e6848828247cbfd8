"""Next-token loss of a hidden state, without keeping the logits of the whole batch.

Shapes: t tokens, d features, v vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100
# Tokens whose logits exist at one time: 2048 rows of a 50,304-entry vocabulary are 412 MB in float32.
TOKENS_AT_ONCE = 2048


def token_losses(hidden: Tensor, output: Tensor, targets: Tensor) -> Tensor:
    """Give the loss of each token in nats, 0 where its target is IGNORED.

    Args:
        hidden: float [t, d], the decoder's normalised last states.
        output: float [v, d], the output matrix.
        targets: int64 [t], values in [0, v) or IGNORED.

    Returns:
        float32 [t] (float64 for a float64 model). Batches above TOKENS_AT_ONCE recompute their logits in the
        backward pass, a part at a time.
    """
    if hidden.shape[0] <= TOKENS_AT_ONCE:
        return _losses(hidden, output, targets)
    parts = [
        checkpoint(_losses, part, output, target, use_reentrant=False)
        for part, target in zip(hidden.split(TOKENS_AT_ONCE), targets.split(TOKENS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts)


def _losses(hidden: Tensor, output: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, output)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
