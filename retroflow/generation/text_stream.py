"""Turn tokens into text piece by piece; text that was returned never changes."""

from collections.abc import Sequence

from retroflow.corpus.tokenizer import Tokenizer

UNFINISHED = "\ufffd"
"""Decoded form of bytes that are not, or not yet, a character."""


class TextStream:
    """The growing text of one row.

    A character may consist of several tokens, and so may a stop text. Text that could still become either is held back
    until it is final.

    Args:
        tokenizer: decodes the row's tokens.
        stop: texts that end the row.

    Attributes:
        text: all text returned so far.
        stopped: whether a stop text was reached; nothing is returned afterwards.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        # Tokens from _first on are decoded again with each new one. Those before _read are context for decoders that
        # join words with spaces; their text was already returned.
        self._first = 0
        self._read = 0
        self._taken = 0
        self._held = ""

    @property
    def num_characters(self) -> int:
        """Characters so far, those that are held back included."""
        return len(self.text) + len(self._held)

    def push(self, token: int) -> str:
        """Add a token; return the text that is now final, possibly none."""
        self._tokens.append(token)
        window = self._tokenizer.decode(self._tokens[self._first :])
        decided = window.rstrip(UNFINISHED)
        new = decided[self._taken :]
        self._taken = max(self._taken, len(decided))
        if len(decided) == len(window):
            self._first, self._read = self._read, len(self._tokens)
            self._taken = len(self._tokenizer.decode(self._tokens[self._first : self._read]))
        return self._give_out(new, last=False)

    def finish(self) -> str:
        """End the row; return what was held back, with U+FFFD for an incomplete character."""
        window = self._tokenizer.decode(self._tokens[self._first :])
        new, self._taken = window[self._taken :], len(window)
        return self._give_out(new, last=True)

    def _give_out(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        # The stop text that is complete first, so the division into tokens does not matter.
        found = [(place + len(stop), place) for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            given, self._held = self._held[: min(found)[1]], ""
        else:
            keep = 0 if last else self._undecided()
            given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.text += given
        return given

    def _undecided(self) -> int:
        """Return the number of characters at the end of the held text that may begin a stop text."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stop), default=0))
        return next(
            (
                length
                for length in range(longest, 0, -1)
                if any(stop.startswith(self._held[-length:]) for stop in self._stop)
            ),
            0,
        )
