"""The neighbour encoder: reads every neighbour in both directions, conditioned on the chunk it was found for.

Shapes: b batch, W windows (whole chunks), k neighbours, r tokens of a neighbour with its continuation, m tokens of a
chunk, d decoder features, e encoder features.
"""

from typing import NamedTuple

from torch import Tensor, nn

from retroflow.model.attention import CrossAttention, SelfAttention
from retroflow.model.config import RetroConfig
from retroflow.model.layers import FeedForward, RMSNorm, Smear
from retroflow.model.neighbours import Encoded, Retrieved
from retroflow.model.positions import Positions, make_positions
from retroflow.model.windows import windows_of


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
        flat = self.attention(self.attention_norm(x.flatten(0, 1)), masks.retrieved)
        x = x + self.dropout(flat.unflatten(0, (-1, num_neighbours)))
        if self.cross_attention is not None:
            update = self.cross_attention(self.cross_attention_norm(x), self.source_norm(chunks), masks.chunks)
            x = x + self.dropout(update)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class RetrievedEncoder(nn.Module):
    """ENCODER(RET(C_u), H_u) of Algorithm 1 for all windows and neighbours at once, from their token ids on.

    It embeds with a table of its own, or with the decoder's through a linear map where the widths differ.
    """

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.chunk_length = config.chunk_length
        self.blocks = nn.ModuleList(
            EncoderBlock(config, has_cross_attention=layer in config.encoder_cross_attention_layers)
            for layer in range(1, config.encoder_layers + 1)
        )
        self.norm = RMSNorm(config.encoder_width)
        self.embedding: nn.Embedding | None = None
        self.input: nn.Linear | None = None
        if not config.share_encoder_embeddings:
            self.embedding = nn.Embedding(config.vocabulary_size, config.encoder_width)
        elif config.width != config.encoder_width:
            self.input = nn.Linear(config.width, config.encoder_width, bias=False)
        self.smear = Smear(config.encoder_width) if config.smear else None

    def forward(
        self,
        retrieved: Retrieved,
        hidden: Tensor,
        *,
        embedding: nn.Module,
        step: int | None = None,
        is_token: Tensor | None = None,
    ) -> Encoded:
        """Encode neighbours.

        Args:
            retrieved: the neighbours of the W windows of n tokens.
            hidden: float [b, n, d], the decoder's activations; H_u are those of a window.
            embedding: the decoder's.
            step: s, tokens between two lookups; None means m.
            is_token: bool [b, n], False at padding; None without any.
        """
        m, step = self.chunk_length, step or self.chunk_length
        chunk_mask = None if is_token is None else windows_of(is_token, m, step)
        retrieved = retrieved.without_empty_windows(chunk_mask)
        masks = Masks(_key_mask(retrieved.mask, 2), _key_mask(chunk_mask, 1))
        x, chunks = self.embed(retrieved, embedding).flatten(0, 1), windows_of(hidden, m, step).flatten(0, 1)
        for block in self.blocks:
            x = block(x, chunks, masks)
        states = self.norm(x).unflatten(0, retrieved.tokens.shape[:2])
        return Encoded(states, retrieved.mask, first=m - 1, step=step, hidden=hidden)

    def embed(self, retrieved: Retrieved, embedding: nn.Module) -> Tensor:
        """Embed retrieved text, with the decoder's `embedding` where there is no own; returns float [b, W, k, r, e]."""
        x: Tensor = (self.embedding or embedding)(retrieved.tokens)
        if self.input is not None:
            x = self.input(x)
        if self.smear is not None:
            if retrieved.mask is not None:  # a missing token is not before any other
                x = x * retrieved.mask[..., None]
            x = self.smear(x.flatten(0, 2)).view_as(x)
        return x


def _key_mask(mask: Tensor | None, last_batch_axis: int) -> Tensor | None:
    """Turn bool [..., s] into [batch, 1, 1, s]; a row without any True is left open, so that it stays finite.

    Its reader masks such a row out as a whole.
    """
    if mask is None:
        return None
    mask = mask.flatten(0, last_batch_axis)
    return (mask | ~mask.any(-1, keepdim=True))[:, None, None, :]
