"""From tokens that come one by one to text that is never taken back."""

from collections.abc import Sequence

from retroflow.corpus.tokenizer import Tokenizer

UNFINISHED = "\ufffd"
"""What a tokenizer shows for bytes that are not, or not yet, a character."""


class TextStream:
    """The text of one row as it grows.

    A character may be cut over several tokens, and a stop text over several more: what could still become either is
    held back until it is decided.

    Args:
        tokenizer: decodes the row's tokens.
        stop: texts that end the row.

    Attributes:
        text: everything given out so far.
        stopped: whether a stop text was met; nothing is given out afterwards.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        # Tokens from _first on are decoded again with each new one; those before _read give a decoder that joins
        # words with spaces its context, and their text has been taken already.
        self._first = 0
        self._read = 0
        self._taken = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that is decided now, possibly none."""
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
        """End the row; returns what was held back, U+FFFD for a character that was never completed."""
        window = self._tokenizer.decode(self._tokens[self._first :])
        new, self._taken = window[self._taken :], len(window)
        return self._give_out(new, last=True)

    def _give_out(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        # The stop text that is complete first, so that it does not matter how the text came in tokens.
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
        """Characters at the end of the held text that may be the beginning of a stop text."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stop), default=0))
        return next(
            (
                length
                for length in range(longest, 0, -1)
                if any(stop.startswith(self._held[-length:]) for stop in self._stop)
            ),
            0,
        )
