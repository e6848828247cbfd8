"""One block of the decoder: LM(H) = FFW(ATTN(H)), and with retrieval RETRO(H, E) = FFW(CCA(ATTN(H), E)).

Shapes: b batch, t tokens, d decoder features.
"""

from torch import Tensor, nn

from retroflow.model.attention import KeyValues, SelfAttention
from retroflow.model.chunked_cross_attention import ChunkedCrossAttention
from retroflow.model.config import RetroConfig
from retroflow.model.layers import FeedForward, RMSNorm
from retroflow.model.positions import make_positions
from retroflow.model.reading import Reading


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
        self.encodes = layer == min(config.cca_layers, default=0)
        self.feed_forward_norm = RMSNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward_width or 4 * config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        reading: Reading | None = None,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Update x.

        Args:
            x: float [b, t, d].
            reading: the neighbours; None for retrieval off. The first block with CCA lets it encode them, given the
                activations between its self-attention and its CCA (H_u).
            mask: as in `SelfAttention`; None for plain causality.
            cache: as in `SelfAttention`.

        Returns:
            float [b, t, d].
        """
        x = x + self.dropout(self.attention(x, self.attention_norm, mask, cache))
        if self.cca is not None and reading is not None:
            if self.encodes:
                reading.encode(x)
            x = x + self.dropout(reading.read(self.cca, self.cca_norm(x)))
        return x + self.dropout(self.feed_forward(x, self.feed_forward_norm))
