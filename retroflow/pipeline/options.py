"""The recipe's two sections that shape the artifacts: `data` and `neighbours`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from retroflow.corpus.documents import LARGEST_VOCABULARY, LEAST_VOCABULARY
from retroflow.errors import UsageError
from retroflow.options import checked_options

TRAINED = "train"  # value of data.tokenizer for a tokenizer that is trained on the corpus
LONGEST_CHUNK = 65_535  # lengths are stored in 16 bits


@checked_options("data")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How text becomes chunks and sequences, and the folder of the artifacts.

    Attributes:
        format: "text" for documents to continue; "qa" for questions and answers (docs/tasks.md): a question is padded
            at the left to one chunk, its answer is the next, and only the answer is predicted.
        passages: folder of a database (`retroflow db`), `DB@VERSION` for an older version, in which the passages of
            questions are found; only with format "qa".
        tokenizer: "train" for a byte-level BPE trained on the corpus, else a Hugging Face tokenizer's name or folder;
            null for the model's own (model.base of a RETRO-fit), or "train" if it has none.
        vocabulary_size: tokens in a trained vocabulary; otherwise not used.
        chunk_length: tokens in a chunk (m in the paper, 64).
        sequence_chunks: chunks in a training sequence; 2 with format "qa".
        artifacts_folder: folder of prepared artifacts, relative to the current folder; `~` is the home folder.
        num_workers: processes that load batches during training.
    """

    format: Literal["text", "qa"] = "text"
    passages: Annotated[str, MinLen(1)] | None = None
    tokenizer: Annotated[str, MinLen(1)] | None = None
    vocabulary_size: Annotated[int, Ge(LEAST_VOCABULARY), Le(LARGEST_VOCABULARY)] = 8192
    chunk_length: Annotated[int, Ge(2), Le(LONGEST_CHUNK)] = 64
    sequence_chunks: Annotated[int, Ge(1)] = 8
    artifacts_folder: Annotated[str, MinLen(1)] = "artifacts"
    num_workers: Annotated[int, Ge(0)] = 0

    def check_format(self, *, retrieval: bool) -> None:
        """Refuse options that do not fit the format.

        Raises:
            UsageError: they do not.
        """
        if self.format == "qa" and self.sequence_chunks != 2:
            raise UsageError(
                f"data.sequence_chunks is {self.sequence_chunks}; with data.format qa a sequence is a question and its "
                "answer, each of one chunk: 2."
            )
        if self.format == "qa" and retrieval and self.passages is None:
            raise UsageError(
                "data.passages is null; with data.format qa name the database in which passages are found "
                "(`retroflow db build`), or train without them: trainer.retrieval=false."
            )
        if self.passages is not None and self.format != "qa":
            raise UsageError(f'data.passages is "{self.passages}"; only data.format qa reads passages. Leave it out.')


@checked_options("neighbours")
@dataclass(frozen=True, kw_only=True)
class NeighbourOptions:
    """Which neighbours a chunk gets.

    Attributes:
        k: neighbours of every chunk.
        exclude_same_document: exclude chunks of the chunk's own document. If false, only the chunk itself is excluded.
        step: tokens between two lookups where a model is evaluated and, by default, where it generates, at most
            data.chunk_length; null for data.chunk_length. Training looks up once a chunk.
        overfetch: candidates fetched at first for every training chunk; doubled if fewer than `k` of them are legal.
    """

    k: Annotated[int, Ge(1)] = 2
    exclude_same_document: bool = True
    step: Annotated[int, Ge(1)] | None = None
    overfetch: Annotated[int, Ge(1)] = 16

    def step_for(self, chunk_length: int) -> int:
        """Return the tokens between two lookups, for chunks of so many tokens.

        Raises:
            UsageError: they are more than a chunk has.
        """
        if self.step is not None and self.step > chunk_length:
            raise UsageError(
                f"neighbours.step is {self.step}; allowed: a whole number from 1 to {chunk_length}, which is "
                "data.chunk_length. After a longer step some tokens would be in no query."
            )
        return chunk_length if self.step is None else self.step
