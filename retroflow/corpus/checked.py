"""What stands in front of every corpus: what a plugin's raises names it, and its documents are not believed."""

import re
from collections.abc import Iterator
from typing import get_args

from retroflow.errors import ComponentError
from retroflow.protocols import Corpus, Counts, Document, Split
from retroflow.registry import Entry, blaming, stated_fingerprint

_SURROGATE = re.compile("[\ud800-\udfff]")


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
        return self._corpus.counts

    @property
    def held_out_by(self) -> tuple[str, ...]:
        """As `Corpus.held_out_by`."""
        return self._corpus.held_out_by

    def documents(self) -> Iterator[Document]:
        """As `Corpus.documents`.

        Raises:
            ComponentError: a plugin's corpus failed, or yielded what is no document.
        """
        if not self._entry.is_plugin:
            yield from self._corpus.documents()
            return
        failure = f"corpus {self.owner}: documents() failed"
        with blaming(failure, self._entry):
            documents = iter(self._corpus.documents())
        number = 0
        while True:
            with blaming(failure, self._entry):
                document = next(documents, None)
            if document is None:
                break
            number += 1
            self._check(document, number)
            yield document
        counted = self.counts.train + self.counts.valid
        if counted != number:
            raise ComponentError(
                f"corpus {self.owner}: counts has {counted:,} documents after {number:,} were given; pass them through "
                "retroflow.corpus.duplicates.distinct_documents, which counts."
            )

    def fingerprint(self) -> dict[str, object]:
        """As `Corpus.fingerprint`; a plugin's with the distribution it is from."""
        return stated_fingerprint(f"corpus {self.owner}", self._entry, self._corpus.fingerprint)

    def _check(self, document: object, number: int) -> None:
        if not isinstance(document, Document):
            raise ComponentError(
                f"corpus {self.owner}: item {number} is of type {type(document).__name__}; give retroflow.Document."
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
