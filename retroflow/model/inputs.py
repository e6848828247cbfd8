"""What a Retro accepts: shapes, dtypes and values checked before any arithmetic, with messages that teach.

Shapes: b batch, n tokens of a sequence, m tokens of a chunk, l = n // m whole chunks, k neighbours, r = 2m.
"""

import torch
from torch import Tensor

from retroflow.errors import InvalidShapeError
from retroflow.model.config import RetroConfig


def check_inputs(
    config: RetroConfig, tokens: Tensor, retrieved: Tensor | None, retrieved_mask: Tensor | None
) -> Tensor | None:
    """Check the arguments of Retro.forward.

    Returns:
        bool [b, l, k, r], the mask in full; None if there is nothing to read (retrieval off, no CCA layer, or a
        sequence that ends before its first chunk does).

    Raises:
        InvalidShapeError: says what was given and what is allowed.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1 or tokens.dtype != torch.int64:
        raise InvalidShapeError(
            f"tokens: int64 [batch, length >= 1] is needed, {tokens.dtype} {list(tokens.shape)} given"
        )
    _check_values("tokens", tokens, config)
    if retrieved is None:
        if retrieved_mask is not None:
            raise InvalidShapeError("retrieved_mask: given without retrieved; give both, or neither for retrieval off")
        return None
    num_rows, length = tokens.shape
    num_chunks = length // config.chunk_length
    if (
        retrieved.ndim != 4
        or retrieved.dtype != torch.int64
        or retrieved.shape[:2] != (num_rows, num_chunks)
        or retrieved.shape[3] != config.retrieved_length
    ):
        raise InvalidShapeError(
            f"retrieved: int64 [{num_rows}, {num_chunks}, k, {config.retrieved_length}] is needed for tokens of shape "
            f"{list(tokens.shape)} ({length} tokens hold {num_chunks} whole chunks of {config.chunk_length}; a "
            f"neighbour and its continuation are {config.retrieved_length}), {retrieved.dtype} "
            f"{list(retrieved.shape)} given"
        )
    _check_values("retrieved", retrieved, config)
    mask = _full_mask(retrieved, retrieved_mask)
    return mask if retrieved.numel() and config.cca_layers else None


def _full_mask(retrieved: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones_like(retrieved, dtype=torch.bool)
    if mask.dtype != torch.bool or mask.shape not in (retrieved.shape, retrieved.shape[:3]):
        raise InvalidShapeError(
            f"retrieved_mask: bool {list(retrieved.shape)} (or {list(retrieved.shape[:3])} for whole neighbours) is "
            f"needed, {mask.dtype} {list(mask.shape)} given"
        )
    return mask if mask.ndim == 4 else mask[..., None].expand_as(retrieved)


def _check_values(name: str, tokens: Tensor, config: RetroConfig) -> None:
    # On an accelerator this would wait for the device at every step; there the embedding's own assertion speaks.
    if tokens.device.type != "cpu" or not tokens.numel() or torch.compiler.is_compiling():
        return
    low, high = tokens.aminmax()
    if low < 0 or high >= config.vocabulary_size:
        wrong = int(low if low < 0 else high)
        raise InvalidShapeError(
            f"{name}: token {wrong} given; the vocabulary has {config.vocabulary_size} entries, 0 to "
            f"{config.vocabulary_size - 1}. Was it made by another tokenizer?"
        )
