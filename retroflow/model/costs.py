"""What a sequence costs to train on, by formula: the FLOPs of its matrix products.

A matrix product of [a, b] by [b, c] is 2abc FLOPs. Counted are all products of the forward pass, attention over the
whole square as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), although a causal kernel skips half;
the backward pass is twice the forward pass. Not counted: embeddings' look-ups, norms, softmax and other
element-wise work, and whatever is computed a second time to save memory. The projections of relative positions are
done once for a batch and counted once for a sequence. tests/model/test_costs.py holds the formula against torch's own
counter.

Shapes: n tokens of a sequence, m tokens of a chunk, l = n // m chunks, k neighbours, r tokens read of a neighbour,
d decoder features, e encoder features, v vocabulary, t queries, s keys.
"""

from retroflow.model.config import RetroConfig


def forward_flops(config: RetroConfig, length: int, num_neighbours: int) -> int:
    """FLOPs of one sequence's forward pass, the loss's logits included.

    Args:
        config: the model.
        length: n.
        num_neighbours: k; 0 without retrieval.
    """
    products = _decoder(config, length)
    if num_neighbours and config.cca_layers and length >= config.chunk_length:
        products += _reading(config, length // config.chunk_length, num_neighbours)
    return 2 * products


def training_flops(config: RetroConfig, length: int, num_neighbours: int) -> int:
    """FLOPs of one sequence's forward and backward pass."""
    return 3 * forward_flops(config, length, num_neighbours)


def _decoder(config: RetroConfig, n: int) -> int:
    """Multiplications of the decoder without chunked cross-attention."""
    d, inner = config.width, config.num_heads * config.resolved_head_width
    feed_forward = config.feed_forward_width or 4 * d
    block = n * d * 4 * inner + 2 * n * n * inner + 2 * n * d * feed_forward
    block += _distances(config, width=d, inner=inner, t=n, s=n)
    smear = n * d * d if config.smear else 0
    return config.num_layers * block + smear + n * d * config.vocabulary_size


def _reading(config: RetroConfig, num_chunks: int, k: int) -> int:
    """Multiplications that reading neighbours adds: their encoder, and chunked cross-attention."""
    neighbours = num_chunks * k
    d, e, r = config.width, config.encoder_width, _tokens_read(config)
    retrieved = neighbours * r
    products = 0
    if config.share_encoder_embeddings and d != e:
        products += retrieved * d * e
    if config.smear:
        products += retrieved * e * e
    products += _encoder(config, num_chunks, neighbours)
    return products + len(config.cca_layers) * _cca(config, num_chunks, k)


def _encoder(config: RetroConfig, num_chunks: int, neighbours: int) -> int:
    m, r, d, e = config.chunk_length, _tokens_read(config), config.width, config.encoder_width
    retrieved = neighbours * r
    inner = config.encoder_heads * config.resolved_encoder_head_width
    feed_forward = config.encoder_feed_forward_width or 4 * e
    block = retrieved * (4 * e * inner + 2 * r * inner + 2 * e * feed_forward)
    block += _distances(config, width=e, inner=inner, t=r, s=r, rows=neighbours)
    # A neighbour's tokens attend to the chunk it was found for.
    conditioning = retrieved * (2 * e * inner + 2 * m * inner) + num_chunks * m * 2 * d * inner
    conditioning += _distances(config, width=e, inner=inner, t=r, s=m, rows=neighbours)
    return config.encoder_layers * block + len(config.encoder_cross_attention_layers) * conditioning


def _cca(config: RetroConfig, num_chunks: int, k: int) -> int:
    m, d, e = config.chunk_length, config.width, config.encoder_width
    heads = config.cca_heads or config.num_heads
    inner = heads * (d // config.cca_heads if config.cca_heads else config.resolved_head_width)
    s = _tokens_read(config) - config.next_token_values  # the last token has no next one
    read = num_chunks * k * s
    products = 2 * num_chunks * m * d * inner + 2 * read * e * inner + 2 * m * read * inner
    if config.cca_positions:
        products += _distances(config, width=d, inner=inner, t=m, s=s, rows=num_chunks)
    return products


def _distances(config: RetroConfig, *, width: int, inner: int, t: int, s: int, rows: int = 1) -> int:
    """Multiplications of relative positions in `rows` attentions of t queries to s keys."""
    if config.positions != "relative":
        return 0
    distances = t + s - 1
    return distances * width * inner + rows * t * inner * distances


def _tokens_read(config: RetroConfig) -> int:
    part = config.part_read
    return int(part.stop - part.start)
