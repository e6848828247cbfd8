"""A conversation at a terminal: the answer as it is written, then what was read."""

from collections.abc import Iterable
from typing import Any, TextIO

from retroflow.console import say
from retroflow.errors import UsageError
from retroflow.generation import Generation, GenerationOptions
from retroflow.generation.decoding import Prompt, stream
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.session import describe_sources
from retroflow.serving.chat import chat_tokens, end_of_turn

COMMANDS = ("/off", "/on", "/new", "/quit")
MEANINGS = "/off and /on switch retrieval, /new forgets what was said, /quit ends; // begins a line with /"


class Conversation:
    """Answers lines: by the chat template if there is one, otherwise each line is continued as a text.

    Args:
        opened: the model.
        options: of generation, by name; k and the step are the model's.
    """

    def __init__(self, opened: LanguageModel, options: dict[str, Any]) -> None:
        self._opened, self._retrieves = opened, opened.database is not None
        self._is_chat = opened.tokenizer.chat_template is not None
        self._messages: list[dict[str, str]] = []
        stop = end_of_turn(opened.tokenizer) if self._is_chat else ()
        origin = opened.origin
        self._options = GenerationOptions(
            num_neighbours=origin.num_neighbours, retrieval_step=origin.retrieval_step, stop=stop, **options
        )

    def run(self, lines: Iterable[str], out: TextIO) -> None:
        """Answer lines until /quit or their end; answers go to `out`, everything else to stderr."""
        what = "answers messages" if self._is_chat else "has no chat template and continues each line"
        say(f"{self._opened.origin.recipe} {what}; {MEANINGS}")
        for line in lines:
            word = line.split()[0] if line.strip() else ""
            if word == "/quit":
                return
            if word in COMMANDS:
                self._obey(word)
            elif word:
                try:
                    self._answer(line[1:] if line.startswith("//") else line, out)
                except UsageError as error:  # the line cannot be answered; another one can
                    say(str(error))
                except KeyboardInterrupt:
                    say("stopped")

    def _obey(self, word: str) -> None:
        if word == "/new":
            self._messages = []
            return
        self._retrieves = word == "/on"
        if self._retrieves and self._opened.database is None:
            say("there is no database; start with --database")
        else:
            say("retrieval is on" if self._retrieves else "retrieval is off")

    def _answer(self, line: str, out: TextIO) -> None:
        prompt: Prompt = line
        asked = [*self._messages, {"role": "user", "content": line}]
        if self._is_chat:
            prompt = chat_tokens(self._opened.tokenizer, asked)
        database = self._opened.database if self._retrieves else None
        pieces = stream(self._opened.model, self._opened.tokenizer, [prompt], retriever=database, options=self._options)
        generation: Generation | None = None
        try:
            for piece in pieces:
                print(piece.text, end="", file=out, flush=True)
                generation = piece.generation
        finally:
            print(file=out, flush=True)
        if generation is None:
            return
        self._messages = [*asked, {"role": "assistant", "content": generation.text}]
        if database is not None:
            say(describe_sources(generation, database.metric))
