"""Requests that are computed together: they join at the end of a window, and leave at any token.

All rows of a batch end their windows at the same step, so a row may join whenever a window of the running ones ends:
its prompt is processed alone, then the two caches are joined (docs/decisions/0081-serving.md). What a row generates
does not depend on the others.

Shapes: b rows, t tokens of a call, v vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retroflow.generation import Generation, GenerationOptions
from retroflow.generation.decoding import Decoding
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.rows import Row, aligned_length
from retroflow.generation.sampling import Sampler
from retroflow.serving.likelihood import TokenScore, nats_of, nats_without_retrieval, prompt_scores, score_of


@dataclass(frozen=True)
class Result:
    """What a job has given.

    Attributes:
        generation: text, tokens and retrievals; None if no token was wanted.
        offsets: of each new token, the characters of new text up to its end.
        nats: of each new token.
        nats_off: of the same tokens without retrieval; None if they were not wanted or nothing was retrieved.
    """

    generation: Generation | None
    offsets: Sequence[int] = ()
    nats: Sequence[float] = ()
    nats_off: Sequence[float] | None = None


@dataclass(frozen=True)
class Event:
    """What a job reports.

    Attributes:
        text: that is new and final.
        scores: of new tokens, if they are wanted; those of an echoed prompt come first.
        result: at the end.
        error: ends the job, too.
    """

    text: str = ""
    scores: tuple[TokenScore, ...] = ()
    result: Result | None = None
    error: Exception | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.result is not None or self.error is not None


@dataclass(eq=False)
class Job:
    """One text to continue.

    Attributes:
        prompt: its text.
        tokens: its tokens.
        options: of this job alone; k, step and align are those of the server.
        report: called with events, in the thread of the worker.
        max_new_tokens: 0 only scores the prompt.
        retrieves: False switches retrieval off.
        num_logprobs: the most likely tokens that are reported with each token; None for no scores at all.
        scores_prompt: report the prompt's tokens, too.
        measures_influence: score the new tokens without retrieval at the end.
        streams: report every token; otherwise only the end.
        deadline: moment of `time.monotonic` at which the job fails.
        is_cancelled: set by the client's side; the job ends within one step.
    """

    prompt: str
    tokens: list[int]
    options: GenerationOptions
    report: Callable[[Event], None]
    max_new_tokens: int = 16
    retrieves: bool = True
    num_logprobs: int | None = None
    scores_prompt: bool = False
    measures_influence: bool = True
    streams: bool = False
    deadline: float = float("inf")
    is_cancelled: bool = False


@dataclass(eq=False)
class _Running:
    job: Job
    row: Row
    sampler: Sampler
    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    generation: Generation | None = None


class RunningBatch:
    """Jobs that are computed together.

    Args:
        opened: the model and its database.
        options: of the server: num_neighbours and retrieval_step.
        narrow: generate in bfloat16; prompts are scored in the precision of the weights all the same, as
            `LanguageModel.score` does.
    """

    def __init__(self, opened: LanguageModel, options: GenerationOptions, *, narrow: bool = False) -> None:
        self._model, self._tokenizer = opened.model, opened.tokenizer
        self._chunk_length: int = opened.model.config.chunk_length
        self._step = options.step_for(self._chunk_length)
        self.decoding = Decoding(opened.model, opened.tokenizer, opened.database, options, self._step, None)
        self._narrow = self.decoding.narrow = narrow
        self._running: list[_Running] = []
        self._cache: Any = None

    def __len__(self) -> int:
        """Return the number of jobs."""
        return len(self._running)

    @property
    def jobs(self) -> list[Job]:
        """Those that run."""
        return [each.job for each in self._running]

    @property
    def can_join(self) -> bool:
        """Whether a window has just ended, so that others can join."""
        return not self._running or bool((self._cache.length - self._chunk_length) % self._step == 0)

    @property
    def has_limit(self) -> bool:
        """Whether the model has learned positions, so that padding counts."""
        return self._model.max_length is not None

    def has_room(self, job: Job) -> bool:
        """Whether the padded rows stay within the positions of the model if this job joins."""
        most: int | None = self._model.max_length
        if most is None or not self._running:
            return True
        own = aligned_length(len(job.tokens), self._chunk_length, self._step)
        length: int = self._cache.length
        lengths = [own, *(length - each.row.added_padding for each in self._running)]
        left = [job.max_new_tokens, *(each.job.max_new_tokens - each.row.num_new for each in self._running)]
        return max(lengths) + max(left) <= most

    def join(self, jobs: Sequence[Job]) -> None:
        """Process the prompts of jobs, and let them run with the others from their first token on.

        Jobs whose prompts need equal lengths are processed together.
        """
        by_length: dict[int, list[Job]] = {}
        for job in jobs:
            length = aligned_length(len(job.tokens), self._chunk_length, self._step)
            by_length.setdefault(length, []).append(job)
        for together in by_length.values():
            try:
                self._join(together)
            except Exception as error:
                for job in together:
                    job.report(Event(error=error))

    def step(self) -> None:
        """Compute one token of every job."""
        if not self._running:
            return
        tokens = [[each.row.tokens[-1]] for each in self._running]
        rows = [each.row for each in self._running]
        logits = self.decoding.extend(rows, self._cache, torch.tensor(tokens, device=self.decoding.device))
        self._keep(self._choose(self._running, logits))

    def leave(self, jobs: Sequence[Job]) -> None:
        """Stop jobs; nothing more is reported."""
        self._keep([each.job not in jobs for each in self._running])

    def fail(self, error: Exception) -> None:
        """Stop all jobs with an error."""
        failed, self._running, self._cache = self._running, [], None
        for each in failed:
            each.job.report(Event(error=error))

    def _join(self, jobs: list[Job]) -> None:
        new = [self._begun(job) for job in jobs if not job.is_cancelled]
        new = [each for each in new if each.job.max_new_tokens or self._end_scored(each)]
        if not new:
            return
        cache, tokens = self.decoding.start([each.row for each in new])
        chosen = self._choose(new, self.decoding.extend([each.row for each in new], cache, tokens))
        kept = [place for place, runs in enumerate(chosen) if runs]
        if not kept:
            return
        cache.select(torch.tensor(kept, device=self.decoding.device))
        new = [new[place] for place in kept]
        if self._running:
            lengths = [self._cache.length - each.row.added_padding for each in self._running]
            length = max(cache.length, *lengths)
            for members, own in ((self._running, self._cache), (new, cache)):
                for each in members:
                    each.row.added_padding += length - own.length
            try:
                self._cache.join(cache, length)
            except Exception as error:  # the rows no longer fit the cache
                self.fail(error)
                raise
        else:
            self._cache = cache
        self._running += new

    def _begun(self, job: Job) -> _Running:
        options = job.options
        row = Row(0, job.prompt, job.tokens, self._tokenizer, options.stop)
        row.retrieves = job.retrieves
        vocabulary = self._tokenizer.vocabulary_size
        sampler = Sampler(
            options, [job.tokens], [options.seed], vocabulary_size=vocabulary, device=self.decoding.device
        )
        running = _Running(job, row, sampler)
        if job.scores_prompt:
            retriever = self.decoding.retriever if job.retrieves else None
            scores = prompt_scores(self._unaligned(retriever), row, job.num_logprobs or 0)
            self._report_scores(running, scores)
        return running

    def _report_scores(self, running: _Running, scores: list[TokenScore]) -> None:
        if running.job.streams:
            running.job.report(Event(scores=tuple(scores)))
        else:
            running.scores += scores

    def _end_scored(self, running: _Running) -> bool:
        running.job.report(Event(scores=tuple(running.scores), result=Result(None)))
        return False

    def _choose(self, running: Sequence[_Running], logits: Tensor) -> list[bool]:
        """Choose the next token of every job; return which of them continue."""
        tokens = self._chosen(running, logits)
        log_probabilities, nats = None, [0.0] * len(tokens)
        if any(each.job.num_logprobs is not None for each in running):
            log_probabilities = logits.float().log_softmax(-1)
        elif any(each.job.measures_influence for each in running):
            ids = torch.tensor([0 if isinstance(each, Exception) else each for each in tokens], device=logits.device)
            nats = nats_of(logits, ids).tolist()
        continuing = [
            self._advance(
                each, tokens[place], nats[place], None if log_probabilities is None else log_probabilities[place]
            )
            for place, each in enumerate(running)
        ]
        self._end({each: each.generation for each in running if each.generation is not None})
        return continuing

    def _chosen(self, running: Sequence[_Running], logits: Tensor) -> list[int | Exception]:
        """Choose a token of every job, or say why there is none; jobs that draw alike do so at once."""
        kinds: dict[Any, list[int]] = {}
        for place, each in enumerate(running):
            kinds.setdefault(each.sampler.kind, []).append(place)
        tokens: dict[int, int | Exception] = {}
        for places in kinds.values():
            try:
                sampler = Sampler.together([running[place].sampler for place in places])
                chosen = sampler.choose(logits if len(kinds) == 1 else logits[places])
                tokens |= zip(places, chosen.tolist(), strict=True)
            except Exception:  # of one of them
                tokens |= {place: self._chosen_alone(running[place], logits[place : place + 1]) for place in places}
        return [tokens[place] for place in range(len(running))]

    def _chosen_alone(self, running: _Running, logits: Tensor) -> int | Exception:
        try:
            return int(running.sampler.choose(logits))
        except Exception as error:
            return error

    def _advance(
        self, running: _Running, token: int | Exception, nats: float, log_probabilities: Tensor | None
    ) -> bool:
        job = running.job
        try:
            if isinstance(token, Exception):
                raise token
            piece = running.row.advance(token, job.options)
            scores: tuple[TokenScore, ...] = ()
            if log_probabilities is not None:
                scored = score_of(log_probabilities, token, job.num_logprobs or 0)
                nats, scores = -scored.logprob, (scored,) if job.num_logprobs is not None else ()
            running.nats.append(nats)
            running.generation = piece.generation
            if piece.generation is not None or not job.streams:
                running.text += piece.text
                running.scores += scores
            elif piece.text or scores:
                job.report(Event(piece.text, scores))
            return piece.generation is None
        except Exception as error:
            job.report(Event(error=error))
        return False

    def _end(self, ended: Mapping[_Running, Generation]) -> None:
        """Report the end of jobs, after their tokens have been scored without retrieval, all together."""
        measured = {each: len(new.tokens) for each, new in ended.items() if each.job.measures_influence and new.sources}
        nats_off: dict[_Running, list[float]] = {}
        if measured:
            rows = [each.row for each in measured]
            try:
                scored = nats_without_retrieval(self._unaligned(None, self._narrow), rows, list(measured.values()))
                nats_off = dict(zip(measured, scored, strict=True))
            except Exception as error:
                for each in measured:
                    each.job.report(Event(error=error))
                ended = {each: new for each, new in ended.items() if each not in measured}
        for each, generation in ended.items():
            result = Result(generation, each.row.offsets, each.nats, nats_off.get(each))
            each.job.report(Event(each.text, tuple(each.scores), result))

    def _unaligned(self, retriever: Any, narrow: bool = False) -> Decoding:
        options = GenerationOptions(num_neighbours=self.decoding.options.num_neighbours, align=False)
        decoding = Decoding(self._model, self._tokenizer, retriever, options, self._step, None)
        decoding.narrow = narrow
        return decoding

    def _keep(self, kept: Sequence[bool]) -> None:
        if all(kept):
            return
        places = [place for place, stays in enumerate(kept) if stays]
        self._running = [self._running[place] for place in places]
        if self._running:
            self._cache.select(torch.tensor(places, device=self.decoding.device))
        else:
            self._cache = None
