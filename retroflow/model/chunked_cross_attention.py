"""Chunked cross-attention (CCA): the decoder reads the neighbours of the chunk before (section 2.4, Listing 1).

Which position sees which neighbours, with m = 4 tokens in a chunk and positions counted from 0:

    position        0 1 2 | 3 4 5 6 | 7 8 9 10 | 11 ...
    neighbours of     -   | chunk 0 | chunk 1  | chunk 2

The last token of chunk u already predicts the first token of chunk u + 1, so it reads the neighbours of chunk u,
which are known by then; the first m - 1 positions read nothing.

Shapes: b batch, n tokens of a sequence, m tokens of a chunk, l = n // m whole chunks, k neighbours, r = 2m tokens of
a neighbour with its continuation, d decoder features, e encoder features, h heads, w features of one head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.model.config import RetroConfig
from retroflow.model.layers import Rotary, merge_heads, split_heads


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
        self.rotary = Rotary(head_width, config.rotary_theta) if config.cca_positions else None
        self.next_token_values = config.next_token_values
        self.scale = nn.Parameter(torch.full((self.num_heads, 1, 1), config.cca_scale)) if config.cca_scale else None

    def forward(self, x: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        """Compute the residual update.

        Args:
            x: float [b, n, d], normalised activations; n may end inside a chunk.
            encoded: float [b, l, k, r, e], the encoded neighbours of every whole chunk of x.
            mask: bool [b, l, k, r], True where a retrieved token exists.

        Returns:
            float [b, n, d]; zero for the first m - 1 positions and wherever a chunk has no neighbour at all.
        """
        (num_rows, length, _), num_chunks, m = x.shape, encoded.shape[1], self.chunk_length
        attending = x[:, m - 1 :]
        attending = F.pad(attending, (0, 0, 0, num_chunks * m - attending.shape[1]))
        query = split_heads(self.query(attending).unflatten(1, (num_chunks, m)), self.num_heads)  # [b, l, h, m, w]
        key, value, mask = self._keys_and_values(encoded, mask)
        if self.rotary is not None:
            query = self.rotary(query, first_position=m - 1)
            key = self.rotary(key)
        key = key.transpose(2, 3).flatten(3, 4)  # [b, l, h, k * r, w]
        value = value.transpose(2, 3).flatten(3, 4)
        query, key, scale = self._scaled(query, key)
        mask = mask.flatten(2)  # [b, l, k * r]
        found = mask.any(-1)
        # A chunk without neighbours would be a softmax over nothing; it attends to all and is zeroed afterwards.
        mixed = F.scaled_dot_product_attention(
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            attn_mask=(mask | ~found[..., None]).flatten(0, 1)[:, None, None, :],
            scale=scale,
        )
        mixed = merge_heads(mixed).unflatten(0, (num_rows, num_chunks)) * found[..., None, None]
        update = self.output(mixed).flatten(1, 2)[:, : length - m + 1]
        return F.pad(update, (0, 0, m - 1, 0))

    def _keys_and_values(self, encoded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project to keys and values [b, l, k, h, r, w]; with next-token values the last token has none."""
        if not self.next_token_values:
            key, value = self.key(encoded), self.value(encoded)
        else:
            key, value = self.key(encoded[..., :-1, :]), self.value(encoded[..., 1:, :])
            mask = mask[..., :-1] & mask[..., 1:]
        return split_heads(key, self.num_heads), split_heads(value, self.num_heads), mask

    def _scaled(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, float | None]:
        if self.scale is None:
            return query, key, None
        return F.normalize(query, dim=-1) * self.scale, F.normalize(key, dim=-1), 1.0
