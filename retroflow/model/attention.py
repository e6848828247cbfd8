"""Self-attention and plain cross-attention on torch's scaled_dot_product_attention.

Shapes: b batch (of sequences, chunks or neighbours), t query tokens, s key tokens, d query features, e key
features, h heads, w features of one head.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.model.layers import Rotary, merge_heads, split_heads


class SelfAttention(nn.Module):
    """Attention of a sequence to itself with rotary positions, causal or in both directions."""

    def __init__(self, width: int, num_heads: int, head_width: int, *, theta: float, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.query_key_value = nn.Linear(width, 3 * num_heads * head_width, bias=False)
        self.output = nn.Linear(num_heads * head_width, width, bias=False)
        self.rotary = Rotary(head_width, theta)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within x.

        Args:
            x: float [b, t, d].
            mask: bool [b, t], True where a token may be attended to; only without `causal`. A row without any
                True is left unmasked, so that it stays finite; its reader masks it out as a whole.

        Returns:
            float [b, t, d].
        """
        query, key, value = (split_heads(part, self.num_heads) for part in self.query_key_value(x).chunk(3, dim=-1))
        query, key = self.rotary(query), self.rotary(key)  # [b, h, t, w]
        key_mask = None if mask is None else (mask | ~mask.any(-1, keepdim=True))[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask, is_causal=self.causal)
        out: Tensor = self.output(merge_heads(mixed))
        return out


class CrossAttention(nn.Module):
    """Attention of retrieved tokens to the chunk they were retrieved for (the encoder's CA, d_enc = i' - i)."""

    def __init__(self, width: int, source_width: int, num_heads: int, head_width: int, *, theta: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, num_heads * head_width, bias=False)
        self.key_value = nn.Linear(source_width, 2 * num_heads * head_width, bias=False)
        self.output = nn.Linear(num_heads * head_width, width, bias=False)
        self.rotary = Rotary(head_width, theta)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Attend from every neighbour of a chunk to that chunk.

        Args:
            x: float [b, k, t, e], the neighbours of each chunk.
            source: float [b, s, d], the chunks.

        Returns:
            float [b, k, t, e].
        """
        key, value = (split_heads(part, self.num_heads) for part in self.key_value(source).chunk(2, dim=-1))
        key = self.rotary(key)  # [b, h, s, w]
        query = self.rotary(split_heads(self.query(x), self.num_heads))  # [b, k, h, t, w]
        num_neighbours, length = query.shape[1], query.shape[3]
        # Every neighbour counts its positions from 0, so all of them fit one attention call side by side.
        query = query.transpose(1, 2).flatten(2, 3)  # [b, h, k * t, w]
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.output(merge_heads(mixed).unflatten(1, (num_neighbours, length)))
        return out
