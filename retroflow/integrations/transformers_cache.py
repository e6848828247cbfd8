"""What a model keeps between the calls of transformers' `generate`: its own cache, in the words of theirs.

A cache that is cropped, as prompt lookup does, goes back to the state before the last call, and the next call runs the
tokens that remain of it again together with its own. So no part of a model has to undo what it has read.

Shapes: b batch, t new tokens, n tokens so far, m tokens of a chunk, s tokens between two lookups, k neighbours,
r tokens of a neighbour, v vocabulary.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from retroflow.errors import UsageError
from retroflow.integrations.transformers_neighbours import FindNeighbours, LookedUp, joined
from retroflow.model.cache import RetroCache
from retroflow.model.neighbours import Retrieved
from retroflow.model.windows import num_windows
from retroflow.protocols import GenerationCache, RetrievalModel


class RetroflowCache(Cache):
    """The state of generation; `past_key_values` of a RetroflowForCausalLM.

    Attributes:
        tokens: int64 [b, n], all tokens so far; None before the first call.
        padding: int64 [b], of the first call; None for none.
        lookups: for each row of the batch what was looked up in a database for it, in order.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.tokens: Tensor | None = None
        self.padding: Tensor | None = None
        self.lookups: list[list[LookedUp]] = []
        self._records = False
        self._chunk_length = self._step = 0
        self._found: Retrieved | None = None
        self._state: GenerationCache | None = None
        self._before: RetroCache | None = None

    def extend(
        self, model: RetrievalModel, tokens: Tensor, padding: Tensor | None, step: int, find: FindNeighbours | None
    ) -> Tensor:
        """Run more tokens through a model.

        Args:
            model: the same in every call.
            tokens: int64 [b, t], those that follow what the cache has seen.
            padding: int64 [b], as in `RetrievalModel.forward`; only the first call's counts.
            step: s.
            find: finds the neighbours of the windows that end within these tokens; None for retrieval off.

        Returns:
            float [b, t, v] logits.
        """
        m, before = model.config.chunk_length, self.get_seq_length()
        if self.tokens is None:
            self.tokens, self.padding = tokens[:, :0], padding
            self._chunk_length, self._step = m, step
            self.lookups = [[] for _ in tokens]
        elif len(tokens) != len(self.tokens):
            raise UsageError(
                f"past_key_values: a cache of {len(self.tokens)} rows given with {len(tokens)} rows of tokens; give "
                "one row for each."
            )
        self.tokens = torch.cat((self.tokens, tokens), dim=1)
        first, stop = (num_windows(length, m, self._step) for length in (before, self.get_seq_length()))
        found = None
        if find is not None:
            found = find(self.tokens, self.padding, [m + window * self._step for window in range(first, stop)])
        if found is not None:
            for row, of_row in zip(self.lookups, found.lookups, strict=True):
                row += of_row
        self._found = joined(self._found, None if found is None else found.neighbours, first, stop - first)
        return self._run(model)[:, -tokens.shape[1] :]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens the cache has seen, padding counted."""
        return 0 if self.tokens is None else self.tokens.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no most."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many positions the next tokens see, and the first of them."""
        return self.get_seq_length() + query_length, 0

    @property
    def batch_size(self) -> int:
        """Rows of the batch; -1 before the first call."""
        return -1 if self.tokens is None else len(self.tokens)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RetroflowCache":
        other = copy.copy(self)
        if self.tokens is not None:
            other._state = self._snapshot()  # a copy only once its rows are chosen
            other.reorder_cache(torch.arange(len(self.tokens), device=self.tokens.device))
        return other

    def _run(self, model: RetrievalModel) -> Tensor:
        """Run the tokens that the model has not seen, or no longer; returns their logits."""
        assert self.tokens is not None
        if self._state is None:
            self._state = model.new_cache(padding=self.padding, retrieval_step=self._step)
        self._before = self._snapshot() if self._records else None
        m, seen = model.config.chunk_length, self._state.length
        read = None
        if self._found is not None:
            windows = slice(num_windows(seen, m, self._step), num_windows(self.tokens.shape[1], m, self._step))
            read = self._found.windows(windows.start, windows.stop)
        if read is None or read.mask is None or not read.mask.any():
            return model.extend(self.tokens[:, seen:], self._state)
        return model.extend(self.tokens[:, seen:], self._state, read.tokens, read.mask)

    def _snapshot(self) -> RetroCache | None:
        return self._state.snapshot() if isinstance(self._state, RetroCache) else None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens.

        Args:
            tokens_to_remove: how many, as a negative number or 0.

        Raises:
            ValueError: a positive number, or more tokens than there are.
        """
        removed, length = -tokens_to_remove, self.get_seq_length() + tokens_to_remove
        if removed < 0 or length < 0:
            raise ValueError(
                f"crop: {tokens_to_remove} given; allowed: 0 to -{self.get_seq_length()}, the tokens to remove."
            )
        if not removed or self.tokens is None:
            return
        self.tokens = self.tokens[:, :length]
        self.lookups = [[one for one in row if one.end <= length] for row in self.lookups]
        if self._found is not None:
            self._found = self._found.windows(0, num_windows(length, self._chunk_length, self._step))
        goes_back = self._before is not None and self._before.length <= length
        self._state = self._before.snapshot() if goes_back and self._before is not None else None

    def activate_past_recording(self) -> None:
        """Keep the state before the last call, so that `crop` costs little."""
        self._records = True

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows int64 [c] of the batch, in this order."""
        if self.tokens is None:
            return
        rows = beam_idx.to(self.tokens.device)
        self.tokens = self.tokens[rows]
        self.padding = None if self.padding is None else self.padding[rows]
        self.lookups = [list(self.lookups[row]) for row in rows.tolist()]
        if self._found is not None:
            mask = None if self._found.mask is None else self._found.mask[rows]
            self._found = Retrieved(self._found.tokens[rows], mask)
        if self._state is not None:
            self._state.select(rows)
        self._before = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows int64 [c] of the batch."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if self.tokens is not None:
            rows = torch.arange(len(self.tokens), device=self.tokens.device)
            self.reorder_cache(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything."""
        self.tokens, self.padding, self.lookups = None, None, []
        self._found, self._state, self._before = None, None, None
