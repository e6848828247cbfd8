"""Whatever an embedder of a plugin raises or answers, the message names it and its distribution."""

import errno

import numpy as np
import pytest

from retroflow.embedding.checked import CheckedEmbedder
from retroflow.embedding.lexical import LexicalEmbedder
from retroflow.errors import ComponentError, InvalidVectorsError, UsageError
from retroflow.protocols import Embedder
from retroflow.registry import Entry

PLUGIN, BUILT_IN = Entry("a:b", owner="my-package 1.0"), Entry("a:b", owner="retroflow 0.1.0")
CALLS = {
    "fit()": lambda embedder: embedder.fit(["a"]),
    "embed()": lambda embedder: embedder.embed(["a"]),
    "save()": lambda embedder: embedder.save("folder"),
    "load()": lambda embedder: embedder.load("folder"),
    "fingerprint()": lambda embedder: embedder.fingerprint(),
    "dimension": lambda embedder: embedder.dimension,
}


class Answering:
    """An embedder that answers what it was made with, or raises it."""

    def __init__(self, answer):
        self._answer = answer

    def _give(self, *arguments):
        print("noise")
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    fit = embed = save = load = fingerprint = _give
    dimension = property(_give)


def checked(answer, entry=PLUGIN):
    return CheckedEmbedder(Answering(answer), name="letters", entry=entry)


@pytest.mark.parametrize("action", CALLS)
@pytest.mark.parametrize(
    "raised", [ValueError("no"), OSError(2, "gone"), MemoryError(), SystemExit(0), BaseException()]
)
def test_what_a_plugin_raises_names_it(action, raised):
    with pytest.raises(ComponentError) as caught:
        CALLS[action](checked(raised))
    assert f"embedder letters (my-package 1.0): {action} failed: " in str(caught.value)
    assert type(raised).__name__ in str(caught.value)
    assert caught.value.exit_code == 1 and caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), UsageError("embed: say str"), OSError(errno.ENOSPC, "full")])
def test_an_interrupt_an_error_of_ours_and_a_full_disk_stay(raised):
    with pytest.raises(type(raised)):
        checked(raised).embed(["a"])


def test_of_a_built_in_only_a_lack_of_memory_is_told_otherwise():
    with pytest.raises(ValueError, match="no"):
        checked(ValueError("no"), BUILT_IN).embed(["a"])
    with pytest.raises(
        ComponentError, match=r"letters \(retroflow 0.1.0\): embed\(\) failed: there is not enough memory"
    ):
        checked(MemoryError(), BUILT_IN).embed(["a"])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "not NoneType"),
        ([[1.0]], "not list"),
        (np.zeros((1, 3), np.int64), "embed() gave int64 [1, 3]; float32 [2, 4] is needed"),
        (np.zeros((2, 3), np.float32), "embed() gave float32 [2, 3]"),
        (np.zeros(4, np.float32), "embed() gave float32 [4]"),
    ],
)
def test_an_answer_that_is_no_embedding_names_the_embedder(answer, words, monkeypatch):
    embedder = checked(answer)
    monkeypatch.setattr(Answering, "dimension", 4)
    with pytest.raises(InvalidVectorsError) as caught:
        embedder.embed(["a", "b"])
    assert "embedder letters (my-package 1.0): embed() " in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize("answer", [None, [1], {"a": object()}, {"a": float("nan")}])
def test_a_fingerprint_that_is_no_json_names_the_embedder(answer):
    with pytest.raises(
        ComponentError, match=r"letters \(my-package 1.0\): fingerprint\(\) must be a dict of JSON values"
    ):
        checked(answer).fingerprint()


@pytest.mark.parametrize("answer", [None, 0, "4", 2.0])
def test_a_dimension_that_is_none_names_the_embedder(answer):
    with pytest.raises(ComponentError, match=r"letters \(my-package 1.0\): dimension is .* an int of 1 or more"):
        _ = checked(answer).dimension


def test_another_version_of_a_plugin_is_another_embedder_and_a_built_in_says_its_own():
    assert checked({"a": 1}).fingerprint() == {"a": 1, "distribution": "my-package 1.0"}
    assert checked({"a": 1}, BUILT_IN).fingerprint() == {"a": 1}


def test_an_embedder_behaves_as_before_behind_it(capsys):
    plain = LexicalEmbedder(dimension=8, buckets=64)
    embedder = CheckedEmbedder(plain, name="lexical", entry=PLUGIN)
    assert isinstance(embedder, Embedder)
    for one in (plain, embedder):
        one.fit(["some text", "more text"])
    assert np.array_equal(embedder.embed(["some text"]), plain.embed(["some text"]))
    checked({"a": 1}).fingerprint()
    assert capsys.readouterr().out == ""
