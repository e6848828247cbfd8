"""CorpusContract: what every source of documents owes, as a pytest class to subclass.

    class TestMyCorpus(CorpusContract):
        def make_corpus(self): return MyCorpus(path=str(FOLDER))

One test a rule, `test_rule[two_passes_give_the_same_documents]`; docs/writing-a-corpus.md goes through them. The rules
are the public functions of this module.
"""

import dataclasses
import json
import sys
from functools import cached_property
from itertools import islice
from typing import Any, get_args

from retroflow.protocols import Corpus, Counts, Document, Split, missing_members
from retroflow.testing.case import Case
from retroflow.testing.contract import Contract
from retroflow.testing.effects import (
    changed_since,
    draw_from_global_generators,
    standard_output,
    state_of_process,
    unusual_settings,
)
from retroflow.testing.readable_options import check_keyword_only, check_readable


class CorpusCase(Case):
    """One corpus, read once."""

    @cached_property
    def corpus(self) -> Corpus:
        """Has been read to its end."""
        corpus: Corpus = self.suite.make_corpus()
        list(corpus.documents())
        return corpus

    @cached_property
    def documents(self) -> list[Document]:
        """All of them."""
        return list(self.suite.make_corpus().documents())


def implements_the_protocol(case: CorpusCase) -> None:
    corpus = case.suite.make_corpus()
    lacking = missing_members(corpus, Corpus)
    assert not lacking, f"it lacks {lacking}; inherit from retroflow.Corpus"
    assert isinstance(corpus.counts, Counts), f"counts is {type(corpus.counts).__name__}, no retroflow.protocols.Counts"


def takes_its_options_by_keyword(case: CorpusCase) -> None:
    check_keyword_only(type(case.suite.make_corpus()))


def has_options_that_a_recipe_can_read(case: CorpusCase) -> None:
    """Recipes read options from the source: one that they cannot read does not exist for them."""
    check_readable(type(case.suite.make_corpus()))


def names_options_that_it_has(case: CorpusCase) -> None:
    corpus = case.suite.make_corpus()
    options = type(corpus).__init__.__annotations__
    wrong = [name for name in corpus.held_out_by if name not in options]
    assert not wrong, f"held_out_by names {wrong}, and its options are {', '.join(options)}"


def yields_documents(case: CorpusCase) -> None:
    assert case.documents, "it yields no document"
    for number, document in enumerate(case.documents):
        assert isinstance(document, Document), f"item {number} is {type(document).__name__}; give retroflow.Document"
        assert document.split in get_args(Split), f"document {number} has the split {document.split!r}"
        for name in ("id", "title", "text", "source"):
            value = getattr(document, name)
            assert isinstance(value, str) and value.strip(), f"document {number} has the {name} {value!r:.60}"
            value.encode()  # a lone surrogate could not be stored


def has_text_to_train_and_to_validate_on(case: CorpusCase) -> None:
    splits = {document.split for document in case.documents}
    assert splits == set(get_args(Split)), f"all documents are in {splits}; `prepare` needs train and valid"


def leaves_out_exact_copies(case: CorpusCase) -> None:
    """A copy in both splits would let the model look up what it is evaluated on."""
    texts = [document.text for document in case.documents]
    assert len(set(texts)) == len(texts), "several documents have one text; pass them through distinct_documents"


def counts_what_it_yields(case: CorpusCase) -> None:
    counts = case.corpus.counts
    splits = [document.split for document in case.documents]
    found = (counts.train, counts.valid, counts.num_bytes)
    wanted = (
        splits.count("train"),
        splits.count("valid"),
        sum(len(document.text.encode()) for document in case.documents),
    )
    assert found == wanted, f"counts has {found} (train, valid, bytes) after a pass that gave {wanted}"


def two_passes_give_the_same_documents(case: CorpusCase) -> None:
    corpus = case.suite.make_corpus()
    for name in ("the first", "the second"):
        assert list(corpus.documents()) == case.documents, f"{name} pass of another instance gives other documents"
    assert corpus.counts == case.corpus.counts, "counts must begin anew with every pass"


def a_pass_that_is_left_early_changes_nothing(case: CorpusCase) -> None:
    corpus = case.suite.make_corpus()
    list(islice(corpus.documents(), 1))
    assert list(corpus.documents()) == case.documents, "a pass after one that was left early gives other documents"


def another_process_reads_the_same_documents(case: CorpusCase) -> None:
    here = [dataclasses.asdict(document) for document in case.documents]
    there = case.elsewhere(_documents)
    assert here == there, "another process reads other documents: no hash() or order of a set may decide"


def _documents(case: CorpusCase) -> list[dict[str, Any]]:
    """For another process."""
    return [dataclasses.asdict(document) for document in case.documents]


def has_a_fingerprint_in_json_that_reading_does_not_change(case: CorpusCase) -> None:
    corpus = case.suite.make_corpus()
    before = corpus.fingerprint()
    assert json.loads(json.dumps(before, allow_nan=False)) == before, "fingerprint() must hold JSON values only"
    list(corpus.documents())
    assert corpus.fingerprint() == before, "fingerprint() is called before documents(), which must not change it"
    assert case.elsewhere(_fingerprint) == before, "fingerprint() is another one in another process"


def _fingerprint(case: CorpusCase) -> dict[str, object]:
    """For another process."""
    values: dict[str, object] = case.suite.make_corpus().fingerprint()
    return values


def leaves_the_process_as_it_was(case: CorpusCase) -> None:
    """Nothing on stdout, which belongs to `--json`; no global generator used or seeded, no setting changed."""
    corpus = case.corpus  # what is imported at the first pass may be
    draw_from_global_generators()
    with unusual_settings(case.scratch()), standard_output() as written:
        before = state_of_process()
        list(corpus.documents())
        corpus.fingerprint()
        said, changed = written(), changed_since(before)
    assert not said, f"it prints to stdout: {said[:200]!r}; log to stderr, or nothing"
    assert not changed, f"it changed {' and '.join(changed)}; use a generator of your own and put settings back"


class CorpusContract(Contract):
    """Subclass it as a class whose name starts with Test, and override `make_corpus`."""

    rule_modules = (sys.modules[__name__],)
    case_class = CorpusCase

    def make_corpus(self) -> Corpus:
        """Return a new corpus of some small documents, always with the same options; absolute paths, no fixture.

        Called often, in other processes and current folders too.
        """
        raise NotImplementedError("override make_corpus() in your subclass of CorpusContract")
