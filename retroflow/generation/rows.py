"""One prompt on its way: its tokens, its padding, its text, what was retrieved for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.generation.retrieved import Retrieval, Source
from retroflow.generation.text_stream import TextStream

FinishReason = Literal["length", "end_of_text", "stop"]


@dataclass(frozen=True)
class Generation:
    """What was generated for one prompt.

    Attributes:
        number: of the prompt, from 0.
        prompt: its text.
        tokens: every token that was chosen, those of an end of text or of a stop text included.
        text: the new text, without the prompt, the end of text or the stop text.
        finish_reason: "length" after max_new_tokens, "end_of_text" or "stop".
        retrievals: in order of time, the prompt's windows first.
    """

    number: int
    prompt: str
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    retrievals: tuple[Retrieval, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every chunk that was read, in order of time; one that was found twice is there twice."""
        return tuple(source for retrieval in self.retrievals for source in retrieval.sources)


@dataclass(frozen=True)
class Piece:
    """Text as it appears.

    Attributes:
        number: of the prompt it belongs to.
        text: to be appended to what came before; may be empty.
        generation: the whole, with the last piece of a prompt.
    """

    number: int
    text: str
    generation: Generation | None


class Row:
    """One prompt while it is continued.

    Attributes:
        number: of the prompt.
        tokens: prompt and new tokens.
        padding: tokens of padding that the row has alone.
        added_padding: what a longer row in the same batch adds to it.
        retrievals: made so far.
        rest: text that was held back until the row ended.
    """

    def __init__(
        self, number: int, prompt: str, tokens: Sequence[int], tokenizer: Tokenizer, stop: Sequence[str]
    ) -> None:
        self.number = number
        self.tokens = list(tokens)
        self.padding = 0
        self.added_padding = 0
        self.retrievals: list[Retrieval] = []
        self.rest = ""
        self._prompt = prompt
        self._prompt_length = len(self.tokens)
        self._end_of_text = tokenizer.end_of_text
        self._text = TextStream(tokenizer, stop)
        self._reason: FinishReason | None = None

    @property
    def is_running(self) -> bool:
        """Whether nothing has ended it."""
        return self._reason is None

    @property
    def met_stop(self) -> bool:
        """Whether its new text has come to a stop text."""
        return self._text.stopped

    @property
    def num_new(self) -> int:
        """Tokens chosen so far."""
        return len(self.tokens) - self._prompt_length

    def own_length(self, end: int) -> int:
        """Tokens of the row that are known where `end` of the padded row are."""
        return end - self.padding - self.added_padding

    def window(self, end: int, chunk_length: int) -> list[int]:
        """The row's tokens in the window that ends at `end` of the padded row; none if it is all padding.

        Windows that only the added padding makes possible are left out: alone the row would not have them.
        """
        stop = self.own_length(end)
        if stop <= 0 or end - self.added_padding < chunk_length:
            return []
        return self.tokens[max(0, stop - chunk_length) : stop]

    def take(self, token: int) -> str:
        """Append a token; returns the text that is decided by it."""
        self.tokens.append(token)
        return "" if token == self._end_of_text else self._text.push(token)

    def end(self, reason: FinishReason) -> None:
        """Stop here."""
        self._reason = reason
        self.rest = self._text.finish()

    def generation(self) -> Generation:
        """What came out; the row must have ended."""
        assert self._reason is not None
        new = tuple(self.tokens[self._prompt_length :])
        return Generation(self.number, self._prompt, new, self._text.text, self._reason, tuple(self.retrievals))


def aligned_length(length: int, chunk_length: int, step: int) -> int:
    """The shortest length of at least `length` at which a window ends; whole chunks where step is chunk_length."""
    return chunk_length + max(0, -(-(length - chunk_length) // step)) * step
