"""What the rules of ModelContract work with: a model whose gates are open, its inputs, and what it computes of them.

Shapes: b sequences, n tokens, m tokens of a chunk, s tokens between two lookups, W windows, k neighbours, r = 2m, v
vocabulary.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retroflow.model.windows import num_windows
from retroflow.testing.case import Case

NUM_ROWS = 3
TOLERANCE = 1e-4
"""Largest difference that is rounding, relative to the largest logit."""


class ModelCase(Case):
    """One model, with other weights than its first ones: gates that start closed would hide what they let in."""

    @cached_property
    def config(self) -> Any:
        """What the author makes."""
        return self.suite.make_config()

    @cached_property
    def model(self) -> Any:
        """In evaluation mode; the rules only compute with it."""
        return self.build()

    def build(self) -> Any:
        """A new model, always with the same weights, in evaluation mode."""
        torch.manual_seed(0)
        model: Any = self.suite.make_config().build()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model.eval()

    @property
    def chunk(self) -> int:
        """Tokens of a chunk, m."""
        return int(self.model.config.chunk_length)

    @property
    def steps(self) -> list[int]:
        """Some retrieval steps s, the chunk's length the last."""
        return sorted({1, self.chunk})

    def tokens(self, length: int | None = None, seed: int = 0) -> Tensor:
        """Random tokens int64 [b, n], three chunks and one more by default."""
        shape = (NUM_ROWS, 3 * self.chunk + 1 if length is None else length)
        return self._draw(shape, seed)

    def retrieved(self, tokens: Tensor, step: int | None = None, *, neighbours: int = 2) -> Tensor:
        """Random neighbours int64 [b, W, k, r] of tokens int64 [b, n]."""
        count = num_windows(tokens.shape[1], self.chunk, step or self.chunk)
        return self._draw((len(tokens), count, neighbours, self.model.config.retrieved_length), 1)

    def other(self, tokens: Tensor) -> Tensor:
        """Tokens that differ everywhere."""
        return (tokens + 1) % int(self.model.config.vocabulary_size)

    def _draw(self, shape: Sequence[int], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.model.config.vocabulary_size, tuple(shape), generator=generator)


@torch.no_grad()
def logits_of(
    model: Any,
    tokens: Tensor,
    retrieved: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    padding: Tensor | None = None,
    retrieval_step: int | None = None,
) -> Tensor:
    """Compute logits [b, n, v] by `forward`."""
    logits: Tensor = model(tokens, retrieved, mask, padding=padding, retrieval_step=retrieval_step)
    return logits


def cached_logits(
    case: ModelCase,
    tokens: Tensor,
    retrieved: Tensor | None,
    pieces: Sequence[int],
    *,
    step: int | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    """Run tokens int64 [b, n] through `extend` in pieces of these lengths, the last as long as is left."""
    m, n, found, done = case.chunk, tokens.shape[1], [], 0
    cache = case.model.new_cache(padding=padding, retrieval_step=step)
    for length in pieces:
        end = min(n, done + length)
        first, last = (num_windows(place, m, step or m) for place in (done, end))
        part = None if retrieved is None or first == last else retrieved[:, first:last]
        found.append(case.model.extend(tokens[:, done:end], cache, part))
        done = end
        assert cache.length == done, f"cache.length is {cache.length} after {done} tokens"
        if done == n:
            break
    return torch.cat(found, dim=1)


def gradients_of(model: Any, tokens: Tensor, retrieved: Tensor | None) -> dict[str, Tensor | None]:
    """The gradient of every trained parameter, None where the loss does not reach it."""
    loss = model.loss(tokens, tokens, retrieved).sum()
    if loss.requires_grad:  # a frozen base without neighbours has nothing to learn
        loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def changed_positions(before: Tensor, after: Tensor) -> list[int]:
    """Positions at which logits [b, n, v] differ by more than rounding."""
    limit = TOLERANCE * max(1.0, float(before.abs().max()))
    found: list[int] = ((before - after).abs() > limit).any(-1).any(0).nonzero().flatten().tolist()
    return found


def check_same(actual: Tensor, expected: Tensor, what: str) -> None:
    """Assert that two tensors differ by rounding only."""
    assert actual.shape == expected.shape, f"{what}: shapes {list(actual.shape)} and {list(expected.shape)}"
    worst = float((actual - expected).abs().max()) if actual.numel() else 0.0
    limit = TOLERANCE * max(1.0, float(expected.abs().max()) if expected.numel() else 0.0)
    assert worst <= limit, f"{what}: they differ by {worst:.2g}"
