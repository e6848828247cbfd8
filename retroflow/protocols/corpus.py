"""What a source of text must do: documents with a split, and a count of what was left out on the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["train", "valid"]


@dataclass(frozen=True, slots=True)
class Document:
    """A unit of source text; chunks never cross it, and it is in one split as a whole.

    Attributes:
        id: what names the document in its source; stable between runs and machines.
        title: what a person calls it; the id where the source has no title.
        text: Unicode without lone surrogates, not blank.
        source: where it was read, relative to the corpus path: "docs/a.txt" or "train.jsonl.gz:12".
        split: "train" documents fill the retrieval database, "valid" ones are held out.
    """

    id: str
    title: str
    text: str
    source: str
    split: Split


@dataclass(slots=True)
class Counts:
    """What became of the documents of the latest `documents()` pass, complete once it has ended.

    Attributes:
        train, valid: documents yielded.
        num_bytes: UTF-8 bytes of the documents yielded.
        duplicates: documents dropped because the same text came before.
        empty: documents dropped because they are blank.
        undecodable: source files skipped because they are in no declared encoding (python_source only).
        too_large: source files skipped because of their size (python_source only).
        own_folders: folders that were passed over because retroflow made them, by their names below the corpus path.
    """

    train: int = 0
    valid: int = 0
    num_bytes: int = 0
    duplicates: int = 0
    empty: int = 0
    undecodable: int = 0
    too_large: int = 0
    own_folders: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for a person: what was read and what was left out."""
        line = f"{self.train:,} train and {self.valid:,} validation documents, {self.num_bytes / 1e6:,.1f} MB"
        left_out = [
            f"{number:,} {what}"
            for number, what in (
                (self.duplicates, "exact duplicate" if self.duplicates == 1 else "exact duplicates"),
                (self.empty, "empty"),
                (self.undecodable, "undecodable"),
                (self.too_large, "too large"),
            )
            if number
        ]
        if left_out:
            line += f"; left out: {', '.join(left_out)}"
        if self.own_folders:
            line += f"; skipped: retroflow's own {_some(self.own_folders)}"
        return line


def _some(names: tuple[str, ...]) -> str:
    """The first three, and how many there are beside them."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


@runtime_checkable
class Corpus(Protocol):
    """A source of documents. Every pass yields the same documents in the same order.

    Attributes:
        held_out_by: the options that decide which documents are held out for validation; messages name them.
        counts: of the latest pass, complete once it has ended.
    """

    held_out_by: ClassVar[tuple[str, ...]] = ("valid_share",)
    counts: Counts

    def documents(self) -> Iterator[Document]:
        """Stream the documents, both splits mixed, exact duplicates dropped, in constant memory."""
        ...

    def fingerprint(self) -> dict[str, object]:
        """Options and content identity as JSON values: whatever changes the documents; no path of this machine."""
        ...


@runtime_checkable
class EmbeddedCorpus(Protocol):
    """A corpus whose chunks have vectors already, by the recipe's tokenizer, chunk length and embedder."""

    @property
    def learned(self) -> Path | None:
        """Folder that the embedder is loaded from, instead of being fitted; None if there are no vectors."""
        ...

    def vectors(self, id: str) -> "NDArray[np.float16]":
        """Return the vectors float16 [c, D] of the chunks of a document, in order."""
        ...
