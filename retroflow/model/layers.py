"""Norm, feed-forward and smear: the small parts of decoder and encoder.

Shapes: b batch, t tokens, d features, h heads, w features of one head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.model.lean_linear import differentiate, is_traced_or_transformed, lean_linear, needs_plain_backward

# torch's default is the machine epsilon of x's dtype: 0.008 in bfloat16, twenty times the mean square of a fresh
# embedding (0.02 squared), which would all but switch the norm off.
RMS_EPSILON = 1e-6
_LEAN_DTYPES = (torch.float32, torch.float64)


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019, arXiv:1910.07467); the paper's norm in place of LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of float [..., d]."""
        return rms_norm(x, self.weight)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Compute x / rms(x) * weight over the last axis of float [..., d]; weight is float [d]."""
    # One dtype for both, as kernels want: under autocast x can be bfloat16 while the weight is float32.
    weight = weight.to(x.dtype)
    if x.device.type == "cpu" and x.dtype in _LEAN_DTYPES and not is_traced_or_transformed():
        out: Tensor = _LeanRMSNorm.apply(x, weight)
        return out
    return _plain_rms_norm(x, weight)


def _plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, RMS_EPSILON)


class _LeanRMSNorm(torch.autograd.Function):
    """F.rms_norm in half its time, keeping x once and not twice: on CPUs torch has no kernel for it but a chain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return (x * _inverse_rms(x)).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if needs_plain_backward(gradient):
            return tuple(differentiate(_plain_rms_norm, ctx.saved_tensors, gradient))
        x, weight = ctx.saved_tensors
        inverse = _inverse_rms(x)
        normalised = x * inverse
        of_weight = gradient * normalised
        projection = (of_weight @ weight)[..., None] / x.shape[-1]
        to_x = (gradient * weight - normalised * projection) * inverse
        return to_x, of_weight.reshape(-1, weight.shape[0]).sum(0)


def _inverse_rms(x: Tensor) -> Tensor:
    return torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / x.shape[-1] + RMS_EPSILON)


class FeedForward(nn.Module):
    """Two linear layers with GELU between (the paper names no activation; GPT-2's is taken, decision 0010)."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden_width, bias=False)
        self.contract = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """Map float [..., d], through its norm, to float [..., d]."""
        return lean_linear(self.contract, _gelu, lean_linear(self.expand, rms_norm, x, norm.weight))


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class Smear(nn.Module):
    """Adds a learned map of the previous token's embedding to each embedding; the first token has none before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.previous = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        """Map float [b, t, d] to float [b, t, d]; position t sees t and t - 1 only.

        Args:
            x: the embeddings.
            previous: float [b, 1, d], the embedding before x's first; None at the beginning of a text.
        """
        before = F.pad(x[:, :-1], (0, 0, 1, 0)) if previous is None else torch.cat((previous, x[:, :-1]), dim=1)
        return x + self.previous(before)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Turn float [b, t, h * w] into float [b, h, t, w]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """Turn float [b, h, t, w] into float [b, t, h * w]."""
    return x.transpose(-3, -2).flatten(-2)
