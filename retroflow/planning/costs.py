"""The cost of training on a sequence, by formula: FLOPs of matrix products, and memory of activations.

A matrix product of [a, b] by [b, c] is 2abc FLOPs. All products of the forward pass are counted, attention over the
whole square as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), although a causal kernel skips half.
The backward pass is twice the forward pass. Not counted: embedding look-ups, norms, softmax and other element-wise
work, and recomputation to save memory. The projections of relative positions are computed once per batch and counted
once per sequence.

Activations are what autograd keeps for the backward pass: the input of each norm in float32; the inputs of matrix
products in their dtype, unless they are recomputed (`retroflow.model.acceleration`); queries, keys, values and results
of attention, whose kernel keeps no scores. It is an estimate: kernels differ, and dropout masks are left out.

tests/planning/test_costs.py compares both with what torch counts and keeps.

Shapes: n tokens of a sequence, m tokens of a chunk, l = n // m chunks, k neighbours, r tokens read of a neighbour,
d decoder features, e encoder features, v vocabulary, t queries, s keys.
"""

from retroflow.model.config import RetroConfig
from retroflow.model.loss import LOGITS_AT_ONCE, SOFTMAX_AT_ONCE

_NORM_BYTES = 4
"""Bytes of a value of a norm's input, float32."""


def forward_flops(config: RetroConfig, length: int, num_neighbours: int) -> int:
    """Return the FLOPs of one sequence's forward pass, including the logits.

    Args:
        config: the model.
        length: n.
        num_neighbours: k; 0 without retrieval.
    """
    products = _decoder(config, length)
    if num_neighbours and config.cca_layers and length >= config.chunk_length:
        products += _retrieval(config, length // config.chunk_length, num_neighbours)
    return 2 * products


def training_flops(config: RetroConfig, length: int, num_neighbours: int) -> int:
    """Return the FLOPs of one sequence's forward and backward pass; arguments as in `forward_flops`."""
    return 3 * forward_flops(config, length, num_neighbours)


def _decoder(config: RetroConfig, n: int) -> int:
    """Return the multiplications of the decoder without chunked cross-attention."""
    d, inner = config.width, config.num_heads * config.resolved_head_width
    feed_forward = config.feed_forward_width or 4 * d
    block = n * d * 4 * inner + 2 * n * n * inner + 2 * n * d * feed_forward
    block += _distances(config, width=d, inner=inner, t=n, s=n)
    smear = n * d * d if config.smear else 0
    return config.num_layers * block + smear + n * d * config.vocabulary_size


def _retrieval(config: RetroConfig, num_chunks: int, k: int) -> int:
    """Return the multiplications of the encoder and of chunked cross-attention."""
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
    # A neighbour's tokens attend to the chunk for which it was found.
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
    """Return the multiplications of relative positions in `rows` attentions of t queries to s keys."""
    if config.positions != "relative":
        return 0
    distances = t + s - 1
    return distances * width * inner + rows * t * inner * distances


def _tokens_read(config: RetroConfig) -> int:
    part = config.part_read
    return int(part.stop - part.start)


def activation_bytes(
    config: RetroConfig, length: int, num_neighbours: int, *, value_bytes: int, checkpointing: bool = False
) -> int:
    """Estimate the bytes that one sequence keeps for its backward pass.

    Args:
        config: the model.
        length: n.
        num_neighbours: k; 0 without retrieval.
        value_bytes: bytes of a value in matrix products, 2 for bfloat16, 4 for float32.
        checkpointing: layers are recomputed in the backward pass, and keep only their inputs
            (`Retro.blocks_to_recompute`).
    """
    d = config.width
    retrieves = bool(num_neighbours and config.cca_layers and length >= config.chunk_length)
    num_chunks = length // config.chunk_length
    block = length * _block_bytes(d, config.num_heads * config.resolved_head_width, _hidden(config), value_bytes)
    block += _bias_bytes(config, length * config.num_heads * length, value_bytes)
    cca = _cca_bytes(config, num_chunks, num_neighbours, value_bytes) if retrieves else 0
    encoder = _encoder_bytes(config, num_chunks, num_neighbours, value_bytes) if retrieves else 0
    ends = length * (d * 4 + _NORM_BYTES * d + d * value_bytes)  # embedding, last norm, input of the logits
    if checkpointing:
        retrieved = num_chunks * num_neighbours * _tokens_read(config) if retrieves else 0
        inputs = config.num_layers * length * d * 4 + config.encoder_layers * retrieved * config.encoder_width * 4
        kept = inputs + bool(config.cca_layers) * block + cca + ends  # the layer that encodes is kept
        return kept + max(block + cca, encoder // max(1, config.encoder_layers))  # and one at a time is recomputed
    return config.num_layers * block + len(config.cca_layers) * cca + encoder + ends


def logits_bytes(config: RetroConfig, num_tokens: int, *, value_bytes: int) -> int:
    """Estimate the bytes of the logits that exist at one time, and of their softmax."""
    num_logits = min(num_tokens * config.vocabulary_size, LOGITS_AT_ONCE)
    return num_logits * value_bytes + min(num_logits, SOFTMAX_AT_ONCE) * 8


def _hidden(config: RetroConfig) -> int:
    return config.feed_forward_width or 4 * config.width


def _block_bytes(width: int, inner: int, hidden: int, value_bytes: int) -> int:
    """Return what a token keeps of self-attention and feed-forward.

    The inputs of two norms; q and k after rotation, v and the result; the hidden layer before GELU.
    """
    return 2 * _NORM_BYTES * width + value_bytes * (4 * inner + hidden)


def _bias_bytes(config: RetroConfig, scores: int, value_bytes: int) -> int:
    """Return what relative positions keep: the kernel's bias and scores, and the index of distances in int64."""
    return scores * (2 * value_bytes + 8) if config.positions == "relative" else 0


def _cca_bytes(config: RetroConfig, num_chunks: int, k: int, value_bytes: int) -> int:
    m, d, e, r = config.chunk_length, config.width, config.encoder_width, _tokens_read(config)
    heads = config.cca_heads or config.num_heads
    inner = heads * (d // config.cca_heads if config.cca_heads else config.resolved_head_width)
    attending = num_chunks * m * (_NORM_BYTES * d + value_bytes * (d + 2 * inner))
    bias = _bias_bytes(config, num_chunks * m * heads * r * k, value_bytes) if config.cca_positions else 0
    return attending + num_chunks * k * r * value_bytes * (e + 2 * inner) + bias


def _encoder_bytes(config: RetroConfig, num_chunks: int, k: int, value_bytes: int) -> int:
    m, e, r = config.chunk_length, config.encoder_width, _tokens_read(config)
    retrieved = num_chunks * k * r
    inner = config.encoder_heads * config.resolved_encoder_head_width
    block = retrieved * _block_bytes(e, inner, config.encoder_feed_forward_width or 4 * e, value_bytes)
    block += _bias_bytes(config, retrieved * config.encoder_heads * r, value_bytes)
    conditioning = retrieved * (_NORM_BYTES * e + value_bytes * 2 * inner)
    conditioning += num_chunks * m * value_bytes * 3 * inner
    conditioning += _bias_bytes(config, retrieved * config.encoder_heads * m, value_bytes)
    layers = config.encoder_layers * block + len(config.encoder_cross_attention_layers) * conditioning
    return layers + retrieved * (_NORM_BYTES + 4) * e
