"""The neighbour encoder: reads every neighbour in both directions, conditioned on the chunk it was found for.

Shapes: b batch, W windows (whole chunks), k neighbours, r tokens of a neighbour with its continuation, m tokens of a
chunk, d decoder features, e encoder features.
"""

from typing import NamedTuple

from torch import Tensor, nn

from retroflow.model.attention import CrossAttention, SelfAttention
from retroflow.model.config import RetroConfig
from retroflow.model.layers import FeedForward, RMSNorm
from retroflow.model.positions import Positions, make_positions


class Masks(NamedTuple):
    """Who may look at whom in the encoder; None where nothing is missing.

    Attributes:
        retrieved: bool [b * W * k, 1, 1, r], for the neighbours' self-attention.
        chunks: bool [b * W, 1, 1, m], for their look at the chunk.
    """

    retrieved: Tensor | None
    chunks: Tensor | None


class EncoderBlock(nn.Module):
    """FFW(CA(ATTN(x), H)), each a residual update after an RMSNorm; CA only in the layers of P_enc."""

    def __init__(self, config: RetroConfig, *, has_cross_attention: bool) -> None:
        super().__init__()
        width, heads = config.encoder_width, config.encoder_heads
        head_width = config.resolved_encoder_head_width

        def positions() -> Positions:
            return make_positions(
                config.positions, width=width, num_heads=heads, head_width=head_width, theta=config.rotary_theta
            )

        self.attention_norm = RMSNorm(width)
        self.attention = SelfAttention(width, heads, head_width, positions=positions(), causal=False)
        self.cross_attention: CrossAttention | None = None
        if has_cross_attention:
            self.cross_attention_norm = RMSNorm(width)
            self.source_norm = RMSNorm(config.width)
            self.cross_attention = CrossAttention(width, config.width, heads, head_width, positions=positions())
        self.feed_forward_norm = RMSNorm(width)
        self.feed_forward = FeedForward(width, config.encoder_feed_forward_width or 4 * width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, chunks: Tensor, masks: Masks) -> Tensor:
        """Update the neighbours.

        Args:
            x: float [b * W, k, r, e].
            chunks: float [b * W, m, d], what the neighbours were found for.
            masks: who may look at whom.

        Returns:
            float [b * W, k, r, e].
        """
        num_neighbours = x.shape[1]
        flat = self.attention(x.flatten(0, 1), self.attention_norm, masks.retrieved)
        x = x + self.dropout(flat.unflatten(0, (-1, num_neighbours)))
        if self.cross_attention is not None:
            update = self.cross_attention(x, chunks, self.cross_attention_norm, self.source_norm, masks.chunks)
            x = x + self.dropout(update)
        return x + self.dropout(self.feed_forward(x, self.feed_forward_norm))


class NeighbourEncoder(nn.Module):
    """ENCODER(RET(C_u), H_u) of Algorithm 1, for all chunks and neighbours at once."""

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            EncoderBlock(config, has_cross_attention=layer in config.encoder_cross_attention_layers)
            for layer in range(1, config.encoder_layers + 1)
        )
        self.norm = RMSNorm(config.encoder_width)

    def forward(
        self, embedded: Tensor, chunks: Tensor, mask: Tensor | None = None, chunk_mask: Tensor | None = None
    ) -> Tensor:
        """Encode neighbours.

        Args:
            embedded: float [b, W, k, r, e], embeddings of the retrieved tokens.
            chunks: float [b, W, m, d], decoder activations of each chunk (H_u).
            mask: bool [b, W, k, r], True where a retrieved token exists; the others are never attended to.
            chunk_mask: bool [b, W, m], True where a chunk has a token and not padding.

        Returns:
            float [b, W, k, r, e].
        """
        num_rows = embedded.shape[0]
        masks = Masks(_key_mask(mask, 2), _key_mask(chunk_mask, 1))
        x, chunks = embedded.flatten(0, 1), chunks.flatten(0, 1)
        for block in self.blocks:
            x = block(x, chunks, masks)
        out: Tensor = self.norm(x).unflatten(0, (num_rows, -1))
        return out


def _key_mask(mask: Tensor | None, last_batch_axis: int) -> Tensor | None:
    """Turn bool [..., s] into [batch, 1, 1, s]; a row without any True is left open, so that it stays finite.

    Its reader masks such a row out as a whole.
    """
    if mask is None:
        return None
    mask = mask.flatten(0, last_batch_axis)
    return (mask | ~mask.any(-1, keepdim=True))[:, None, None, :]
