"""What the endpoints share: the model, its worker, its database, and how a request becomes jobs."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from retroflow.devices import bf16_pays
from retroflow.generation import GenerationOptions
from retroflow.generation.arguments import unfit
from retroflow.generation.decoding import check_lengths, device_of, encoded
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.rows import Row
from retroflow.serving.answers import Answer, Choice
from retroflow.serving.bodies import TOO_LONG, BadRequest, Prompt, Sampling, check_length
from retroflow.serving.live import LiveDatabase
from retroflow.serving.measured import Measured
from retroflow.serving.options import Keys, ServerOptions
from retroflow.serving.running import Event, Job, RunningBatch
from retroflow.serving.worker import TimeIsUp, Worker

_SEEDS = 1 << 63
_GRACE_SECONDS = 10.0
"""How much longer than the limit a request waits for the worker, which looks at the time once per step."""


@dataclass(frozen=True)
class Wanted:
    """What the texts of a request have in common.

    Attributes:
        sampling: how tokens are drawn.
        num_logprobs: most likely tokens to report; None for no scores.
        echoes: whether the prompt is part of the answer.
        is_chat: whether the answer is a message.
        stop: texts that end an answer, beside those of the request.
    """

    sampling: Sampling
    num_logprobs: int | None = None
    echoes: bool = False
    is_chat: bool = False
    stop: tuple[str, ...] = ()


class Service:
    """A model that answers requests.

    Args:
        opened: the model; its database is replaced by each newer version.
        name: of the model.
        options: limits.
        keys: who may use it.
        num_neighbours: chunks to retrieve for a window; None for as many as in training.
        retrieval_step: tokens between two retrievals; None for those of the run's evaluation.

    Raises:
        ArgumentError: more neighbours than the database has chunks, or a step that the model cannot take.
    """

    def __init__(
        self,
        opened: LanguageModel,
        *,
        name: str,
        options: ServerOptions | None = None,
        keys: Keys | None = None,
        num_neighbours: int | None = None,
        retrieval_step: int | None = None,
    ) -> None:
        if num_neighbours is not None and opened.database is not None and num_neighbours > len(opened.database):
            raise unfit(
                "num_neighbours",
                f"is {num_neighbours}; allowed: 1 to {len(opened.database):,}, the chunks of the database.",
            )
        self.opened, self.name = opened, name
        self.options, self.keys = options or ServerOptions(), keys or Keys()
        self.created = int(time.time())
        self._retrieval = GenerationOptions(
            num_neighbours=opened.origin.num_neighbours if num_neighbours is None else num_neighbours,
            retrieval_step=opened.origin.retrieval_step if retrieval_step is None else retrieval_step,
        )
        self._chunk_length: int = opened.model.config.chunk_length
        self._step = self._retrieval.step_for(self._chunk_length)
        precision = self.options.precision
        automatic = precision == "auto" and opened.model.keeps_narrow_copy and bf16_pays(device_of(opened.model).type)
        batch = RunningBatch(opened, self._retrieval, narrow=automatic or precision == "bf16")
        self.measured = Measured()
        self.worker = Worker(
            batch, most_running=self.options.max_running, most_waiting=self.options.max_waiting, measured=self.measured
        )
        self.live = LiveDatabase(opened, batch.decoding)

    def answer_to(self, prompts: Sequence[Prompt], wanted: Wanted, events: "Events") -> Answer:
        """Make the jobs of a request; they are not queued yet.

        Raises:
            BadRequest, GenerationError: a prompt or an option that the model cannot continue.
        """
        sampling, choices = wanted.sampling, []
        n, first_seed = sampling.n, secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
        if len(prompts) * n > self.options.max_waiting:
            most = self.options.max_waiting
            raise BadRequest(f"{len(prompts)} prompts with n {n} are more than the {most} texts that may wait.", "n")
        for number, prompt in enumerate(prompts):
            if isinstance(prompt, str):
                check_length(self.opened.tokenizer, prompt, self.options.max_prompt_tokens, "prompt")
            ((text, tokens),) = encoded(self.opened.tokenizer, [prompt])
            self.measured.prompt(len(tokens))
            max_new = self._max_new_tokens(tokens, sampling)
            for copy in range(n):
                index = number * n + copy
                options = self._options(wanted, first_seed + index, max_new)
                job = Job(
                    prompt=text,
                    tokens=tokens,
                    options=options,
                    report=events.reporter(index),
                    max_new_tokens=max_new,
                    retrieves=sampling.retrieves,
                    num_logprobs=wanted.num_logprobs,
                    scores_prompt=wanted.echoes and wanted.num_logprobs is not None,
                    measures_influence=sampling.measures_influence,
                    streams=sampling.stream,
                    deadline=time.monotonic() + self.options.max_seconds,
                )
                choices.append(Choice(index, job, wanted.echoes))
        self._check_room(choices)
        return Answer(
            choices,
            model=self.name,
            tokenizer=self.opened.tokenizer,
            lookups_read=self.opened.model.lookups_read,
            database=self.live.description(),
            is_chat=wanted.is_chat,
            with_usage=sampling.stream and sampling.with_usage,
        )

    def _max_new_tokens(self, tokens: list[int], sampling: Sampling) -> int:
        most = self.options.max_prompt_tokens
        if len(tokens) > most:
            raise BadRequest(f"prompt has {len(tokens)} tokens; this server takes up to {most}.", "prompt", TOO_LONG)
        if sampling.max_tokens is not None:
            return sampling.max_tokens
        positions: int | None = self.opened.model.max_length
        if positions is None:
            return self.options.max_new_tokens
        return max(1, min(self.options.max_new_tokens, positions - len(tokens) - self._chunk_length))

    def _options(self, wanted: Wanted, seed: int, max_new_tokens: int) -> GenerationOptions:
        sampling = wanted.sampling
        draws = sampling.temperature > 0
        return GenerationOptions(
            max_new_tokens=max(1, max_new_tokens),
            temperature=sampling.temperature,
            top_k=sampling.top_k if draws else 0,
            top_p=max(sampling.top_p, 1e-9) if draws else 1.0,
            repetition_penalty=sampling.repetition_penalty,
            stop=(*sampling.stop, *wanted.stop),
            num_neighbours=self._retrieval.num_neighbours,
            retrieval_step=self._retrieval.retrieval_step,
            seed=seed,
        )

    def _check_room(self, choices: Sequence[Choice]) -> None:
        """Refuse at once what a model with learned positions would refuse later."""
        for choice in choices:
            row = Row(0, "", choice.job.tokens, self.opened.tokenizer, ())
            check_lengths(self.opened.model, [row], choice.job.options, self._step)


class Events:
    """Events of the jobs of one request, on their way from the worker's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def reporter(self, index: int) -> Callable[[Event], None]:
        """Return the function that a job reports its events to."""

        def report(event: Event) -> None:
            with suppress(RuntimeError):  # the server has ended
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

        return report

    async def of(self, jobs: Sequence[Job], max_seconds: float) -> AsyncIterator[tuple[int, Event]]:
        """Yield events until all jobs have ended; jobs that have not when this ends are cancelled.

        Raises:
            Exception: the error of a job.
        """
        left, end = set(range(len(jobs))), self._loop.time() + max_seconds + _GRACE_SECONDS
        try:
            while left:
                # A timeout around the loop would cancel the task that entered it; another one may be reading now.
                index, event = await asyncio.wait_for(self._queue.get(), end - self._loop.time())
                if event.error is not None:
                    raise event.error
                if event.result is not None:
                    left.discard(index)
                yield index, event
        except TimeoutError as error:
            raise TimeIsUp("the time limit of the server is reached; ask for fewer tokens.") from error
        finally:
            for job in jobs:
                job.is_cancelled = True
