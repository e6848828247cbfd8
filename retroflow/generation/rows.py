"""One prompt while it is continued: tokens, padding, text, retrievals."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.generation.options import GenerationOptions
from retroflow.generation.retrieved import Retrieval, Source
from retroflow.generation.text_stream import TextStream

FinishReason = Literal["length", "end_of_text", "stop"]


@dataclass(frozen=True)
class Generation:
    """The continuation of one prompt.

    Attributes:
        number: of the prompt, from 0.
        prompt: its text.
        tokens: every new token, including those of an end of text or of a stop text.
        text: the new text, without the prompt, the end of text or the stop text.
        finish_reason: "length" after max_new_tokens, "end_of_text" or "stop".
        retrievals: in chronological order, the prompt's windows first.
    """

    number: int
    prompt: str
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    retrievals: tuple[Retrieval, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every retrieved chunk in chronological order, with repetitions."""
        return tuple(source for retrieval in self.retrievals for source in retrieval.sources)


@dataclass(frozen=True)
class Piece:
    """A part of streamed text.

    Attributes:
        number: of its prompt.
        text: to append to the pieces before; may be empty.
        generation: the whole result, in the last piece of a prompt.
    """

    number: int
    text: str
    generation: Generation | None


class Row:
    """One prompt while it is continued.

    Attributes:
        number: of the prompt.
        tokens: prompt and new tokens.
        padding: padding tokens that the row has alone.
        added_padding: padding tokens because of a longer row in the batch.
        retrievals: so far.
        retrieves: whether its windows are looked up.
        offsets: of each new token, the characters of new text up to its end.
    """

    def __init__(
        self, number: int, prompt: str, tokens: Sequence[int], tokenizer: Tokenizer, stop: Sequence[str]
    ) -> None:
        self.number = number
        self.tokens = list(tokens)
        self.padding = 0
        self.added_padding = 0
        self.retrievals: list[Retrieval] = []
        self.retrieves = True
        self.offsets: list[int] = []
        self._prompt = prompt
        self._prompt_length = len(self.tokens)
        self._end_of_text = tokenizer.end_of_text
        self._text = TextStream(tokenizer, stop)
        self._reason: FinishReason | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._reason is None

    @property
    def num_new(self) -> int:
        """Number of new tokens so far."""
        return len(self.tokens) - self._prompt_length

    def own_length(self, end: int) -> int:
        """Return the row's own tokens among the first `end` of the padded row."""
        return end - self.padding - self.added_padding

    def window(self, end: int, chunk_length: int) -> list[int]:
        """Return the row's tokens in the window that ends at `end` of the padded row; none if it is all padding.

        Windows that exist only because of the added padding are left out: alone the row would not have them. So are
        those that end after the row.
        """
        stop = self.own_length(end)
        if not 0 < stop <= len(self.tokens) or end - self.added_padding < chunk_length:
            return []
        return self.tokens[max(0, stop - chunk_length) : stop]

    def followed_by(self, tokens: Sequence[int]) -> "Row":
        """Return a copy with more tokens, which are not new text."""
        row = copy.copy(self)
        row.tokens, row.retrievals = [*self.tokens, *tokens], list(self.retrievals)
        return row

    def advance(self, token: int, options: GenerationOptions) -> Piece:
        """Append a token; return the text that it makes final, and the whole result if the row has ended."""
        self.tokens.append(token)
        text = "" if token == self._end_of_text else self._text.push(token)
        if options.stop_at_end_of_text and token == self._end_of_text:
            self._reason = "end_of_text"
        elif self._text.stopped:
            self._reason = "stop"
        elif self.num_new == options.max_new_tokens:
            self._reason = "length"
        self.offsets.append(self._text.num_characters)
        if self._reason is None:
            return Piece(self.number, text, None)
        text += self._text.finish()
        new = tuple(self.tokens[self._prompt_length :])
        retrievals = tuple(self.retrievals)
        generation = Generation(self.number, self._prompt, new, self._text.text, self._reason, retrievals)
        return Piece(self.number, text, generation)


def aligned_length(length: int, chunk_length: int, step: int) -> int:
    """Return the shortest length >= `length` at which a window ends; whole chunks if step is chunk_length."""
    return chunk_length + max(0, -(-(length - chunk_length) // step)) * step
