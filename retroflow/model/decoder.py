"""One block of the decoder: LM(H) = FFW(ATTN(H)), and with retrieval RETRO(H, E) = FFW(CCA(ATTN(H), E)).

Shapes: b batch, t tokens, d decoder features.
"""

from torch import Tensor, nn

from retroflow.model.attention import KeyValues, SelfAttention
from retroflow.model.chunked_cross_attention import ChunkedCrossAttention
from retroflow.model.config import RetroConfig
from retroflow.model.layers import FeedForward, RMSNorm
from retroflow.model.neighbours import Encode, Encoded
from retroflow.model.positions import make_positions


class DecoderBlock(nn.Module):
    """Up to three residual updates: self-attention, chunked cross-attention, feed-forward.

    Args:
        config: the model's.
        layer: which block this is, counted from 1.
    """

    def __init__(self, config: RetroConfig, *, layer: int) -> None:
        super().__init__()
        head_width = config.resolved_head_width
        positions = make_positions(
            config.positions,
            width=config.width,
            num_heads=config.num_heads,
            head_width=head_width,
            theta=config.rotary_theta,
        )
        self.attention_norm = RMSNorm(config.width)
        self.attention = SelfAttention(config.width, config.num_heads, head_width, positions=positions, causal=True)
        self.cca: ChunkedCrossAttention | None = None
        if layer in config.cca_layers:
            self.cca_norm = RMSNorm(config.width)
            self.cca = ChunkedCrossAttention(config)
        self.feed_forward_norm = RMSNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward_width or 4 * config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        encoded: Encoded | None = None,
        encode: Encode | None = None,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> tuple[Tensor, Encoded | None]:
        """Update x.

        Args:
            x: float [b, t, d].
            encoded: the neighbours, as the block before returned them; None before the first block with CCA.
            encode: encodes them, given the activations between that block's self-attention and its CCA (H_u); None
                for retrieval off.
            mask: as in `SelfAttention`; None for plain causality.
            cache: as in `SelfAttention`.

        Returns:
            float [b, t, d], and the neighbours for the next block.
        """
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, cache))
        if self.cca is not None and encode is not None:
            encoded = encode(x) if encoded is None else encoded
            x = x + self.dropout(self.cca(self.cca_norm(x), encoded))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), encoded
