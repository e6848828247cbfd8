"""In-context retrieval: what a model without retrieval makes of passages that stand in its prompt.

A segment is predicted at once: window w of a sequence ends when T(w) = f + w * s tokens are known, and the tokens
T(w) + 1 to T(w) + s after it (counted from 1) are predicted from

    [passages found for window w, the best one first] [the sequence's tokens before those that are predicted]

computed anew for every window. A passage is a neighbour and its continuation, without its padding; nothing stands
between passages and text. A window without passages is predicted without them, and so are the first f tokens.
With f = s = m these are the chunks.

The protocol of Ram et al. 2023 (arXiv:2302.00083; eval_lm.py of AI21Labs/in-context-ralm), `ram`: a prompt is never
longer than a window of text, over whose first tokens one passage is written, cut to 256 tokens; s = 4. Zero-shot
re-ranking takes that one of 16 passages under which the last 16 tokens before the predicted ones are likeliest. AI21
slides full windows over one long text, and predicts the first window without passages: f is the length of a window.
Here each sequence is a text of its own, as in all other rows: f = m, and a passage stands before the text until both
together fill a window.

Shapes: b sequences, n tokens of a sequence, m tokens of a chunk, W windows, k neighbours, r = 2m, p prompts, t tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from retroflow.data import Batch
from retroflow.data.batch import NOT_PREDICTED
from retroflow.model.loss import token_losses
from retroflow.planning.placement import Placement

RAM_PASSAGE_TOKENS = 256
"""The most tokens of a passage. Source: Ram et al. 2023."""

RAM_STEP, RAM_QUERY_TOKENS = 4, 32
"""Tokens between two lookups, and tokens of a query for BM25 (64 for dense retrievers). Source: Ram et al. 2023."""

RAM_CANDIDATES, RAM_RANK_TOKENS = 16, 16
"""Passages that are re-ranked, and the tokens that rank them. Source: Ram et al. 2023."""

TOKENS_AT_ONCE = 8192
"""Tokens of the prompts that are computed together."""


@dataclass(frozen=True)
class Prompting:
    """How neighbours are put into the prompt.

    Attributes:
        passages: how many, the best ones; None for all.
        passage_tokens: tokens of a passage, from its beginning; None for all.
        length: tokens of the prompt; None for the context that the model was made for.
        step: s, tokens that are predicted from one prompt; None for m. Neighbours were looked up as often.
        first: f, tokens that are predicted without passages; None for m.
        rank_tokens: of the passages the one is used under which so many tokens before the predicted ones are likeliest;
            0 for all passages in one prompt.
    """

    passages: int | None = None
    passage_tokens: int | None = None
    length: int | None = None
    step: int | None = None
    first: int | None = None
    rank_tokens: int = 0


def ram(
    window: int,
    *,
    step: int = RAM_STEP,
    first: int | None = None,
    passage_tokens: int = RAM_PASSAGE_TOKENS,
    candidates: int = 1,
    rank_tokens: int = RAM_RANK_TOKENS,
) -> Prompting:
    """Return the protocol of Ram et al.

    Args:
        window: tokens of a window, the last of which is only predicted.
        step: s.
        first: f, m if None.
        passage_tokens: the most tokens of a passage.
        candidates: passages that are re-ranked; 1 for the best one as it was found.
        rank_tokens: before the predicted ones, which re-rank.
    """
    return Prompting(
        passages=candidates,
        passage_tokens=passage_tokens,
        length=window - 1,
        step=step,
        first=first,
        rank_tokens=rank_tokens if candidates > 1 else 0,
    )


def prompt_of(batch: Batch, row: int, chunk: int, m: int, prompting: Prompting, context_length: int | None) -> Tensor:
    """Return the tokens int64 [t] from whose last m positions the tokens of a chunk (from 0) are predicted.

    Where they would be too many, the text is cut at its left, but the chunk before the predicted one stays; then the
    passages are cut at their right.
    """
    tokens = batch.tokens[row]
    passages = torch.cat([*passages_of(batch, row, chunk - 1, prompting), tokens[:0]])
    return _joined(passages, tokens, _Segment(chunk * m, m, m), _room(prompting, context_length))


def passages_of(batch: Batch, row: int, window: int, prompting: Prompting) -> list[Tensor]:
    """Return the passages of a window, int64 [t] each, the best one first."""
    assert batch.retrieved is not None and batch.retrieved_mask is not None
    retrieved, real = batch.retrieved[row, window], batch.retrieved_mask[row, window]  # [k, r]
    passages = [tokens[is_real] for tokens, is_real in zip(retrieved, real, strict=True) if is_real.any()]
    return [passage[: prompting.passage_tokens] for passage in passages[: prompting.passages]]


def padded(inputs: list[Tensor], targets: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return inputs of several lengths as tokens int64 [b, t], and the targets of their last positions likewise.

    Padding is after all that is predicted.
    """
    longest = max(map(len, inputs))
    tokens = torch.stack([F.pad(row, (0, longest - len(row))) for row in inputs])
    wanted = torch.full_like(tokens, NOT_PREDICTED)
    for row, (of_row, target) in enumerate(zip(inputs, targets, strict=True)):
        wanted[row, len(of_row) - len(target) : len(of_row)] = target
    return tokens, wanted


