"""What a RETRO-fit keeps between calls of generation, and how its base is told of padding.

Shapes: b batch, t new tokens.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from retroflow.integrations.joint_attention import WindowNeighbours
from retroflow.model.cache import RetroCache


class RetrofitCache(RetroCache):
    """The state of generation: the base's own cache, and the window that is read.

    Attributes:
        past: keys and values of the base's self-attention.
        neighbours: the newest window as an inherited reader reads it; None before the first.
    """

    def __init__(self, config: PretrainedConfig, *, chunk_length: int, step: int, padding: Tensor | None) -> None:
        super().__init__(0, chunk_length=chunk_length, step=step, padding=padding)
        self.past = DynamicCache(config=config)
        self.neighbours: WindowNeighbours | None = None

    def select(self, rows: Tensor) -> None:
        """Keep the rows int64 [c] of the batch, in this order."""
        super().select(rows)
        if self.length:
            self.past.batch_select_indices(rows)
        self.neighbours = None if self.neighbours is None else self.neighbours.select(rows)


def padded_arguments(cache: RetroCache, num_tokens: int) -> dict[str, Tensor]:
    """Return the base's arguments about padding in the next tokens; none without padding.

    Args:
        cache: with the padding, of the tokens before.
        num_tokens: t, how many come next.

    Returns:
        attention_mask int64 [b, length + t], 0 at padding, and position_ids int64 [b, t], counted without it.
    """
    if cache.padding is None:
        return {}
    end = cache.length + num_tokens
    seen = cache.is_token(0, end)
    assert seen is not None
    positions = torch.arange(cache.length, end, device=seen.device) - cache.padding[:, None]
    return {"attention_mask": seen.long(), "position_ids": positions.clamp(min=0)}
