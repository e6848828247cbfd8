"""Log probabilities of tokens: those of a prompt, those that are chosen, and those without retrieval.

Shapes: t tokens, v vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from retroflow.generation.decoding import Decoding
from retroflow.generation.rows import Row


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


def nats_of(logits: Tensor, tokens: Tensor) -> list[float]:
    """Return the nats of tokens int64 [t] by logits float [t, v]; no probability of another token is computed."""
    logits = logits.float()
    return list((logits.logsumexp(-1) - logits.gather(-1, tokens[:, None])[:, 0]).tolist())


@torch.inference_mode()
def prompt_scores(decoding: Decoding, row: Row, num_top: int) -> list[TokenScore]:
    """Score the tokens of a prompt, as `LanguageModel.score` scores a text without context.

    Args:
        decoding: without alignment: the first window is the text's first chunk.
        row: with the prompt; it is not changed.
        num_top: most likely tokens to report at each place.
    """
    read = row.followed_by([])
    cache, tokens = decoding.start([read])
    scores = [TokenScore(row.tokens[0], 0.0, is_first=True)]
    for logits in decoding.read([read], cache, tokens):
        for each in logits[0].float().log_softmax(-1):
            if len(scores) < len(row.tokens):
                scores.append(score_of(each, row.tokens[len(scores)], num_top))
    return scores


@torch.inference_mode()
def nats_without_retrieval(decoding: Decoding, row: Row, num_tokens: int) -> list[float]:
    """Return the nats of the last tokens of a row, given all before them and no neighbours.

    Args:
        decoding: without retriever and alignment.
        row: prompt and new tokens.
        num_tokens: how many.
    """
    read = row.followed_by([])
    cache, tokens = decoding.start([read])
    first, done, nats = tokens.shape[1] - num_tokens, 0, list[float]()
    for logits in decoding.read([read], cache, tokens):
        done += logits.shape[1]
        wanted = tokens[0, max(first, done - logits.shape[1] + 1) : done + 1]  # what these logits predict
        predicting = logits[0, logits.shape[1] - len(wanted) - (done == tokens.shape[1]) :][: len(wanted)]
        nats += nats_of(predicting, wanted)
    return nats
