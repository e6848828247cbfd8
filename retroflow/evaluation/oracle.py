"""What the best choice of neighbours would be worth: a bound for a better retriever, not a way to retrieve.

Each of 16 candidates is read alone for every window of a sequence, and the k with the lowest losses of the tokens that
read the window are taken, the best one first. A second pass reads these. Window by window the lower loss of this pass
and of that with the found neighbours counts, so an oracle is never worse than what was found; it looks at the text that
it predicts.

Shapes: b sequences, n tokens of a sequence, m tokens of a chunk, s tokens between lookups, W windows, c candidates, k
neighbours, r = 2m.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retroflow.data import Batch
from retroflow.evaluation.measuring import token_losses
from retroflow.planning.placement import Placement

CANDIDATES = 16


def oracle_losses(
    model: Any,
    placement: Placement,
    *,
    k: int,
    step: int | None = None,
    advance: Callable[[int], None] = lambda passes: None,
) -> Callable[[Batch, Batch], Tensor]:
    """Return a function from a batch with candidates and one with found neighbours to nats float [b, n].

    Args:
        model: a `RetrievalModel` on its device, in evaluation mode.
        placement: device and precision.
        k: neighbours that are taken of the candidates.
        step: s, None for m.
        advance: called with 0 between passes; may raise to stop.
    """
    losses = token_losses(model, placement, step)

    def oracle(candidates: Batch, found: Batch) -> Tensor:
        assert candidates.retrieved is not None and candidates.retrieved_mask is not None
        m, scores = model.config.chunk_length, []
        num_windows, count = candidates.retrieved.shape[1:3]
        for place in range(count):
            alone = taking(candidates, torch.full((len(found.tokens), num_windows, 1), place))
            scores.append(by_window(losses(alone), num_windows, m, step or m))
            advance(0)
        is_found = candidates.retrieved_mask.any(dim=-1)  # [b, W, c]
        of_candidates = torch.stack(scores, dim=-1).cpu().masked_fill(~is_found, torch.inf)
        best = losses(taking(candidates, of_candidates.sort(dim=-1, stable=True).indices[..., :k]))
        on = losses(found)
        is_better = by_window(best, num_windows, m, step or m) < by_window(on, num_windows, m, step or m)
        of_position = windows_read(on.shape[1], num_windows, m, step or m).to(on.device)
        return torch.where((of_position >= 0) & is_better[:, of_position.clamp(min=0)], best, on)

    return oracle


def taking(batch: Batch, places: Tensor) -> Batch:
    """Return a batch with some of its neighbours, by their places int64 [b, W, k]."""
    assert batch.retrieved is not None and batch.retrieved_mask is not None
    index = places[..., None].expand(*places.shape, batch.retrieved.shape[-1])
    return batch._replace(
        retrieved=batch.retrieved.gather(2, index), retrieved_mask=batch.retrieved_mask.gather(2, index)
    )


def windows_read(length: int, num_windows: int, m: int, step: int) -> Tensor:
    """Return the window that each of n positions reads, int64 [n]; -1 for those before the first window's end."""
    windows = torch.div(torch.arange(length) + 1 - m, step, rounding_mode="floor")
    return windows.clamp(min=-1, max=num_windows - 1)


def by_window(nats: Tensor, num_windows: int, m: int, step: int) -> Tensor:
    """Sum nats float [b, n] over the positions that read each window; float64 [b, W]."""
    places = windows_read(nats.shape[1], num_windows, m, step).to(nats.device) + 1
    sums = torch.zeros(len(nats), num_windows + 1, dtype=torch.float64, device=nats.device)
    return sums.index_add(1, places, nats.double())[:, 1:]
