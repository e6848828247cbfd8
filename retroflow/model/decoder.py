"""One block of the decoder: LM(H) = FFW(ATTN(H)), and with retrieval RETRO(H, E) = FFW(CCA(ATTN(H), E)).

Shapes: b batch, n tokens, d decoder features; encoded neighbours as in chunked_cross_attention.py.
"""

from torch import Tensor, nn

from retroflow.model.attention import SelfAttention
from retroflow.model.chunked_cross_attention import ChunkedCrossAttention
from retroflow.model.config import RetroConfig
from retroflow.model.layers import FeedForward, RMSNorm


class DecoderBlock(nn.Module):
    """The three residual updates of a block as separate steps, because the encoder runs between two of them."""

    def __init__(self, config: RetroConfig, *, has_cca: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = SelfAttention(
            config.width, config.num_heads, config.resolved_head_width, theta=config.rotary_theta, causal=True
        )
        self.cca: ChunkedCrossAttention | None = None
        if has_cca:
            self.cca_norm = RMSNorm(config.width)
            self.cca = ChunkedCrossAttention(config)
        self.feed_forward_norm = RMSNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward_width or 4 * config.width)
        self.dropout = nn.Dropout(config.dropout)

    def attend(self, x: Tensor) -> Tensor:
        """ATTN: causal self-attention over x float [b, n, d]."""
        return x + self.dropout(self.attention(self.attention_norm(x)))

    def read_neighbours(self, x: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        """CCA: x float [b, n, d] reads encoded float [b, l, k, r, e] under mask bool [b, l, k, r]."""
        assert self.cca is not None
        return x + self.dropout(self.cca(self.cca_norm(x), encoded, mask))

    def feed(self, x: Tensor) -> Tensor:
        """FFW: the position-wise update of x float [b, n, d]."""
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