def prompted_losses(
    model: Any, placement: Placement, prompting: Prompting, *, advance: Callable[[int], None] = lambda prompts: None
) -> Callable[[Batch], Tensor]:
    """Return a function from a batch to float32 [b, n], nats of each position, 0 where nothing is predicted.

    Args:
        model: a `RetrievalModel` that gives its last states, in evaluation mode; it is used without retrieval.
        placement: its device and precision.
        prompting: how neighbours are put into the prompt.
        advance: called with 0 between prompts; may raise to stop.
    """

    def losses(batch: Batch) -> Tensor:
        m = model.config.chunk_length
        nats = torch.zeros(batch.tokens.shape, dtype=torch.float32)
        prompts = list(_prompts(batch, m, prompting, _room(prompting, model.context_length)))
        prompts.sort(key=lambda prompt: (prompt.start, prompt.row))  # those of like length together: less padding
        for some in _by_size(prompts):
            of_prompts = _nats(model, placement, [prompt.inputs for prompt in some], [each.targets for each in some])
            for choice in _likeliest(some, of_prompts):
                prompt, found = some[choice], of_prompts[choice]
                nats[prompt.row, prompt.start : prompt.stop] = found[len(found) - (prompt.stop - prompt.start) :]
            advance(0)
        return nats

    return losses


class _Segment(NamedTuple):
    """Tokens predicted from one prompt: `step` of them (fewer at the end) after the first `known`.

    `kept` tokens before them are never cut off.
    """

    known: int
    step: int
    kept: int


class _Prompt(NamedTuple):
    """Inputs int64 [t] that predict targets int64 [s] of their last positions.

    The targets of positions start to stop (excluded) of a row are the last of them; those before only rank passages.
    """

    row: int
    start: int
    stop: int
    inputs: Tensor
    targets: Tensor


def _room(prompting: Prompting, context_length: int | None) -> int | None:
    rooms = [room for room in (prompting.length, context_length) if room is not None]
    return min(rooms) if rooms else None


def _joined(passages: Tensor, tokens: Tensor, segment: _Segment, room: int | None) -> Tensor:
    """Return passages int64 [p] before the tokens int64 [n] that a segment is predicted from; see `prompt_of`."""
    stop = segment.known + segment.step - 1
    room = len(passages) + stop if room is None else room
    text = min(max(room - len(passages), segment.kept + segment.step - 1), room, stop)
    return torch.cat([passages[: room - text], tokens[stop - text : stop]])


def _prompts(batch: Batch, m: int, prompting: Prompting, room: int | None) -> Iterator[_Prompt]:
    """Yield the prompts of a batch, row by row and window by window; those of one window follow each other."""
    length = batch.tokens.shape[1]
    first, step = prompting.first or m, prompting.step or m
    for row, tokens in enumerate(batch.tokens):
        start = min(first - 1, length)
        yield _Prompt(row, 0, start, tokens[:start], batch.targets[row, :start])
        for window, known in enumerate(range(first, length + 1, step)):
            segment = _Segment(known, step, max(m, prompting.rank_tokens + 1))
            start, stop = known - 1, min(known - 1 + step, length)
            passages = passages_of(batch, row, window, prompting)
            ranked = min(prompting.rank_tokens, known - 1, max(0, (room or known) - step)) if len(passages) > 1 else 0
            targets = batch.targets[row, start - ranked : stop]
            joined = [torch.cat([*passages, tokens[:0]])]
            for before in passages if ranked else joined:
                yield _Prompt(row, start, stop, _joined(before, tokens, segment, room), targets)


def _by_size(prompts: list[_Prompt]) -> Iterator[list[_Prompt]]:
    """Yield consecutive prompts of at most `TOKENS_AT_ONCE` padded tokens; those of one window stay together."""
    some: list[_Prompt] = []
    for place, prompt in enumerate(prompts):
        if not len(prompt.inputs):
            continue
        is_new = place == 0 or prompts[place - 1][:2] != prompt[:2]
        longest = max(len(each.inputs) for each in [*some, prompt])
        if some and is_new and (len(some) + 1) * longest > TOKENS_AT_ONCE:
            yield some
            some = []
        some.append(prompt)
    if some:
        yield some


def _likeliest(prompts: list[_Prompt], nats: list[Tensor]) -> list[int]:
    """Return for every window the place of the prompt under which the tokens that rank are likeliest."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for place, (prompt, found) in enumerate(zip(prompts, nats, strict=True)):
        ranking = float(found[: len(found) - (prompt.stop - prompt.start)].sum(dtype=torch.float64))
        best[prompt[:2]] = min(best.get(prompt[:2], (ranking, place)), (ranking, place))
    return [place for _, place in best.values()]


@torch.no_grad()
def _nats(model: Any, placement: Placement, inputs: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    """Return float32 [s] for each prompt, nats of its targets [s] after its last positions, on the CPU."""
    tokens, wanted = padded(inputs, targets)
    tokens, wanted = tokens.to(placement.device), wanted.to(placement.device)
    is_wanted = wanted != NOT_PREDICTED
    with torch.autocast(placement.accelerator, torch.bfloat16, enabled=placement.uses_bf16):
        found = token_losses(model.hidden(tokens)[is_wanted], model.output_weights(), wanted[is_wanted])
    nats = torch.zeros(wanted.shape).masked_scatter(is_wanted.cpu(), found.float().cpu())
    lengths = [(len(of_row), len(target)) for of_row, target in zip(inputs, targets, strict=True)]
    return [of_prompt[stop - count : stop] for of_prompt, (stop, count) in zip(nats, lengths, strict=True)]
