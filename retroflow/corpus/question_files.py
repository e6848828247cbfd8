"""Question files as a corpus: one document of each question, with its answer, for `data.format: qa`.

corpus: {name: questions, path: train.jsonl, valid_path: dev.jsonl}
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from annotated_types import MinLen

from retroflow.corpus.documents import ValidShare
from retroflow.corpus.jsonl import INCLUDE
from retroflow.corpus.questions import read_questions
from retroflow.corpus.split_files import SplitFiles
from retroflow.options import checked_options
from retroflow.protocols import Corpus, Counts, Document


@checked_options("corpus")
class QuestionCorpus(Corpus):
    """Questions from JSON Lines files, each with its first answer.

    Args:
        path: a file, a folder (all .jsonl, .jsonl.gz and .jsonl.zst below it) or a glob.
        valid_path: the same for the validation split; None splits `path` by a hash of the question's id.
        valid_share: share of the questions held out when there is no `valid_path`, 0 <= share < 1.

    Raises:
        UsageError: an option is out of range.
    """

    held_out_by: ClassVar[tuple[str, ...]] = ("valid_share", "valid_path")

    def __init__(
        self,
        *,
        path: Annotated[str, MinLen(1)],
        valid_path: Annotated[str, MinLen(1)] | None = None,
        valid_share: ValidShare = 0.05,
    ) -> None:
        self.files = SplitFiles(path=path, valid_path=valid_path, valid_share=valid_share, include=INCLUDE)
        self.counts = Counts()

    def documents(self) -> Iterator[Document]:
        """Stream the questions; see `Corpus.documents`.

        Raises:
            CorpusError: there is no file, or no question.
            DamagedDataError: a line is not a question; the message has file and line.
        """
        self.counts = Counts()
        return self.files.distinct(self._read(), self.counts)

    def fingerprint(self) -> dict[str, object]:
        """Return options and file contents; see `Corpus.fingerprint`."""
        return {"name": "questions", "version": 1, **self.files.fingerprint()}

    def _read(self) -> Iterator[Document]:
        for file, split_of in self.files:
            for question in read_questions(file.path):
                yield Document(question.id, question.id, question.answered, file.name, split_of(question.id))
