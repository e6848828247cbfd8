"""Self-attention and plain cross-attention on torch's scaled_dot_product_attention.

Shapes: b batch (of sequences, chunks or neighbours), t query tokens, s key tokens, d query features, e key
features, h heads, w features of one head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.model.layers import merge_heads, split_heads
from retroflow.model.positions import Positions


class KeyValues:
    """The keys and values of the tokens that one self-attention has seen, in a buffer that doubles when it is full.

    Attributes:
        padding: int64 [b], padding at the left of each row; None without any.
        length: tokens seen so far, padding counted.
    """

    def __init__(self, padding: Tensor | None = None) -> None:
        self.padding, self.length = padding, 0
        self._key = self._value = torch.empty(0)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add placed keys and values float [b, h, t, w]; returns all of them, [b, h, length, w] each."""
        end = self.length + key.shape[2]
        if self._key.ndim != 4 or end > self._key.shape[2]:
            self._grow(max(end, 2 * self.length), key)
        self._key[:, :, self.length : end] = key
        self._value[:, :, self.length : end] = value
        self.length = end
        return self._key[:, :, :end], self._value[:, :, :end]

    @property
    def device(self) -> torch.device:
        """Where the keys are."""
        return self._key.device

    def select(self, rows: Tensor) -> None:
        """Keep the rows int64 [c] of the batch."""
        if not self.length:
            return
        self._key, self._value = self._key[rows], self._value[rows]

    def join(self, other: "KeyValues", length: int) -> None:
        """Append the rows of another layer; both get `length` tokens, by padding or by dropping it at the left."""
        self._key, self._value = (
            torch.cat(
                [at_the_right(mine[:, :, : self.length], length), at_the_right(theirs[:, :, : other.length], length)]
            )
            for mine, theirs in ((self._key, other._key), (self._value, other._value))
        )
        self.length = length

    def _grow(self, capacity: int, like: Tensor) -> None:
        old_key, old_value = self._key, self._value
        shape = (*like.shape[:2], capacity, like.shape[3])
        self._key, self._value = like.new_empty(shape), like.new_empty(shape)
        if self.length:
            self._key[:, :, : self.length] = old_key[:, :, : self.length]
            self._value[:, :, : self.length] = old_value[:, :, : self.length]


def at_the_right(x: Tensor, length: int) -> Tensor:
    """Cut or fill float [b, h, t, w] at the left of its tokens, so that there are `length` of them."""
    added = length - x.shape[2]
    return F.pad(x, (0, 0, added, 0)) if added > 0 else x[:, :, -added:]


class Attend(nn.Module):
    """softmax(scale * (query key^T + bias)) value."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        """Mix values.

        Args:
            query: float [b, h, t, w].
            key: float [b, h, s, w].
            value: float [b, h, s, w].
            mask: bool, broadcastable to [b, h, t, s], True where a query may look; each query has at least one True.
            bias: float [b, h, t, s], added to the products before they are scaled.
            causal: query i sees keys 0 .. i; only without `mask`.
            scale: 1 / sqrt(w) if None.

        Returns:
            float [b, h, t, w].
        """
        if bias is None:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)
        bias = bias * (query.shape[-1] ** -0.5 if scale is None else scale)
        if causal:
            mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype), scale=scale)

    def weights(
        self,
        query: Tensor,
        key: Tensor,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """Return the weights float32 [b, h, t, s] with which `forward` mixes values; arguments as there."""
        with torch.autocast(query.device.type, enabled=False):
            logits = query.float() @ key.float().mT
        logits = (logits if bias is None else logits + bias) * (query.shape[-1] ** -0.5 if scale is None else scale)
        return (logits if mask is None else logits.masked_fill(~mask, float("-inf"))).softmax(-1)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, causal or in both directions."""

    def __init__(self, width: int, num_heads: int, head_width: int, *, positions: Positions, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.query_key_value = nn.Linear(width, 3 * num_heads * head_width, bias=False)
        self.output = nn.Linear(num_heads * head_width, width, bias=False)
        self.positions = positions
        self.attend = Attend()

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KeyValues | None = None) -> Tensor:
        """Attend within x, and to what the cache has seen before it.

        Args:
            x: float [b, t, d].
            mask: bool, broadcastable to [b, h, t, s] with s the cached and the new tokens; where it is given, it
                alone says who sees whom.
            cache: keys and values of the tokens before x; those of x are added.

        Returns:
            float [b, t, d].
        """
        query, key, value = self.query_key_value(x).chunk(3, dim=-1)
        if cache is None:
            value = value.contiguous()  # attention keeps it; as a view it would keep the queries and keys beside it
        query, key, value = (split_heads(part, self.num_heads) for part in (query, key, value))
        first = 0 if cache is None else cache.length
        padding = None if cache is None else cache.padding
        query = self.positions.place_queries(query, first, padding)  # [b, h, t, w]
        key = self.positions.place_keys(key, first, padding)
        if cache is not None:
            key, value = cache.append(key, value)
        bias = self.positions.bias(query, first, key.shape[2])
        mixed = self.attend(query, key, value, mask=mask, bias=bias, causal=self.causal and mask is None and first == 0)
        out: Tensor = self.output(merge_heads(mixed))
        return out


class CrossAttention(nn.Module):
    """Attention of retrieved tokens to the chunk they were retrieved for (the encoder's CA, d_enc = i' - i)."""

    def __init__(self, width: int, source_width: int, num_heads: int, head_width: int, *, positions: Positions) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, num_heads * head_width, bias=False)
        self.key_value = nn.Linear(source_width, 2 * num_heads * head_width, bias=False)
        self.output = nn.Linear(num_heads * head_width, width, bias=False)
        self.positions = positions
        self.attend = Attend()

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from every neighbour of a chunk to that chunk.

        Args:
            x: float [b, k, t, e], the neighbours of each chunk.
            source: float [b, s, d], the chunks.
            mask: bool [b, 1, 1, s], True where a chunk's token may be looked at; None for all.

        Returns:
            float [b, k, t, e].
        """
        key, value = self.key_value(source).chunk(2, dim=-1)
        key, value = split_heads(key, self.num_heads), split_heads(value, self.num_heads)
        key = self.positions.place_keys(key)  # [b, h, s, w]
        query = split_heads(self.query(x), self.num_heads)
        query = self.positions.place_queries(query)  # [b, k, h, t, w]
        bias = self.positions.bias(query, 0, key.shape[2])
        num_neighbours, length = query.shape[1], query.shape[3]
        # Every neighbour counts its positions from 0, so all of them fit one attention call side by side.
        query = query.transpose(1, 2).flatten(2, 3)  # [b, h, k * t, w]
        if bias is not None:
            bias = bias.transpose(1, 2).flatten(2, 3)
        mixed = self.attend(query, key, value, mask=mask, bias=bias)
        out: Tensor = self.output(merge_heads(mixed).unflatten(1, (num_neighbours, length)))
        return out
