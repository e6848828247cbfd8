"""What a retriever of texts owes: it takes any text, and ranks all of them by its scores if it declares that."""

import unittest

import numpy as np

from retroflow.errors import InvalidTextsError
from retroflow.testing.case import doing, refused
from retroflow.testing.retriever_rules.case import RetrieverCase
from retroflow.testing.retriever_rules.inputs import LARGEST_SLICE

MANY_TEXTS = 70_000
STRANGE = (
    *(
        "",
        " ",
        "\n\t",
        "a",
        "?!",
        "\x00",
        "\ufffd",
        "\u00e9mile Zo\u00eb",
        "\u6587\u5b57\u5217\u3092\u691c\u7d22\u3059\u308b",
        "\U0001f642\U0001f642",
        "\u202eright to left",
    ),
    *("x" * 5_000, "again " * 2_000, "'; DROP TABLE chunks; --", '{"a": [1, 2]}', "def f(x): return x_1"),
)
NO_TEXTS = ("text", None, 3, [1, 2], [b"bytes"], [None], np.ones((2, 3), np.float32))


def takes_any_text(case: RetrieverCase) -> None:
    """Chunks of a corpus, and what a user types: empty, of any script, long, with characters that mean something."""
    texts = [*case.texts[:50], *STRANGE]
    retriever = case.build(texts)
    for k in (1, 5, len(texts) + 1):
        with doing(f"strange texts as queries, k = {k}"):
            ids, _ = retriever.search(texts, k)
            assert ids.max() < len(texts)
    folder = case.scratch() / "index"
    retriever.save(folder)
    with doing("strange texts, saved and opened"):
        assert np.array_equal(case.opened(folder).search(texts, 5).ids, retriever.search(texts, 5).ids)


def pads_with_minus_one_where_few_texts_exist(case: RetrieverCase) -> None:
    for count in (1, 2, 5):
        texts = case.texts[:count]
        ids, _ = case.build_or_skip(texts).search(texts, 9)
        assert (ids[:, count:] == -1).all(), f"only {count} texts exist, so at most {count} ids per row"
        assert (ids[:, 0] == np.arange(count)).all(), f"each of {count} texts must find itself"


def the_best_are_the_beginning_of_all_if_declared_exact(case: RetrieverCase) -> None:
    """Its own scores are the only ones there are: those of a search for every key are what it is measured by."""
    if not case.new().capabilities.exact:
        raise unittest.SkipTest("capabilities.exact is False")
    everything = case.built.search(case.queries[:20], len(case.texts)).scores
    for k in (1, 10, 64):
        found = case.built.search(case.queries[:20], k).scores
        assert np.allclose(found, everything[:, :k], rtol=1e-5), (
            f"the best {k} are not the best of all by its own scores"
        )


def finds_the_first_and_the_last_of_70000_texts(case: RetrieverCase) -> None:
    """Read in blocks of at most 65,536, as a corpus hands them out."""
    case.skip_unless_by_texts()
    texts = _Many()
    rows = [0, 1, 4_095, 4_096, 65_535, 65_536, MANY_TEXTS - 1]
    first = case.build(texts).search([texts.text(row) for row in rows], 1).ids[:, 0]
    assert first.tolist() == rows, "is every block of texts read, to its end, and is an id wide enough for any row?"


def refuses_queries_that_are_no_texts_and_goes_on(case: RetrieverCase) -> None:
    case.skip_unless_by_texts()
    for bad in NO_TEXTS:
        with doing(f"queries: {bad!r}"), refused(InvalidTextsError):
            case.built.search(bad, 3)
        assert case.built.search(case.queries[:1], 3).ids.shape == (1, 3)


class _Many:
    """A TextSource of texts that are made when they are read."""

    def __len__(self) -> int:
        return MANY_TEXTS

    def __getitem__(self, rows: slice, /) -> list[str]:
        wanted = range(*rows.indices(MANY_TEXTS))
        assert len(wanted) <= LARGEST_SLICE, f"build() read {len(wanted)} texts in one slice; read blocks of fewer"
        return [self.text(row) for row in wanted]

    def text(self, row: int) -> str:
        return f"number{row} group{row % 97} text"
