"""The neighbour encoder: reads every neighbour in both directions, conditioned on the chunk it was found for.

Shapes: b batch, l chunks, k neighbours, r tokens of a neighbour with its continuation, m tokens of a chunk,
d decoder features, e encoder features.
"""

from torch import Tensor, nn

from retroflow.model.attention import CrossAttention, SelfAttention
from retroflow.model.config import RetroConfig
from retroflow.model.layers import FeedForward, RMSNorm


class EncoderBlock(nn.Module):
    """FFW(CA(ATTN(x), H)), each a residual update after an RMSNorm; CA only in the layers of P_enc."""

    def __init__(self, config: RetroConfig, *, has_cross_attention: bool) -> None:
        super().__init__()
        width, heads = config.encoder_width, config.encoder_heads
        self.attention_norm = RMSNorm(width)
        self.attention = SelfAttention(width, heads, width // heads, theta=config.rotary_theta, causal=False)
        self.cross_attention: CrossAttention | None = None
        if has_cross_attention:
            self.cross_attention_norm = RMSNorm(width)
            self.source_norm = RMSNorm(config.width)
            self.cross_attention = CrossAttention(width, config.width, heads, width // heads, theta=config.rotary_theta)
        self.feed_forward_norm = RMSNorm(width)
        self.feed_forward = FeedForward(width, config.encoder_feed_forward_width or 4 * width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, chunks: Tensor) -> Tensor:
        """Update x float [b * l, k, r, e]; mask is bool [b * l, k, r], chunks float [b * l, m, d]."""
        num_neighbours = x.shape[1]
        flat = self.attention(self.attention_norm(x).flatten(0, 1), mask.flatten(0, 1))
        x = x + self.dropout(flat.unflatten(0, (-1, num_neighbours)))
        if self.cross_attention is not None:
            update = self.cross_attention(self.cross_attention_norm(x), self.source_norm(chunks))
            x = x + self.dropout(update)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class NeighbourEncoder(nn.Module):
    """ENCODER(RET(C_u), H_u) of Algorithm 1, for all chunks and neighbours at once."""

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            EncoderBlock(config, has_cross_attention=layer in config.encoder_cross_attention_layers)
            for layer in range(1, config.encoder_layers + 1)
        )
        self.norm = RMSNorm(config.encoder_width)

    def forward(self, embedded: Tensor, mask: Tensor, chunks: Tensor) -> Tensor:
        """Encode neighbours.

        Args:
            embedded: float [b, l, k, r, e], embeddings of the retrieved tokens.
            mask: bool [b, l, k, r], True where a retrieved token exists; the others are never attended to.
            chunks: float [b, l, m, d], decoder activations of each chunk (H_u).

        Returns:
            float [b, l, k, r, e].
        """
        num_rows = embedded.shape[0]
        x, mask, chunks = embedded.flatten(0, 1), mask.flatten(0, 1), chunks.flatten(0, 1)
        for block in self.blocks:
            x = block(x, mask, chunks)
        out: Tensor = self.norm(x).unflatten(0, (num_rows, -1))
        return out
