"""Next-token loss of a hidden state, without a copy of its logits.

Shapes: t tokens, d features, v vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retroflow.model.acceleration import differentiate, is_traced_or_transformed, needs_plain_backward, product_dtype

IGNORED = -100
# Logits that are kept for the backward pass, 256 MiB in float32 and half as much in bfloat16: 8,192 tokens of a
# vocabulary of 8,192. Of a larger batch a part as large as this exists at one time.
LOGITS_AT_ONCE = 1 << 26
# Logits that a softmax is taken of at one time. On a CPU what it needs beside them then stays in the cache; a GPU would
# rather be asked less often.
SOFTMAX_AT_ONCE = 1 << 24
_SOFTMAX_IN_CACHE = 1 << 21


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
    dtype = product_dtype(output)
    hidden, output = hidden.to(dtype), output.to(dtype)
    if torch.compiler.is_compiling() or not is_traced_or_transformed():
        return _compute(hidden, output, targets)
    return _plain(hidden, output, targets)


class _TokenLosses(torch.autograd.Function):
    """-log softmax(hidden output^T)[target]; the backward pass turns the logits into their gradient in place."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, output: Tensor, targets: Tensor) -> Tensor:
        ctx.tokens_at_once = max(1, LOGITS_AT_ONCE // output.shape[0])
        losses, normalisers = [], []
        logits = torch.empty(0)
        for part, wanted in zip(hidden.split(ctx.tokens_at_once), targets.split(ctx.tokens_at_once), strict=True):
            logits = F.linear(part, output)
            for rows, target in _some_rows(logits, wanted):
                rows = _precise(rows)
                normalisers.append(rows.logsumexp(-1))
                of_target = rows.gather(-1, _existing(target)[:, None])[:, 0]
                losses.append((normalisers[-1] - of_target).masked_fill(target == IGNORED, 0.0))
        ctx.save_for_backward(hidden, output, targets, torch.cat(normalisers))
        ctx.logits = logits if hidden.shape[0] <= ctx.tokens_at_once else None
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        device = gradient.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):  # the dtype was chosen going forward
                return _TokenLosses.backward(ctx, gradient)
        hidden, output, targets, normalisers = ctx.saved_tensors
        if needs_plain_backward(gradient):
            ctx.logits = None
            return *differentiate(partial(_plain, targets=targets), (hidden, output), gradient), None
        gradient = gradient.masked_fill(targets == IGNORED, 0.0)
        to_hidden: list[Tensor] = []
        to_output: Tensor | None = None
        split = (each.split(ctx.tokens_at_once) for each in (hidden, targets, normalisers, gradient))
        for part, *of_part in zip(*split, strict=True):
            # Stored logits are used once; a second backward pass (retain_graph) recomputes them.
            logits, ctx.logits = ctx.logits, None
            logits = F.linear(part, output) if logits is None else logits
            for rows, target, normaliser, of_loss in _some_rows(logits, *of_part):
                change = _precise(rows).sub_(normaliser[:, None]).exp_().mul_(of_loss[:, None])
                change.scatter_add_(-1, _existing(target)[:, None], -of_loss[:, None])
                if change is not rows:
                    rows.copy_(change)
            to_hidden.append(logits @ output)
            if to_output is not None:
                torch.addmm(to_output, logits.mT, part, out=to_output)
            elif ctx.needs_input_grad[1]:
                to_output = logits.mT @ part
        return torch.cat(to_hidden), to_output, None


# A compiler has nothing to gain: these are three matrix products, and a softmax in place.
_compute: Callable[..., Tensor] = torch.compiler.disable(_TokenLosses.apply)


def _plain(hidden: Tensor, output: Tensor, targets: Tensor) -> Tensor:
    logits = _precise(F.linear(hidden, output))
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


def _some_rows(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Go through logits [t, v], and with them others [t], by a few tokens at a time."""
    at_once = _SOFTMAX_IN_CACHE if logits.device.type == "cpu" else SOFTMAX_AT_ONCE
    rows_at_once = max(1, at_once // logits.shape[1])
    return zip(*(each.split(rows_at_once) for each in (logits, *others)), strict=True)


def _existing(targets: Tensor) -> Tensor:
    """Any token for those that are ignored; others that do not exist are left for torch to refuse."""
    return targets.masked_fill(targets == IGNORED, 0)


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
