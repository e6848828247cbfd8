"""How attention knows distances: rotary positions, and the paper's relative logits.

Both answer the same three calls, so that an attention layer need not know which it has: `place_queries` and
`place_keys` prepare the two sides, `bias` is what is added to their product.

Shapes: ... any leading axes, h heads, t query tokens, s key tokens, w features of one head, d features.
"""

from typing import Literal

import torch
from torch import Tensor, nn

PositionKind = Literal["rotary", "relative"]
_FIRST_TABLE = 2048  # positions of a first table: longer than most training sequences, so that it rarely grows


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): the product of two turned vectors knows their distance.

    The angles' tables are no buffers: `model.bfloat16()` would round them, a checkpoint would carry them. They are
    computed in float64 and rounded once to the dtype of use, so that a float64 model can be held against the literal
    reference.
    """

    def __init__(self, head_width: int, theta: float) -> None:
        super().__init__()
        self.head_width, self.theta = head_width, theta
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def place_queries(self, query: Tensor, first: int = 0, padding: Tensor | None = None) -> Tensor:
        """Turn query float [..., h, t, w] by the positions first .. first + t - 1, less padding int64 [b]."""
        return self._turned(query, first, padding)

    def place_keys(self, key: Tensor, first: int = 0, padding: Tensor | None = None) -> Tensor:
        """Turn key float [..., h, s, w] by the positions first .. first + s - 1, less padding int64 [b]."""
        return self._turned(key, first, padding)

    def bias(self, query: Tensor, first_query: int, num_keys: int) -> Tensor | None:
        """Add nothing to the logits [..., t, s]: the placed vectors' product is all."""
        return None

    def _turned(self, x: Tensor, first: int, padding: Tensor | None) -> Tensor:
        end = first + x.shape[-2]
        cosine, sine = self._table(end, x)
        cosine, sine = cosine[:end], sine[:end]
        if padding is None:
            cosine, sine = cosine[first:], sine[first:]
        else:  # a key that is kept has the same angle however many padding tokens are added before it
            places = (torch.arange(first, end, device=x.device) - padding[:, None]).clamp(min=0)  # [b, t]
            cosine, sine = cosine[places], sine[places]
        # Turned as [..., t, h, w], which is how the projections lie in memory: no head is copied together, before or
        # after attention.
        return self.turn(x.transpose(-3, -2), cosine[..., None, :], sine[..., None, :]).transpose(-3, -2)

    def turn(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Turn x float [..., t, h, w] by angles whose cosine and sine are float [(b,) t, 1, w / 2]."""
        return plain_turn(x, cosine, sine)

    def _table(self, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        table = self._tables.get((like.device, like.dtype))
        if table is None or table[0].shape[0] < end:
            # A table made while generating serves training too, where inference tensors are refused.
            with torch.inference_mode(False):
                table = self._new_table(max(_FIRST_TABLE, 1 << (end - 1).bit_length()), like.device, like.dtype)
            self._tables[like.device, like.dtype] = table
        return table

    def _new_table(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.head_width, 2, dtype=torch.float64, device=device) / self.head_width
        angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), self.theta**-exponents)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def plain_turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn x float [..., t, h, w] by angles whose cosine and sine are float [(b,) t, 1, w / 2]."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)


class Relative(nn.Module):
    """The paper's positions (appendix B, after Dai et al. 2019, arXiv:1901.02860): a logit of its own per distance.

    logit(i, j) = query_i . (key_j + R s(i - j)), with s the sinusoids of the distance and R learned. The bias is
    materialised, [..., h, t, s], and keeps torch from its fastest kernels: rotary positions are the default.
    """

    def __init__(self, width: int, num_heads: int, head_width: int, theta: float) -> None:
        super().__init__()
        self.num_heads, self.theta = num_heads, theta
        self.distance = nn.Linear(width, num_heads * head_width, bias=False)

    def place_queries(self, query: Tensor, first: int = 0, padding: Tensor | None = None) -> Tensor:
        """Leave queries float [..., h, t, w] as they are."""
        return query

    def place_keys(self, key: Tensor, first: int = 0, padding: Tensor | None = None) -> Tensor:
        """Leave keys float [..., h, s, w] as they are."""
        return key

    def bias(self, query: Tensor, first_query: int, num_keys: int) -> Tensor | None:
        """Compute the position logits of query float [..., h, t, w], keys counted from 0; returns [..., h, t, s]."""
        num_queries, device = query.shape[-2], query.device
        # Distance of query i and key j is first_query + i - j; row 0 of the table is the smallest, i = 0, j = s - 1.
        distances = torch.arange(num_queries + num_keys - 1, device=device) + (first_query - num_keys + 1)
        of_distance = self.distance(self._sinusoids(distances).to(query.dtype))  # [t + s - 1, h * w]
        of_distance = of_distance.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # [h, t + s - 1, w]
        logits = query @ of_distance.to(query.dtype).mT  # [..., h, t, t + s - 1]
        row = torch.arange(num_queries, device=device)[:, None] + (num_keys - 1)
        index = row - torch.arange(num_keys, device=device)
        return logits.gather(-1, index.expand(*logits.shape[:-1], num_keys))

    def _sinusoids(self, distances: Tensor) -> Tensor:
        """Sines and cosines of int64 [D] at wavelengths from 2 pi to 2 pi theta; returns float64 [D, d]."""
        width = self.distance.in_features
        half = (width + 1) // 2
        exponents = torch.arange(half, dtype=torch.float64, device=distances.device) / half
        angles = torch.outer(distances.double(), self.theta**-exponents)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]


Positions = Rotary | Relative


def make_positions(kind: PositionKind, *, width: int, num_heads: int, head_width: int, theta: float) -> Positions:
    """Make the positions of one attention layer.

    Args:
        kind: which.
        width: features of the layer's queries before projection, the length of the relative sinusoids.
        num_heads: h.
        head_width: w.
        theta: base of the wavelengths.
    """
    if kind == "rotary":
        return Rotary(head_width, theta)
    return Relative(width, num_heads, head_width, theta)
