"""A model that is ready to use, with its tokenizer and its database."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.database.database import Database
from retroflow.errors import GenerationError
from retroflow.generation.arguments import ArgumentError
from retroflow.generation.database import RetrievalDatabase
from retroflow.generation.decoding import generate, stream
from retroflow.generation.export import write_exported
from retroflow.generation.options import GenerationOptions
from retroflow.generation.rows import Generation, Piece
from retroflow.generation.scoring import Score, score, split_tokens
from retroflow.options.annotations import parameters
from retroflow.options.fitting import Fitting
from retroflow.options.types import Block
from retroflow.runs.origin import Origin


class Options(TypedDict, total=False):
    """Options of generation by name; see `GenerationOptions`."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    stop: tuple[str, ...]
    stop_at_end_of_text: bool
    num_neighbours: int
    retrieval_step: int | None
    align: bool
    seed: int
    batch_size: int


@dataclass(frozen=True)
class LanguageModel:
    """A language model that retrieves from a database while it writes.

    Attributes:
        model: on its device, in evaluation mode.
        tokenizer: the model's.
        origin: the run and its training.
        database: for retrieval; None switches retrieval off.
        card: its model card.
    """

    model: Any
    tokenizer: Tokenizer
    origin: Origin
    database: RetrievalDatabase | None
    card: str = ""

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        database = "no database" if self.database is None else f"database {self.database.name}"
        return f"LanguageModel({self.origin.recipe}, step {self.origin.step:,}, {size:,} parameters, {database})"

    @overload
    def generate(self, prompts: str, **options: Unpack[Options]) -> Generation: ...

    @overload
    def generate(self, prompts: list[str], **options: Unpack[Options]) -> list[Generation]: ...

    def generate(self, prompts: str | list[str], **options: Unpack[Options]) -> Generation | list[Generation]:
        """Continue one prompt, or several.

        Args:
            prompts: a text, or a list of texts.
            options: as in `GenerationOptions`: max_new_tokens, temperature, stop, ...

        Returns:
            One `Generation` (text, sources, finish_reason, ...) for a text, a list of them for a list.

        Raises:
            GenerationError: a prompt or an option does not fit.
        """
        several = [prompts] if isinstance(prompts, str) else prompts
        found = generate(self.model, self.tokenizer, several, retriever=self.database, options=self._options(options))
        return found[0] if isinstance(prompts, str) else found

    def stream(self, prompt: str, **options: Unpack[Options]) -> Iterator[Piece]:
        """Continue a prompt, and yield text as soon as it is final.

        Args:
            prompt: a text.
            options: as in `GenerationOptions`.

        Returns:
            Pieces with `.text`; the last one has the whole `.generation`.

        Raises:
            GenerationError: as `generate`, at once.
        """
        return stream(self.model, self.tokenizer, [prompt], retriever=self.database, options=self._options(options))

    def score(
        self, text: str, *, context: str = "", num_neighbours: int | None = None, retrieval_step: int | None = None
    ) -> Score:
        """Measure how well the model predicts a text: nats of every token, bits per byte, retrieved chunks.

        Args:
            text: at least one token.
            context: what comes before it, and is not scored; neighbours are retrieved where it ends.
            num_neighbours: chunks to retrieve for a window; None for as many as in training.
            retrieval_step: tokens between two retrievals; None for those of the run's evaluation.

        Raises:
            GenerationError: the text has no tokens.
        """
        return score(
            self.model,
            self.tokenizer,
            text,
            context=context,
            retriever=self.database,
            num_neighbours=self.origin.num_neighbours if num_neighbours is None else num_neighbours,
            retrieval_step=self.origin.retrieval_step if retrieval_step is None else retrieval_step,
        )

    @property
    def longest_input(self) -> int:
        """The most tokens to read at a time: what the model can, or was made for, or was trained with."""
        learned: int | None = self.model.max_length
        if learned is None:
            return int(self.model.context_length or self.origin.sequence_length)
        # with retrieval a context is padded up to the end of a window
        return learned if self.database is None else learned - int(self.model.config.chunk_length) + 1

    def split_tokens(self, context: str, text: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a context, cut from the left where it is too long, and those of a text after it.

        Raises:
            GenerationError: the text has no token, or leaves no room for a context.
        """
        before, own = split_tokens(self.tokenizer, text, context)
        return self.cut_context(before, own), own

    def cut_context(self, context: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Cut a context from the left so that it and the tokens after it can be read.

        Raises:
            GenerationError: the tokens leave no room for one.
        """
        room: int = self.longest_input + 1 - len(tokens)  # the last token is not read
        if room < 1:
            raise GenerationError(
                f"text: {len(tokens)} tokens; this model reads {self.longest_input} at a time. Shorten the text."
            )
        return list(context[-room:])

    def with_database(self, database: RetrievalDatabase | Database | Path | str | None) -> "LanguageModel":
        """Return the same model with another database; None switches retrieval off.

        Args:
            database: an open one, or its folder.

        Raises:
            GenerationError: it was made with another tokenizer or chunk length.
        """
        reader = {"tokenizer": self.tokenizer, "chunk_length": self.model.config.chunk_length}
        if isinstance(database, Database):
            database = RetrievalDatabase.of(database, **reader)
        elif isinstance(database, str | Path):
            database = RetrievalDatabase.open(Path(database), **reader)
        return replace(self, database=database)

    def save(self, folder: Path | str) -> None:
        """Write weights, configuration and tokenizer, as `retroflow export` does; `retroflow.load` opens the folder.

        Raises:
            UsageError: the folder is not empty.
            RetroflowError: it cannot be written.
        """
        write_exported(Path(folder), self.model.save_pretrained, self.tokenizer, self.origin, self.card)

    def _options(self, given: Options) -> GenerationOptions:
        fitting = Fitting()
        values = Options(num_neighbours=self.origin.num_neighbours, retrieval_step=self.origin.retrieval_step) | given
        options: GenerationOptions = fitting.fit(
            values, Block(parameters(GenerationOptions).options, GenerationOptions)
        )
        if fitting.complaints:
            raise ArgumentError.of_complaints(fitting.complaints, "")
        return options
