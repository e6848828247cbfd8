"""Built-in sources of text and trackers keep the contracts that plugins are held to."""

import functools
import json
import tempfile
from pathlib import Path

import pytest

from retroflow.protocols import Corpus, Tracker
from retroflow.testing import CorpusContract, TrackerContract
from retroflow.testing.tiny_corpus import tiny_texts, write_tiny_corpus


@functools.cache
def texts() -> Path:
    folder = Path(tempfile.mkdtemp())
    write_tiny_corpus(folder, 20)
    for number, text in enumerate([*tiny_texts(20), *tiny_texts(2)]):
        (folder / f"note_{number}.txt").write_text(text, encoding="utf-8")
    return folder


class TestJsonl(CorpusContract):
    own_process = False

    def make_corpus(self) -> Corpus:
        from retroflow.corpus.jsonl import JsonlCorpus

        return JsonlCorpus(path=str(texts()), valid_share=0.3)


class TestText(CorpusContract):
    own_process = False

    def make_corpus(self) -> Corpus:
        from retroflow.corpus.text import TextCorpus

        return TextCorpus(path=str(texts()), valid_path=str(texts() / "note_1*.txt"))


class TestParquet(CorpusContract):
    own_process = False

    def make_corpus(self) -> Corpus:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        from retroflow.corpus.parquet import ParquetCorpus

        path = texts() / "notes.parquet"
        if not path.exists():
            lines = (texts() / "tiny.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [{key: json.loads(line)[key] for key in ("id", "text")} for line in lines]
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return ParquetCorpus(path=str(path), valid_share=0.3)


class TestPythonSource(CorpusContract):
    own_process = False

    def make_corpus(self) -> Corpus:
        from retroflow.corpus.python_source import PythonSourceCorpus

        return PythonSourceCorpus(packages=["annotated_types", "retroflow"], valid_share=0.4, group_by=2, share=0.3)


class TestNoTracker(TrackerContract):
    own_process = False

    def make_tracker(self) -> Tracker:
        from retroflow.tracking.background import NoTracker

        return NoTracker()
