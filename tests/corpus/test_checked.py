"""What a plugin's corpus raises or yields names it; a built-in's documents pass as they are."""

import dataclasses
from types import SimpleNamespace

import pytest

from retroflow.corpus.checked import CheckedCorpus
from retroflow.errors import ComponentError, CorpusError
from retroflow.protocols import Corpus, Counts, Document
from retroflow.registry import Entry

PLUGIN, BUILT_IN = Entry("a:b", owner="my-package 1.0"), Entry("a:b", owner="retroflow 0.1.0")
NOTE = Document("a", "a note", "some text", "notes:1", "train")


def checked(documents, entry=PLUGIN, counted=1, fingerprint=dict):
    corpus = SimpleNamespace(
        documents=documents, counts=Counts(train=counted), held_out_by=("share",), fingerprint=fingerprint
    )
    return CheckedCorpus(corpus, name="notes", entry=entry)


def test_documents_pass_as_they_are():
    corpus = checked(lambda: iter([NOTE]))
    assert isinstance(corpus, Corpus)
    assert list(corpus.documents()) == [NOTE] and corpus.counts.train == 1 and corpus.held_out_by == ("share",)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"text": "a"}, r"item 1 is of type dict; yield retroflow.Document"),
        (None, r"item 1 is of type NoneType; yield retroflow.Document"),
        (dataclasses.replace(NOTE, split="test"), "document 1 has the split 'test'; allowed: train and valid"),
        (dataclasses.replace(NOTE, text="half \ud800"), "the text of document 1 is not text that UTF-8 can hold"),
        (dataclasses.replace(NOTE, title=None), "the title of document 1 is not text"),
    ],
)
def test_what_is_no_document_is_refused(document, message):
    with pytest.raises(ComponentError, match=rf"^corpus notes \(my-package 1.0\): .*{message}"):
        list(checked(lambda: iter([document])).documents())


@pytest.mark.parametrize("raised", [ValueError("no"), OSError(2, "gone"), SystemExit(0)])
def test_what_a_plugin_raises_names_it(raised):
    def fail():
        yield NOTE
        raise raised

    with pytest.raises(ComponentError, match=r"^corpus notes \(my-package 1.0\): documents\(\) failed: "):
        list(checked(fail).documents())
    with pytest.raises(type(raised)):
        list(checked(fail, BUILT_IN).documents())


def test_its_own_error_stays():
    def fail():
        raise CorpusError("nothing there")

    with pytest.raises(CorpusError, match="^nothing there"):
        list(checked(fail).documents())


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ComponentError, match=r"counts has 3 documents after 1 were yielded; pass them through"):
        list(checked(lambda: iter([NOTE]), counted=3).documents())
    with pytest.raises(ComponentError, match=r"^corpus notes .*: counts failed: TypeError"):
        list(checked(lambda: iter([NOTE]), counted="3").documents())


def test_another_version_of_a_plugin_is_another_corpus():
    assert checked(iter).fingerprint() == {"distribution": "my-package 1.0"}
    assert checked(iter, BUILT_IN).fingerprint() == {}
    with pytest.raises(ComponentError, match="fingerprint.. must be a dict of JSON values"):
        checked(iter, fingerprint=lambda: {"a": {1}}).fingerprint()
