"""Choose the next token of every row from its logits.

Every row has its own stream of random numbers and draws one per token, so no row depends on the others in its batch.

Shapes: b rows, v vocabulary.
"""

import copy
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from retroflow.errors import DamagedDataError
from retroflow.generation.options import GenerationOptions


class Sampler:
    """Chooses tokens for a batch of rows.

    Args:
        options: temperature, top_k, top_p, repetition_penalty.
        prompts: the tokens of each row's prompt, to which repetition_penalty applies, too.
        seeds: one for each row.
        vocabulary_size: tokens that may be chosen; a model may have more logits than its tokenizer has tokens.
        device: of the logits.
    """

    def __init__(
        self,
        options: GenerationOptions,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        vocabulary_size: int,
        device: torch.device,
    ) -> None:
        self._options = options
        self._streams = [np.random.default_rng(seed) for seed in seeds]
        self._said: Tensor | None = None
        if options.repetition_penalty != 1:
            self._said = torch.zeros(len(prompts), vocabulary_size, dtype=torch.bool, device=device)
            for row, prompt in enumerate(prompts):
                self._said[row, torch.tensor(list(prompt), device=device)] = True
        self._vocabulary_size = vocabulary_size

    @classmethod
    def together(cls, samplers: Sequence["Sampler"]) -> "Sampler":
        """Return a sampler for the rows of several with the same `kind`; it draws from their streams."""
        if len(samplers) == 1:
            return samplers[0]
        made = copy.copy(samplers[0])
        made._streams = [stream for sampler in samplers for stream in sampler._streams]
        return made

    @property
    def kind(self) -> Hashable:
        """Equal for samplers whose rows `together` may draw at once."""
        if self._said is not None:
            return id(self)
        return self._options.temperature, self._options.top_k, self._options.top_p

    def select(self, rows: Sequence[int]) -> None:
        """Keep some of the rows, in this order."""
        self._streams = [self._streams[row] for row in rows]
        if self._said is not None:
            self._said = self._said[list(rows)]

    def choose(self, logits: Tensor) -> Tensor:
        """Choose a token for every row.

        Args:
            logits: float [b, v] of the next token.

        Returns:
            int64 [b].

        Raises:
            DamagedDataError: logits are not finite: the weights are damaged, or overflow in this precision.
        """
        logits = logits[:, : self._vocabulary_size]
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        most, likeliest = logits.max(-1)
        if not most.isfinite().all():
            raise DamagedDataError(
                "generate: the model gave logits that are not finite; its weights are damaged, or too large for "
                f"{logits.dtype}. Load them again, or compute in float32."
            )
        if self._said is not None:
            logits = penalised(logits, self._said, self._options.repetition_penalty)
            likeliest = logits.argmax(-1)
        if self._options.temperature == 0:
            chosen = likeliest
        else:
            drawn = torch.tensor([stream.random() for stream in self._streams], dtype=logits.dtype)
            chosen = drawn_from(logits, drawn.to(logits.device), self._options)
        if self._said is not None:
            self._said.scatter_(1, chosen[:, None], True)
        return chosen


def penalised(logits: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Make repeated tokens less likely (Keskar et al. 2019, arXiv:1909.05858, section 4.1).

    Args:
        logits: float [b, v].
        said: bool [b, v], tokens of the prompt or of the text so far.
        penalty: above 0; positive logits of these tokens are divided by it, negative ones multiplied.

    Returns:
        float [b, v].
    """
    return torch.where(said, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def drawn_from(logits: Tensor, drawn: Tensor, options: GenerationOptions) -> Tensor:
    """Turn one number per row into a token, by the inverse of the cumulative distribution.

    Args:
        logits: float [b, v].
        drawn: float [b], uniform in [0, 1).
        options: temperature above 0, top_k, top_p.

    Returns:
        int64 [b].
    """
    scaled = logits / options.temperature
    ids: Tensor | None = None
    if 0 < options.top_k < scaled.shape[-1]:
        scaled, ids = scaled.topk(options.top_k, dim=-1)  # [b, top_k], most likely first
    elif options.top_p < 1:
        scaled, ids = scaled.sort(dim=-1, descending=True, stable=True)  # [b, v]
    probabilities = scaled.softmax(-1)
    if options.top_p < 1:
        # A token is kept if those before it have less than top_p together, so the one that crosses top_p is the last.
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities * (before < options.top_p)
    cumulative = probabilities.cumsum(-1)
    place = (cumulative <= drawn[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    # Rounding may put the drawn number beyond the last token with a probability.
    positions = torch.arange(scaled.shape[-1], device=scaled.device)
    last = torch.where(probabilities > 0, positions, 0).amax(-1, keepdim=True)
    place = torch.minimum(place, last)
    return (place if ids is None else ids.gather(-1, place)).squeeze(-1)
