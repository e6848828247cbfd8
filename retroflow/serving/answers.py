"""Answers in the shapes of OpenAI: completions, chat completions, and their streams.

A stream is frames of JSON. The last frame before [DONE] always has the sources, even if there are none.
"""

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.serving.likelihood import TokenScore
from retroflow.serving.running import Event, Job, Result
from retroflow.serving.sources import ReadSource, as_annotations, as_own, as_search_results, read_sources

FINISH_REASONS = {"length": "length", "end_of_text": "stop", "stop": "stop"}
DONE = b"data: [DONE]\n\n"


@dataclass
class Choice:
    """One answer while it is made.

    Attributes:
        index: in `choices`.
        job: that makes it.
        echoes: whether the prompt is part of the text.
        characters: that were reported, for `text_offset`.
    """

    index: int
    job: Job
    echoes: bool = False
    characters: int = 0
    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    result: Result | None = None

    def sources(self, lookups_read: int) -> list[ReadSource]:
        """What was read; the result must be known."""
        assert self.result is not None
        before = len(self.job.prompt) if self.echoes else 0
        return read_sources(self.result, len(self.job.tokens), lookups_read=lookups_read, before=before)

    @property
    def finish_reason(self) -> str:
        """As OpenAI names it."""
        assert self.result is not None
        return FINISH_REASONS[self.result.generation.finish_reason] if self.result.generation else "length"


class Answer:
    """The answer to one request.

    Args:
        choices: all of them.
        model: its name.
        tokenizer: the model's.
        lookups_read: retrievals that a token reads.
        database: what is said of it.
        is_chat: in the shapes of /v1/chat/completions.
        with_usage: whether a stream ends with the usage.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        model: str,
        tokenizer: Tokenizer,
        lookups_read: int,
        database: dict[str, Any] | None,
        is_chat: bool,
        with_usage: bool = False,
    ) -> None:
        self.choices, self._tokenizer, self._lookups_read = choices, tokenizer, lookups_read
        self._database, self._is_chat, self._with_usage = database, is_chat, with_usage
        kind, prefix = ("chat.completion", "chatcmpl-") if is_chat else ("text_completion", "cmpl-")
        self._kind, self._last = kind, choices[0]
        self._head = {"id": prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}

    def whole(self) -> dict[str, Any]:
        """Return the answer; all choices must have ended."""
        choices = [self._whole_choice(choice) for choice in self.choices]
        return {**self._head, "object": self._kind, "choices": choices, "usage": self._usage(), **self._sources()}

    def first_frames(self) -> Iterable[bytes]:
        """Return the frames before any text."""
        for choice in self.choices:
            if self._is_chat:
                yield self._frame([self._delta(choice, {"role": "assistant", "content": ""})])
            elif choice.echoes and not choice.job.scores_prompt:
                yield self._frame([self._part(choice, choice.job.prompt, ())])

    def frames(self, choice: Choice, event: Event) -> Iterable[bytes]:
        """Return the frames of an event that does not end the stream."""
        text = event.text
        if event.scores and event.scores[0].is_first and choice.echoes:
            text = choice.job.prompt + text
        if text or event.scores:
            yield self._frame([self._part(choice, text, event.scores)])
        if event.result is not None:
            choice.result, self._last = event.result, choice
            if any(each.result is None for each in self.choices) or self._with_usage:
                yield self._frame([self._end(choice)])

    def last_frames(self) -> Iterable[bytes]:
        """Return what ends the stream."""
        if self._with_usage:
            yield self._frame([], usage=self._usage(), **self._sources())
        else:
            yield self._frame([self._end(self._last)], **self._sources())
        yield DONE

    def add(self, choice: Choice, event: Event) -> None:
        """Keep an event for the whole answer."""
        choice.text += event.text
        choice.scores += event.scores
        choice.result = event.result or choice.result

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        wants_scores = choice.job.num_logprobs is not None
        annotations = as_annotations(choice.sources(self._lookups_read))
        values: dict[str, Any] = {"index": choice.index, "finish_reason": choice.finish_reason}
        if self._is_chat:
            message = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": annotations}
            values |= {"message": message, "logprobs": self._chat_logprobs(choice.scores) if wants_scores else None}
            return values
        text = (choice.job.prompt if choice.echoes else "") + choice.text
        logprobs = self._logprobs(choice, choice.scores) if wants_scores else None
        return values | {"text": text, "logprobs": logprobs, "annotations": annotations}

    def _part(self, choice: Choice, text: str, scores: Sequence[TokenScore]) -> dict[str, Any]:
        if self._is_chat:
            return self._delta(choice, {"content": text}, self._chat_logprobs(scores) if scores else None)
        logprobs = self._logprobs(choice, scores) if scores else None
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def _end(self, choice: Choice) -> dict[str, Any]:
        annotations = as_annotations(choice.sources(self._lookups_read))
        if self._is_chat:
            return self._delta(choice, {"annotations": annotations}) | {"finish_reason": choice.finish_reason}
        return {
            "index": choice.index,
            "text": "",
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "annotations": annotations,
        }

    def _delta(self, choice: Choice, delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
        return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _frame(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._is_chat else self._kind
        if self._with_usage:
            more = {"usage": None} | more
        return frame({**self._head, "object": kind, "choices": choices, **more})

    def _sources(self) -> dict[str, Any]:
        by_choice = [choice.sources(self._lookups_read) for choice in self.choices]
        own = [
            entry
            for choice, found in zip(self.choices, by_choice, strict=True)
            for entry in as_own(found, choice.index)
        ]
        return {
            "search_results": as_search_results([each for found in by_choice for each in found]),
            "retroflow": {"sources": own, "database": self._database},
        }

    def _usage(self) -> dict[str, int]:
        prompts = {id(choice.job.tokens): len(choice.job.tokens) for choice in self.choices}
        results = [choice.result.generation for choice in self.choices if choice.result]
        new = sum(len(generation.tokens) for generation in results if generation)
        prompt = sum(prompts.values())
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _logprobs(self, choice: Choice, scores: Sequence[TokenScore]) -> dict[str, Any]:
        tokens = [self._spelled(score.token) for score in scores]
        offsets = []
        for token in tokens:
            offsets.append(choice.characters)
            choice.characters += len(token)
        tops = [self._top(score) for score in scores]
        return {
            "tokens": tokens,
            "token_logprobs": [None if score.is_first else score.logprob for score in scores],
            "top_logprobs": tops if choice.job.num_logprobs else None,
            "text_offset": offsets,
        }

    def _top(self, score: TokenScore) -> dict[str, float] | None:
        if score.is_first:
            return None
        top: dict[str, float] = {}
        for token, logprob in score.top:
            top.setdefault(self._spelled(token), logprob)
        return top

    def _chat_logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = self._spelled(token)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}

        content = [
            entry(score.token, score.logprob) | {"top_logprobs": [entry(*each) for each in score.top]}
            for score in scores
        ]
        return {"content": content, "refusal": None}

    def _spelled(self, token: int) -> str:
        return self._tokenizer.decode([token]) if token < self._tokenizer.vocabulary_size else f"<{token}>"


def frame(values: dict[str, Any]) -> bytes:
    """Return one frame of a stream of server-sent events."""
    return b"data: " + json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode() + b"\n\n"
