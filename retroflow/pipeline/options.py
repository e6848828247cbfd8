"""The recipe's two sections that shape the artifacts: `data` and `neighbours`."""

from dataclasses import dataclass

from retroflow.errors import RecipeError

TRAINED = "train"  # data.tokenizer's word for a tokenizer that is trained on the corpus
LONGEST_CHUNK = 65_535  # lengths are stored in 16 bits


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How text becomes chunks and sequences, and where the artifacts are kept.

    Attributes:
        tokenizer: "train" for a byte-level BPE trained on the corpus, else a Hugging Face tokenizer's name or folder;
            null for the one that the model brings along (model.base of a RETRO-fit), "train" where it brings none.
        vocabulary_size: tokens in a trained vocabulary; not used with a given tokenizer.
        chunk_length: tokens in a chunk (m in the paper, 64).
        sequence_chunks: chunks in a training sequence.
        artifacts_folder: where prepared artifacts are kept, relative to the current folder; `~` is the home folder.
        num_workers: processes that load batches during training.
    """

    tokenizer: str | None = None
    vocabulary_size: int = 8192
    chunk_length: int = 64
    sequence_chunks: int = 8
    artifacts_folder: str = "artifacts"
    num_workers: int = 0

    def __post_init__(self) -> None:
        _at_least("data.vocabulary_size", self.vocabulary_size, 258)  # 256 bytes, end of text, one merge
        _at_least("data.chunk_length", self.chunk_length, 2)
        if self.chunk_length > LONGEST_CHUNK:
            raise RecipeError(f"data.chunk_length is {self.chunk_length}; it must be {LONGEST_CHUNK} or less.")
        _at_least("data.sequence_chunks", self.sequence_chunks, 1)
        _at_least("data.num_workers", self.num_workers, 0)
        for key in ("tokenizer", "artifacts_folder"):
            if getattr(self, key) == "":
                raise RecipeError(f"data.{key} is empty; give a name or a folder, or leave the line out.")


@dataclass(frozen=True, kw_only=True)
class NeighbourOptions:
    """Which neighbours a chunk gets.

    Attributes:
        k: neighbours of every chunk.
        exclude_same_document: leave out chunks of the chunk's own document. If false only the chunk itself is left
            out of its neighbours.
        overfetch: candidates fetched at first for every training chunk; doubled where fewer than `k` of them are legal.
    """

    k: int = 2
    exclude_same_document: bool = True
    overfetch: int = 16

    def __post_init__(self) -> None:
        _at_least("neighbours.k", self.k, 1)
        _at_least("neighbours.overfetch", self.overfetch, 1)


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise RecipeError(f"{key} is {value}; it must be {least} or more.")
