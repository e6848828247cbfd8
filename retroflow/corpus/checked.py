"""The wrapper of every corpus: it names a plugin's corpus in errors and checks its documents."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import get_args

from retroflow.errors import ComponentError
from retroflow.protocols import Corpus, Counts, Document, EmbeddedCorpus, Split
from retroflow.registry import Entry, blaming, stated_fingerprint

_SURROGATE = re.compile("[\ud800-\udfff]")
_END = object()


class CheckedCorpus:
    """A corpus whose failures name it; satisfies `retroflow.protocols.Corpus`.

    Args:
        corpus: what is read.
        name: the corpus source's, as in a recipe.
        entry: its line of the registry.

    Attributes:
        owner: name and distribution, as messages show them ("mbox (my-package 1.0)").
    """

    def __init__(self, corpus: Corpus, *, name: str, entry: Entry) -> None:
        self.owner = f"{name} ({entry.owner})"
        self._corpus, self._entry = corpus, entry

    @property
    def counts(self) -> Counts:
        """As `Corpus.counts`."""
        with self._blaming("counts"):
            return self._corpus.counts

    @property
    def held_out_by(self) -> tuple[str, ...]:
        """As `Corpus.held_out_by`."""
        with self._blaming("held_out_by"):
            return self._corpus.held_out_by

    @property
    def embedded(self) -> EmbeddedCorpus | None:
        """The corpus, if it has the vectors of its chunks already."""
        return self._corpus if isinstance(self._corpus, EmbeddedCorpus) else None

    def documents(self) -> Iterator[Document]:
        """As `Corpus.documents`.

        Raises:
            ComponentError: a plugin's corpus failed, or yielded something that is not a document.
        """
        if not self._entry.is_plugin:
            yield from self._corpus.documents()
            return
        with self._blaming("documents()"):
            documents = iter(self._corpus.documents())
        number = 0
        while True:
            with self._blaming("documents()"):
                document = next(documents, _END)
            if document is _END:
                break
            number += 1
            yield self._checked(document, number)
        with self._blaming("counts"):
            counted = self.counts.train + self.counts.valid
        if counted != number:
            raise ComponentError(
                f"corpus {self.owner}: counts has {counted:,} documents after {number:,} were yielded; pass them "
                "through retroflow.corpus.duplicates.distinct_documents, which counts."
            )

    def fingerprint(self) -> dict[str, object]:
        """As `Corpus.fingerprint`; a plugin's with the distribution it is from."""
        return stated_fingerprint(f"corpus {self.owner}", self._entry, self._corpus.fingerprint)

    def _blaming(self, action: str) -> AbstractContextManager[None]:
        return blaming(f"corpus {self.owner}: {action} failed", self._entry)

    def _checked(self, document: object, number: int) -> Document:
        if not isinstance(document, Document):
            raise ComponentError(
                f"corpus {self.owner}: item {number} is of type {type(document).__name__}; yield retroflow.Document."
            )
        if document.split not in get_args(Split):
            raise ComponentError(
                f"corpus {self.owner}: document {number} has the split {document.split!r}; allowed: train and valid."
            )
        for field in ("id", "title", "text", "source"):
            value = getattr(document, field)
            if not isinstance(value, str) or _SURROGATE.search(value):
                raise ComponentError(
                    f"corpus {self.owner}: the {field} of document {number} is not text that UTF-8 can hold."
                )
        return document
