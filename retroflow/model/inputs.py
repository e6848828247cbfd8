"""What a Retro accepts: shapes, dtypes and values checked before any arithmetic, with messages that teach.

Shapes: b batch, n tokens of a sequence, m tokens of a chunk, W windows (whole chunks, W = n // m, unless neighbours
are looked up more often), k neighbours, r = 2m.
"""

import torch
from torch import Tensor

from retroflow.errors import InvalidShapeError
from retroflow.model.config import RetroConfig
from retroflow.model.loss import IGNORED
from retroflow.model.reading import Retrieved


def check_tokens(config: RetroConfig, tokens: Tensor) -> None:
    """Check the decoder's input.

    Args:
        config: the model's.
        tokens: what was given; values are looked at on the CPU only.

    Raises:
        InvalidShapeError: not int64 [b, n >= 1], or a token that is not in the vocabulary.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1 or tokens.dtype != torch.int64:
        raise InvalidShapeError(
            f"tokens: int64 [batch, length >= 1] is needed, {tokens.dtype} {list(tokens.shape)} given"
        )
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
    if targets.shape != tokens.shape or targets.dtype != torch.int64:
        raise InvalidShapeError(
            f"targets: int64 {list(tokens.shape)}, one for each token, is needed, {targets.dtype} "
            f"{list(targets.shape)} given"
        )
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_values("targets", torch.where(targets == IGNORED, 0, targets), config)


def check_rows(cached: int | None, *, num_rows: int) -> None:
    """Check that tokens go on where the rows of a cache ended.

    Args:
        cached: rows of the cache; None while it is empty.
        num_rows: b, rows of the tokens.

    Raises:
        InvalidShapeError: they differ.
    """
    if cached not in (None, num_rows):
        raise InvalidShapeError(
            f"tokens: {num_rows} rows given to a cache of {cached}; give one row for each, or choose rows with "
            "`cache.select`"
        )


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
    if padding.dtype != torch.int64 or padding.shape != (num_rows,):
        raise InvalidShapeError(
            f"padding: int64 [{num_rows}], one number a row, is needed, {padding.dtype} {list(padding.shape)} given"
        )
    if not num_rows or padding.device.type != "cpu":
        return
    if int(padding.min()) < 0 or (length is not None and int(padding.max()) >= length):
        most = "" if length is None else f", less than the {length} tokens of a row"
        raise InvalidShapeError(
            f"padding: {padding.tolist()} given; 0 or more is needed{most}: every row needs a token of its own"
        )


def check_retrieved(
    config: RetroConfig,
    retrieved: Tensor | None,
    retrieved_mask: Tensor | None,
    *,
    num_rows: int,
    num_windows: int,
    reason: str,
) -> Retrieved | None:
    """Check the retrieved text of some windows.

    Args:
        config: the model's.
        retrieved: int64 [b, W, k, r], or None.
        retrieved_mask: bool [b, W, k, r] or [b, W, k], or None.
        num_rows: b.
        num_windows: W.
        reason: why W windows are needed, for the message.

    Returns:
        The part of it that the model reads; None if there is nothing to read (retrieval off, no CCA layer, no window).

    Raises:
        InvalidShapeError: says what was given and what is allowed.
    """
    if retrieved is None:
        if retrieved_mask is not None:
            raise InvalidShapeError("retrieved_mask: given without retrieved; give both, or neither for retrieval off")
        return None
    if (
        retrieved.ndim != 4
        or retrieved.dtype != torch.int64
        or retrieved.shape[:2] != (num_rows, num_windows)
        or retrieved.shape[3] != config.retrieved_length
    ):
        raise InvalidShapeError(
            f"retrieved: int64 [{num_rows}, {num_windows}, k, {config.retrieved_length}] is needed ({reason}; a "
            f"neighbour and its continuation are {config.retrieved_length} tokens), {retrieved.dtype} "
            f"{list(retrieved.shape)} given"
        )
    _check_values("retrieved", retrieved, config)
    mask = _full_mask(retrieved, retrieved_mask)
    if not retrieved.numel() or not config.cca_layers:
        return None
    part = config.part_read
    return Retrieved(retrieved[..., part], None if mask is None else mask[..., part])


def _full_mask(retrieved: Tensor, mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape not in (retrieved.shape, retrieved.shape[:3]):
        raise InvalidShapeError(
            f"retrieved_mask: bool {list(retrieved.shape)} (or {list(retrieved.shape[:3])} for whole neighbours) is "
            f"needed, {mask.dtype} {list(mask.shape)} given"
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
