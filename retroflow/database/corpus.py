"""A version of a database as a corpus: its documents to train on, with the vectors that it has.

corpus: {name: database, path: kb}
"""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen
from numpy.typing import NDArray

from retroflow.corpus.documents import ValidShare
from retroflow.corpus.split import hash_fraction
from retroflow.database.snapshot import Snapshot, named_version
from retroflow.errors import CorpusError
from retroflow.options import checked_options
from retroflow.protocols import Corpus, Counts, Document, EmbeddedCorpus, Split


@checked_options("corpus")
class DatabaseCorpus(Corpus, EmbeddedCorpus):
    """Documents of a database of `retroflow db`.

    Args:
        path: its folder; `folder@7` or `folder@tag` for an older version.
        valid_share: share of the documents held out, chosen by a hash of the id, 0 <= share < 1.

    Raises:
        UsageError: an option is out of range, or there is no such database.
    """

    def __init__(self, *, path: Annotated[str, MinLen(1)], valid_share: ValidShare = 0.05) -> None:
        self._path, self._valid_share = path, valid_share
        self.counts = Counts()

    @cached_property
    def _snapshot(self) -> Snapshot:
        return Snapshot.open(*named_version(self._path))

    def documents(self) -> Iterator[Document]:
        """Stream the documents; see `Corpus.documents`.

        Raises:
            CorpusError: there is no document to train on, or none to evaluate.
        """
        self.counts = Counts()
        view = self._snapshot.view
        for number in range(view.num_documents):
            record, text = view.document(number), self._snapshot.text(number)
            # Not by the hash of other sources: a database of their training documents would have none left to hold out.
            held_out = hash_fraction(record.id, purpose="retroflow-db") < self._valid_share
            split: Split = "valid" if held_out else "train"
            self.counts.train += split == "train"
            self.counts.valid += split == "valid"
            self.counts.num_bytes += len(text.encode())
            yield Document(record.id, record.title, text, record.source, split)
        for purpose, count in {"training": self.counts.train, "validation": self.counts.valid}.items():
            if not count and (purpose == "training" or self._valid_share):
                raise CorpusError(
                    f'corpus.path "{self._path}": no document is for {purpose} ({self.counts.summary()}). Change '
                    "corpus.valid_share, or add documents."
                )

    def fingerprint(self) -> dict[str, object]:
        """Return its documents and what made their vectors; see `Corpus.fingerprint`."""
        version = self._snapshot.version
        made_with = {"documents": version.fingerprint, "identity": version.identity.content}
        return {"name": "database", "version": 1, "valid_share": self._valid_share, **made_with}

    @property
    def learned(self) -> Path | None:
        """As in `EmbeddedCorpus`."""
        return None if self._snapshot.identity.dimension is None else self._snapshot.identity.folder / "embedder"

    def vectors(self, id: str) -> NDArray[np.float16]:
        """As in `EmbeddedCorpus`.

        Raises:
            CorpusError: there is no such document.
        """
        view, dimension = self._snapshot.view, self._snapshot.identity.dimension
        number = view.number(id)
        if number is None or dimension is None:
            raise CorpusError(f'corpus.path "{self._path}": it has no vectors of "{id}". Prepare again.')
        found: NDArray[np.float16] = view.embeddings(dimension)[view.chunks_of(number)]
        return found


def sections_of(path: str) -> dict[str, Any]:
    """Return the sections of a recipe that a database stands for.

    Raises:
        RetroflowError: there is no such database, or it is damaged.
    """
    identity = Snapshot.open(*named_version(path)).identity
    sections = identity.sections
    is_bare = os.sep not in path and "." not in path  # a run would take it for a name, and not for a path
    return {
        "corpus": {"name": "database", "path": os.path.join(os.curdir, path) if is_bare else path},
        "embedder": sections["embedder"],
        "retriever": sections["retriever"],
        "data": {"tokenizer": str(identity.folder / "tokenizer"), "chunk_length": identity.chunk_length},
    }
