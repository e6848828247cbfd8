"""Norm, feed-forward and smear: the small parts of decoder and encoder.

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
        # One dtype for both, as kernels want: under autocast x can be bfloat16 while the weight is float32.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), RMS_EPSILON)


class FeedForward(nn.Module):
    """Two linear layers with GELU between (the paper names no activation; GPT-2's is taken, decision 0010)."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden_width, bias=False)
        self.activation = nn.GELU(approximate="tanh")
        self.contract = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., d] to float [..., d]."""
        hidden: Tensor = self.contract(self.activation(self.expand(x)))
        return hidden


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
