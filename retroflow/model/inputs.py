"""Checks of a Retro's input: shapes, dtypes and values, before any arithmetic.

Shapes: b batch, n tokens of a sequence, m tokens of a chunk, W windows (whole chunks, W = n // m, unless neighbours
are looked up more often), k neighbours, r = 2m.
"""

from typing import Any

import torch
from torch import Tensor

from retroflow.errors import InvalidShapeError
from retroflow.model.cache import RetroCache
from retroflow.model.config import RetroConfig
from retroflow.model.loss import IGNORED
from retroflow.model.neighbours import Retrieved
from retroflow.model.windows import num_windows


def check_tokens(config: RetroConfig, tokens: Tensor) -> None:
    """Check the decoder's input.

    Args:
        config: the model's.
        tokens: what was given; values are looked at on the CPU only.

    Raises:
        InvalidShapeError: not int64 [b, n >= 1], or a token that is not in the vocabulary.
    """
    if not _is_int64(tokens) or tokens.ndim != 2 or tokens.shape[1] < 1:
        raise InvalidShapeError(f"tokens: int64 [batch, length >= 1] is needed, {_described(tokens)} given.")
    _check_values("tokens", tokens, config)


def check_targets(config: RetroConfig, targets: Tensor, tokens: Tensor) -> None:
    """Check what `loss` compares its predictions with.

    Args:
        config: the model's.
        targets: what was given; values are looked at on the CPU only.
        tokens: int64 [b, n], the decoder's input.

    Raises:
        InvalidShapeError: not int64 of the shape of tokens [b, n], or a target that is neither in the vocabulary nor
            IGNORED.
    """
    if not _is_int64(targets) or targets.shape != tokens.shape:
        raise InvalidShapeError(
            f"targets: int64 {list(tokens.shape)}, one for each token, is needed, {_described(targets)} given."
        )
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_values("targets", torch.where(targets == IGNORED, 0, targets), config)


def check_padding(padding: Tensor | None, *, num_rows: int, length: int | None) -> None:
    """Check how many tokens at the left of each row are padding.

    Args:
        padding: int64 [b], or None.
        num_rows: b.
        length: tokens of a row; None if more of them are still to come.

    Raises:
        InvalidShapeError: not int64 [b], negative, or a row without any token.
    """
    if padding is None:
        return
    if not _is_int64(padding) or padding.shape != (num_rows,):
        raise InvalidShapeError(
            f"padding: int64 [{num_rows}], one number a row, is needed, {_described(padding)} given."
        )
    if not num_rows or padding.device.type != "cpu":
        return
    if int(padding.min()) < 0 or (length is not None and int(padding.max()) >= length):
        most = "" if length is None else f", less than the {length} tokens of a row"
        raise InvalidShapeError(
            f"padding: {padding.tolist()} given; 0 or more is needed{most}: every row needs at least one token."
        )


def check_sequence(
    config: RetroConfig, tokens: Tensor, retrieved: Tensor | None, retrieved_mask: Tensor | None, step: int
) -> Retrieved | None:
    """Check the retrieved text of whole sequences.

    Args:
        config: the model's.
        tokens: int64 [b, n], checked.
        retrieved: int64 [b, W, k, r] for the W windows of n tokens, or None.
        retrieved_mask: bool [b, W, k, r] or [b, W, k], or None.
        step: s, tokens between two lookups.

    Returns:
        What the model reads of it; None if there is nothing to read (retrieval off, no CCA layer, no window).

    Raises:
        InvalidShapeError: says what was given and what is allowed.
    """
    length, m = tokens.shape[1], config.chunk_length
    count = num_windows(length, m, step)
    what = f"{count} whole chunks of {m}" if step == m else f"{count} windows of {m} at a retrieval step of {step}"
    over = f", not a multiple of {m}," if step == m and length % m else ""
    reason = f"tokens of shape {list(tokens.shape)}: {length} tokens{over} hold {what}"
    return _check_retrieved(config, retrieved, retrieved_mask, (len(tokens), count), reason)


def check_extension(
    config: RetroConfig, tokens: Tensor, cache: RetroCache, retrieved: Tensor | None, retrieved_mask: Tensor | None
) -> Retrieved | None:
    """Check tokens that follow those of a cache, and the retrieved text of the windows that they close.

    Args:
        config: the model's.
        tokens: int64 [b, t].
        cache: of the tokens before.
        retrieved: int64 [b, W, k, r] for the W windows that t more tokens close, or None.
        retrieved_mask: bool [b, W, k, r] or [b, W, k], or None.

    Returns:
        As `check_sequence`.

    Raises:
        InvalidShapeError: a cache of another model, rows that are not those of the cache, or as `check_tokens` and
            `check_sequence`.
    """
    if (
        not isinstance(cache, RetroCache)
        or cache.chunk_length != config.chunk_length
        or len(cache.layers) not in (0, config.num_layers)  # a base keeps its own
    ):
        given = "that of another model" if isinstance(cache, RetroCache) else _described(cache)
        raise InvalidShapeError(f"cache: {given} given; one that `new_cache` of this model made is needed.")
    check_tokens(config, tokens)
    num_rows, length = tokens.shape
    if cache.num_rows not in (None, num_rows):
        raise InvalidShapeError(
            f"tokens: {num_rows} rows given to a cache of {cache.num_rows}; give one row for each, or choose rows with "
            "`cache.select`."
        )
    check_padding(cache.padding, num_rows=num_rows, length=None)
    count = cache.num_new_windows(length)
    reason = f"{length} tokens after {cache.length} close {count} windows"
    return _check_retrieved(config, retrieved, retrieved_mask, (num_rows, count), reason)


def _check_retrieved(
    config: RetroConfig,
    retrieved: Tensor | None,
    mask: Tensor | None,
    rows_and_windows: tuple[int, int],
    reason: str,
) -> Retrieved | None:
    """Check the retrieved text of these windows; `reason` says why it is so many."""
    if retrieved is None:
        if mask is not None:
            raise InvalidShapeError("retrieved_mask: given without retrieved; give both, or neither for retrieval off.")
        return None
    r = config.retrieved_length
    if (
        not _is_int64(retrieved)
        or retrieved.ndim != 4
        or retrieved.shape[:2] != rows_and_windows
        or retrieved.shape[3] != r
    ):
        needed = f"{rows_and_windows[0]}, {rows_and_windows[1]}, k, {r}"
        raise InvalidShapeError(
            f"retrieved: int64 [{needed}] is needed ({reason}; a neighbour and its continuation are {r} tokens), "
            f"{_described(retrieved)} given."
        )
    mask = _full_mask(retrieved, mask)
    if mask is not None:  # what stands where nothing was retrieved, such as -1, need not be a token
        retrieved = retrieved.masked_fill(~mask, 0)
    _check_values("retrieved", retrieved, config)
    if not retrieved.numel() or not config.cca_layers:
        return None
    part = config.part_read
    return Retrieved(retrieved[..., part], None if mask is None else mask[..., part])


def _full_mask(retrieved: Tensor, mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    shapes = (retrieved.shape, retrieved.shape[:3])
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape not in shapes:
        raise InvalidShapeError(
            f"retrieved_mask: bool {list(shapes[0])} (or {list(shapes[1])} for whole neighbours) is needed, "
            f"{_described(mask)} given."
        )
    # Attention without a mask is faster; on an accelerator, looking would cost more than it saves.
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all()):
        return None
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


def _is_int64(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64


def _described(value: Any) -> str:
    """Describe a value for a message."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} and no tensor"
