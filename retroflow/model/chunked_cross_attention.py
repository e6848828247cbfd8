"""Chunked cross-attention (CCA): the decoder reads the neighbours of the chunk before (section 2.4, Listing 1).

Which position sees which neighbours, with m = 4 tokens in a chunk and positions counted from 0:

    position        0 1 2 | 3 4 5 6 | 7 8 9 10 | 11 ...
    neighbours of     -   | chunk 0 | chunk 1  | chunk 2

The last token of chunk u already predicts the first token of chunk u + 1, so it reads the neighbours of chunk u,
which are known by then; the first m - 1 positions read nothing.

Shapes: b batch, t tokens of a call, m tokens of a chunk, s tokens between two lookups (m in training),
W windows (whole chunks), k neighbours, r tokens of a neighbour, d decoder features, e encoder features, h heads,
w features of one head, g groups of positions that read the same neighbours (b * W of them in a whole sequence).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.model.attention import Attend
from retroflow.model.config import RetroConfig
from retroflow.model.layers import merge_heads, split_heads
from retroflow.model.neighbours import Encoded, ReadyNeighbours
from retroflow.model.positions import make_positions


class ChunkedCrossAttention(nn.Module):
    """One softmax over all tokens of all neighbours of a chunk, positions counted inside each neighbour (eq. 6)."""

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.chunk_length = config.chunk_length
        self.num_heads = config.cca_heads or config.num_heads
        head_width = config.resolved_head_width if not config.cca_heads else config.width // config.cca_heads
        inner_width = self.num_heads * head_width
        self.query = nn.Linear(config.width, inner_width, bias=False)
        self.key = nn.Linear(config.encoder_width, inner_width, bias=False)
        self.value = nn.Linear(config.encoder_width, inner_width, bias=False)
        self.output = nn.Linear(inner_width, config.width, bias=False)
        self.positions = None
        if config.cca_positions:
            self.positions = make_positions(
                config.positions,
                width=config.width,
                num_heads=self.num_heads,
                head_width=head_width,
                theta=config.rotary_theta,
            )
        self.attend = Attend()
        self.next_token_values = config.next_token_values
        self.scale = nn.Parameter(torch.full((self.num_heads, 1, 1), config.cca_scale)) if config.cca_scale else None

    def forward(self, x: Tensor, encoded: Encoded) -> Tensor:
        """Compute the residual update.

        Args:
            x: float [b, t, d], normalised activations of a call's tokens.
            encoded: the neighbours of every window that they read.

        Returns:
            float [b, t, d]; zero before the first window and wherever a window has no neighbour at all.
        """
        (num_rows, length, _), num_windows = x.shape, encoded.states.shape[1]
        if not num_windows:
            return torch.zeros_like(x)
        ready = self._ready(encoded)
        if num_windows == 1 and encoded.first <= 0:
            return self.read(x, ready, -encoded.first)
        first, step = encoded.first, encoded.step
        attending = F.pad(x[:, first:], (0, 0, 0, num_windows * step - (length - first)))
        groups = attending.unflatten(1, (num_windows, step)).flatten(0, 1)
        update = self.read(groups, ready).unflatten(0, (num_rows, num_windows)).flatten(1, 2)
        return F.pad(update[:, : length - first], (0, 0, first, 0))

    def _ready(self, encoded: Encoded) -> ReadyNeighbours:
        if encoded.ready is not None and self in encoded.ready:
            return encoded.ready[self]
        ready = self.prepare(encoded.states.flatten(0, 1), None if encoded.mask is None else encoded.mask.flatten(0, 1))
        if encoded.ready is not None:
            encoded.ready[self] = ready
        return ready

    def prepare(self, encoded: Tensor, mask: Tensor | None) -> ReadyNeighbours:
        """Project encoded float [g, k, r, e] under mask bool [g, k, r] to keys and values, to be read many times."""
        if not self.next_token_values:
            key, value = self.key(encoded), self.value(encoded)
        else:  # the last token has no next one
            key, value = self.key(encoded[..., :-1, :]), self.value(encoded[..., 1:, :])
            mask = None if mask is None else mask[..., :-1] & mask[..., 1:]
        key, value = split_heads(key, self.num_heads), split_heads(value, self.num_heads)  # [g, k, h, r, w]
        if self.positions is not None:
            key = self.positions.place_keys(key)
        key = key.transpose(1, 2).flatten(2, 3)  # [g, h, k * r, w]
        if self.scale is not None:
            key = F.normalize(key, dim=-1)
        value = value.transpose(1, 2).flatten(2, 3)
        return ReadyNeighbours(key, value, None if mask is None else mask.flatten(1), encoded.shape[1])

    def read(self, x: Tensor, ready: ReadyNeighbours, offset: int = 0) -> Tensor:
        """Compute the residual update of positions that all read the same neighbours.

        Args:
            x: float [g, t, d], normalised activations of consecutive positions.
            ready: the neighbours of each group.
            offset: how many positions before x's first one the neighbours came in.

        Returns:
            float [g, t, d].
        """
        query = split_heads(self.query(x), self.num_heads)  # [g, h, t, w]
        first, bias, scale = self.chunk_length - 1 + offset, None, None
        if self.positions is not None:
            query = self.positions.place_queries(query, first)
        if self.scale is not None:
            query, scale = F.normalize(query, dim=-1) * self.scale, 1.0
        if self.positions is not None:
            bias = self.positions.bias(query, first, ready.key.shape[2] // ready.num_neighbours)
            bias = None if bias is None else bias.repeat(1, 1, 1, ready.num_neighbours)
        if ready.mask is None:
            mixed = self.attend(query, ready.key, ready.value, bias=bias, scale=scale)
            return self.output(merge_heads(mixed))
        found = ready.mask.any(-1)[:, None]
        # A chunk without neighbours would be a softmax over nothing; it attends to all and is zeroed afterwards.
        mask = (ready.mask | ~found)[:, None, None]
        mixed = self.attend(query, ready.key, ready.value, mask=mask, bias=bias, scale=scale)
        return self.output(merge_heads(mixed) * found[..., None])
