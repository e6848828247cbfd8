"""Norm, feed-forward, smear and rotary positions: the small parts that decoder and encoder share.

Shapes: b batch, t tokens, d features, h heads, w features of one head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# torch's default is the machine epsilon of x's dtype: 0.008 in bfloat16, twenty times the mean square of a fresh
# embedding (0.02 squared), which would all but switch the norm off.
RMS_EPSILON = 1e-6


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019, arXiv:1910.07467); the paper's norm in place of LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of float [..., d]."""
        # The fused kernel wants one dtype for both; under autocast x can be bfloat16 while the weight is float32.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), RMS_EPSILON)


class FeedForward(nn.Module):
    """Two linear layers with GELU between (the paper names no activation; GPT-2's is taken, decision 0010)."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden_width, bias=False)
        self.contract = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., d] to float [..., d]."""
        out: Tensor = self.contract(F.gelu(self.expand(x), approximate="tanh"))
        return out


class Smear(nn.Module):
    """Adds a learned map of the previous token's embedding to each embedding; the first token has none before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.previous = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [b, t, d] to float [b, t, d]; position t sees t and t - 1 only."""
        return x + F.pad(self.previous(x[:, :-1]), (0, 0, 1, 0))


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): the product of two turned vectors knows their distance.

    The tables are float64, grow on demand and are rounded to the dtype of x at use, so that a float64 model can be
    held against the literal reference.
    """

    def __init__(self, head_width: int, theta: float) -> None:
        super().__init__()
        self.head_width, self.theta = head_width, theta
        # Plain attributes, not buffers: model.bfloat16() would round the angles' tables, a checkpoint would carry them.
        self.cosine = self.sine = torch.empty(0, head_width // 2, dtype=torch.float64)

    def forward(self, x: Tensor, first_position: int = 0) -> Tensor:
        """Turn x float [..., t, w] by the positions first_position .. first_position + t - 1."""
        end = first_position + x.shape[-2]
        if end > self.cosine.shape[0] or self.cosine.device != x.device:
            self._grow(end, x)
        cosine = self.cosine[first_position:end].to(x.dtype)
        sine = self.sine[first_position:end].to(x.dtype)
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)

    def _grow(self, end: int, like: Tensor) -> None:
        length = max(64, 1 << (end - 1).bit_length())
        exponents = torch.arange(0, self.head_width, 2, dtype=torch.float64) / self.head_width
        angles = torch.outer(torch.arange(length, dtype=torch.float64), self.theta**-exponents)
        self.cosine = angles.cos().to(like.device)
        self.sine = angles.sin().to(like.device)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Turn float [b, t, h * w] into float [b, h, t, w]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """Turn float [b, h, t, w] into float [b, t, h * w]."""
    return x.transpose(-3, -2).flatten(-2)
