"""Log probabilities of tokens: those of a prompt, those that are chosen, and those without retrieval.

Shapes: t tokens, v vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from retroflow.generation.decoding import Decoding
from retroflow.generation.rows import Row

_NUMBERS_AT_ONCE = 1 << 17
"""Logits of a part that is summed; the caches of a processor hold them while several passes go over them."""


@dataclass(frozen=True)
class TokenScore:
    """How likely a token was.

    Attributes:
        token: its number.
        logprob: in nats; 0 for a first token, which nothing predicts.
        top: the most likely tokens there with theirs, most likely first.
        is_first: whether nothing predicts it.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    is_first: bool = False


def score_of(log_probabilities: Tensor, token: int, num_top: int) -> TokenScore:
    """Look up a token in log probabilities float32 [v]."""
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        values, ids = log_probabilities.topk(min(num_top, len(log_probabilities)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenScore(token, float(log_probabilities[token]), top)


def nats_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the nats of tokens int64 [..., t] by logits float [..., t, v], without the probability of any other."""
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(-1, tokens[..., None])[..., 0]


@torch.inference_mode()
def prompt_scores(decoding: Decoding, row: Row, num_top: int) -> list[TokenScore]:
    """Score the tokens of a prompt, as `LanguageModel.score` scores a text without context.

    Args:
        decoding: without alignment: the first window is the text's first chunk.
        row: with the prompt; it is not changed.
        num_top: most likely tokens to report at each place.
    """
    scores = [TokenScore(row.tokens[0], 0.0, is_first=True)]
    for logits, targets in decoding.predicted(row.followed_by([])):
        scores += map(score_of, logits.log_softmax(-1), targets.tolist(), repeat(num_top))
    return scores


@torch.inference_mode()
def nats_without_retrieval(decoding: Decoding, rows: Sequence[Row], counts: Sequence[int]) -> list[list[float]]:
    """Return for each row the nats of its last tokens, given all before them and no neighbours.

    Args:
        decoding: without retriever and alignment.
        rows: prompt and new tokens; processed together.
        counts: how many tokens of each, fewer than it has.
    """
    read = [row.followed_by([]) for row in rows]
    cache, tokens = decoding.start(read)
    first, done, parts = tokens.shape[1] - max(counts), 0, list[Tensor]()
    for logits in decoding.read(read, cache, tokens):
        begin, done = done, done + logits.shape[1]
        wanted = tokens[:, max(first, begin + 1) : done + 1]  # [b, t], what these logits predict
        predicting = logits[:, max(first - 1, begin) - begin :][:, : wanted.shape[1]]
        at_once = max(1, _NUMBERS_AT_ONCE // logits[:, :1].numel())
        pairs = (torch.split(each, at_once, dim=1) for each in (predicting, wanted))
        parts += map(nats_of, *pairs)
    ended = torch.cat(parts, dim=1)  # [b, longest]
    return [list(row[len(row) - count :].tolist()) for row, count in zip(ended, counts, strict=True)]
